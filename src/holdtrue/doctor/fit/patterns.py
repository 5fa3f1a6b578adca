"""Many changes of names as few patterns: {"old.*": "new.*"}, each * in turn."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping

_WEIGHED = 48  # candidates that are tried in one round
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


def compress(mapping: Mapping[str, str], names: Collection[str]) -> dict[str, str]:
    """The fewest patterns found that rename as `mapping` says and leave all other `names` alone.

    Names with a "*" of their own cannot be written as patterns: then there are none.
    """
    wanted = {name: mapping.get(name, name) for name in names}
    left = [name for name, new in wanted.items() if new != name]
    if any("*" in name for name in (*left, *mapping.values())):
        return {}
    chosen: dict[str, str] = {}
    settled: set[str] = set()
    while left and len(chosen) < _MOST:
        votes: Counter[tuple[str, str]] = Counter()
        for name in left:
            votes.update(set(_candidates(name, wanted[name])))
        best, reached = ("", ""), frozenset[str]()
        ranked = sorted(votes.items(), key=lambda v: (-v[1], len(v[0][0] + v[0][1]), v[0]))
        for (old, new), count in ranked[:_WEIGHED]:
            if count <= len(reached) or old in chosen:
                continue
            hit = _reached(old, new, wanted, settled)
            if len(hit) > len(reached):
                best, reached = (old, new), hit
        if not reached:
            name = left[0]
            best, reached = (name, wanted[name]), frozenset({name})
        chosen[best[0]] = best[1]
        settled |= reached
        left = [name for name in left if name not in settled]
    return chosen


def _reached(old: str, new: str, wanted: Mapping[str, str], settled: set[str]) -> frozenset[str]:
    """The names that a pattern renames rightly; none where it renames one wrongly."""
    pattern = compiled(old)
    hit = set()
    for name, right in wanted.items():
        if name in settled:
            continue
        match = pattern.fullmatch(name)
        if match and filled(match, new) != right:
            return frozenset()
        if match:
            hit.add(name)
    return frozenset(hit)


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
    return ["*" if c.isdigit() else c for c in components]


def _pattern(*groups: list[str]) -> str:
    return ".".join(component for group in groups for component in group)
