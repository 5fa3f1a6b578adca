"""Many changes of names as few patterns: {"old.*": "new.*"}, each * in turn."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping

_WEIGHED = 48  # candidates that are tried in one round
_STARS = 3  # numbers that a pattern leaves open
_MOST = 400  # rounds, and so patterns


def renaming(patterns: Mapping[str, str], used: set[str], part: str) -> Callable[[str], str]:
    """A function that applies the first pattern that fits, and notes in `used` which ones did.

    A pattern may be written with the part, "model/old.*".
    """
    rules = [(old, compiled(old), new) for old, new in patterns.items()]
    prefix = f"{part}/"

    def apply(name: str) -> str:
        for old, pattern, new in rules:
            match = pattern.fullmatch(name) or pattern.fullmatch(prefix + name)
            if match:
                used.add(old)
                return filled(match, new).removeprefix(prefix)
        return name

    return apply


def compiled(glob: str) -> "re.Pattern[str]":
    return re.compile("(.*)".join(re.escape(piece) for piece in glob.split("*")))


def filled(match: "re.Match[str]", new: str) -> str:
    """The new name, with what each * stood for."""
    pieces = new.split("*")
    groups = [*match.groups(), *[""] * len(pieces)]
    return "".join(p + g for p, g in zip(pieces, groups, strict=False))


def compress(
    mapping: Mapping[str, str],
    names: Collection[str],
    free: Collection[str] = (),
    taken: Collection[str] = (),
) -> dict[str, str]:
    """The fewest patterns found that rename as `mapping` says and leave all other `names` alone.

    Those in `free` may get any name that is not `taken`. Names with a "*" of their own cannot be
    written as patterns: then there are none. The general patterns are found first and come last,
    since the first that fits is applied.
    """
    wanted: dict[str, str | None] = {name: mapping.get(name, name) for name in names}
    wanted |= {name: None for name in free if name not in mapping}
    if any("*" in name for name in (*wanted, *mapping.values())):
        return {}
    now = {name: name for name in wanted}
    avoid = frozenset(taken)

    def right(name: str, new: str) -> bool:
        meant = wanted[name]
        return new not in avoid if meant is None else new == meant

    left = [name for name in wanted if not right(name, name)]
    chosen: list[tuple[str, str]] = []
    while left and len(chosen) < _MOST:
        votes: Counter[tuple[str, str]] = Counter()
        for name in left:
            votes.update(set(_candidates(name, wanted[name] or name)))
        ranked = sorted(votes.items(), key=lambda v: (-v[1], len(v[0][0] + v[0][1]), v[0]))
        best, most, changed = (left[0], wanted[left[0]] or left[0]), 0, dict[str, str]()
        for (old, new), count in ranked[:_WEIGHED]:
            if count <= most or old in dict(chosen):
                continue
            effect = _effect(old, new, now)
            gain = sum(right(n, r) - right(n, now[n]) for n, r in effect.items())
            if gain > most:
                best, most, changed = (old, new), gain, effect
        chosen.insert(0, best)
        now |= changed or {left[0]: best[1]}
        left = [name for name in wanted if not right(name, now[name])]
    return {} if left else dict(chosen)


def _effect(old: str, new: str, names: Collection[str]) -> dict[str, str]:
    """What a pattern makes of the names that it fits."""
    pattern = compiled(old)
    return {n: filled(match, new) for n in names if (match := pattern.fullmatch(n))}


def _candidates(old: str, new: str) -> Iterator[tuple[str, str]]:
    a, b = old.split("."), new.split(".")
    tail = 0
    while tail < min(len(a), len(b)) and a[-1 - tail] == b[-1 - tail]:
        tail += 1
    head = 0
    while head < min(len(a), len(b)) - tail and a[head] == b[head]:
        head += 1
    mine, theirs = a[head : len(a) - tail], b[head : len(b) - tail]
    before, after = a[:head], a[len(a) - tail :]
    middles = [(mine, theirs), *_numbered(mine, theirs)]
    for old_middle, new_middle in middles:
        for start in (before, _starred(before), *([["*"]] if before else [])):
            for end in (after, *_ends(after)):
                yield _pattern(start, old_middle, end), _pattern(start, new_middle, end)
    # With a component or two of what surrounds the change, which tells it from others like it.
    for depth in (1, 2):
        if depth < len(before) and mine:
            start = ["*", *before[-depth:]]
            for end in (after, *_ends(after)):
                yield _pattern(start, mine, end), _pattern(start, theirs, end)


def _ends(after: list[str]) -> Iterator[list[str]]:
    if after:
        yield ["*"]
        yield _starred(after)
        if len(after) > 1:
            yield [after[0], "*"]
            yield [*_starred(after[:-1]), "*"]
            yield ["*", after[-1]]


def _numbered(a: list[str], b: list[str]) -> Iterator[tuple[list[str], list[str]]]:
    """The numbers within a change as *, where both sides have the same in the same order."""
    numbers = [c for c in a if c.isdigit()]
    if numbers and numbers == [c for c in b if c.isdigit()]:
        yield _starred(a), _starred(b)


def _starred(components: list[str]) -> list[str]:
    """Numbers as *; of many none, since each * makes a pattern slower to fit."""
    if sum(c.isdigit() for c in components) > _STARS:
        return components
    return ["*" if c.isdigit() else c for c in components]


def _pattern(*groups: list[str]) -> str:
    return ".".join(component for group in groups for component in group)
