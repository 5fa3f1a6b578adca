"""Which tensor of a file is which of a model, where their names differ.

Evidence in this order: the same name; spellings that libraries rewrite; one prefix for another;
the only one of its shape; the most alike name among equal shapes; the same order. Shapes are equal
in all of them, and so are kinds ("weight", "bias"). What two kinds of evidence say differently is
left open: a model with two tensors exchanged computes something else without a word.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Literal

from msgspec import Struct, field

from holdtrue.doctor.fit.spellings import canonical, canonical_names, likeness, words
from holdtrue.doctor.fit.wrappers import Shape

Confidence = Literal["certain", "likely", "hint"]
_RIVALS = 16  # names of the target that one ending may propose
_MARGIN = 0.04  # by which a name must be more alike than the next
_LARGEST_GROUP = 128  # of equal shapes: beyond, names are not compared each with each
_COMPARED = 200_000  # pairs of names that are compared in all
_LONGEST = 512  # characters, and
_DEEPEST = 48  # components of a name that is looked at
_ORDER: dict[Confidence, int] = {"certain": 0, "likely": 1, "hint": 2}


class Matching(Struct, kw_only=True):
    """Names of the file and what they are called in the model, itself included."""

    pairs: dict[str, str] = field(default_factory=dict)
    confidence: Confidence = "certain"  # of the weakest pair
    by_order: list[str] = field(default_factory=list)  # names that only their order tells apart

    @property
    def renamed(self) -> dict[str, str]:
        return {old: new for old, new in self.pairs.items() if old != new}


class _Open(Struct):
    """What has found no partner yet."""

    file: dict[str, Shape]
    target: dict[str, Shape | None]
    into: Matching
    avoid: frozenset[tuple[str, str]] = frozenset()

    def pair(self, old: str, new: str, confidence: Confidence) -> None:
        self.into.pairs[old] = new
        del self.file[old], self.target[new]
        self.into.confidence = max(self.into.confidence, confidence, key=_ORDER.__getitem__)


def match(
    file: Mapping[str, Shape], target: Mapping[str, Shape | None], *, ordered: bool
) -> Matching:
    """Pairs of equal shape. `ordered` where the file keeps the order in which they were saved."""
    left = _Open(dict(file), dict(target), Matching())
    for name in [n for n in file if n in target and _fits(file[n], target[n])]:
        left.pair(name, name, "certain")
    # A name that both have, with two shapes, is one tensor that was changed, not two of them.
    for name in [n for n in left.file if n in left.target]:
        del left.file[name], left.target[name]
    for name in [n for n in left.file if len(n) > _LONGEST or n.count(".") >= _DEEPEST]:
        del left.file[name]
    _by_spelling(left)
    _by_prefix(left)
    _by_likeness_and_order(left, ordered)
    if _exchanged(left.into.renamed, file, target):
        left.into.confidence = "hint"
    return left.into


def _exchanged(
    renamed: Mapping[str, str], file: Mapping[str, Shape], target: Mapping[str, Shape | None]
) -> bool:
    """Whether a part of the file is called like another part of the model, and that like a third:
    then equal names may be chance as well."""
    mine, theirs = _paths(file), _paths(target)
    for old, new in renamed.items():
        a, b = old.split("."), new.split(".")
        while len(a) > 1 and len(b) > 1 and a[-1] == b[-1]:
            a, b = a[:-1], b[:-1]
        if ".".join(a) in theirs and ".".join(b) in mine:
            return True
    return False


def _paths(names: Iterable[str]) -> set[str]:
    """Every name and all that it stands in."""
    found: set[str] = set()
    for name in names:
        pieces = name.split(".")
        found |= {".".join(pieces[:at]) for at in range(1, len(pieces) + 1)}
    return found


def _fits(shape: Shape, wanted: Shape | None) -> bool:
    return wanted is None or shape == wanted


def _by_spelling(left: _Open) -> None:
    mine, theirs = _grouped(left.file), _grouped(left.target)
    for name, files in mine.items():
        targets = theirs.get(name, [])
        if len(files) == len(targets) == 1 and _fits(left.file[files[0]], left.target[targets[0]]):
            left.pair(files[0], targets[0], "certain")


def _grouped(names: Collection[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for name, plain in canonical_names(names).items():
        found[plain].append(name)
    return found


def _by_prefix(left: _Open) -> None:
    """One prefix for another, the one that pairs most; while none pairs as many otherwise."""
    while left.file and left.target:
        ranked = _prefixes(left)
        if not ranked:
            return
        (best, pairs), *others = ranked
        rivals = [p for (a, b), p in others if len(p) == len(pairs) and _contradicts(pairs, p)]
        if len(pairs) < 2 or rivals:
            return
        everything = len(pairs) == len(left.file) or len(pairs) == len(left.target)
        strong = everything and (not best[0] or not best[1])
        for old, new in pairs.items():
            left.pair(old, new, "certain" if strong else "likely")


def _contradicts(pairs: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether two ways share a name on one side, and not its partner."""
    taken = {new: old for old, new in pairs.items()}
    return any(pairs.get(o, n) != n or taken.get(n, o) != o for o, n in other.items())


def _prefixes(left: _Open) -> list[tuple[tuple[str, str], dict[str, str]]]:
    endings: dict[str, list[str]] = defaultdict(list)
    for name in left.target:
        for end in _tails(name):
            endings[end].append(name)
    votes: Counter[tuple[str, str]] = Counter()
    for name, shape in left.file.items():
        for end in _tails(name):
            partners = endings.get(end, [])
            if len(partners) > _RIVALS:
                continue
            for other in partners:
                if _fits(shape, left.target[other]):
                    votes[name.removesuffix(end), other.removesuffix(end)] += 1
    found = []
    for (a, b), count in votes.most_common(32):
        if count < 2:
            break
        pairs = {}
        wrong = 0
        for name, shape in left.file.items():
            new = b + name[len(a) :]
            if not name.startswith(a) or new not in left.target:
                continue
            if _fits(shape, left.target[new]):
                pairs[name] = new
            else:
                wrong += 1
        if not wrong:
            found.append(((a, b), pairs))
    return sorted(found, key=lambda item: (-len(item[1]), -_prefix_likeness(item[0])))


def _prefix_likeness(pair: tuple[str, str]) -> float:
    return likeness(*pair)


def _tails(name: str) -> list[str]:
    pieces = name.split(".")
    return [".".join(pieces[at:]) for at in range(len(pieces))]


def _by_likeness_and_order(left: _Open, ordered: bool) -> None:
    """Among equal shapes and kinds: by names that are alike, and by order; both must agree."""
    mine: dict[tuple[str, Shape], list[str]] = defaultdict(list)
    theirs: dict[tuple[str, Shape], list[str]] = defaultdict(list)
    for name, shape in left.file.items():
        mine[_kind(name), shape].append(name)
    for name, wanted in left.target.items():
        if wanted is not None:
            theirs[_kind(name), wanted].append(name)
    found: dict[str, tuple[str, Confidence]] = {}
    by_order: list[str] = []
    compared = 0
    for (_, shape), files, targets in _groups(mine, theirs):
        compared += len(files) * len(targets)
        if max(len(files), len(targets)) > _LARGEST_GROUP or compared > _COMPARED:
            continue
        if len(files) == len(targets) == 1:
            alike = likeness(files[0], targets[0])
            found[files[0]] = (targets[0], "likely" if alike > 0.4 or len(shape) > 1 else "hint")
            continue
        pairs = _alike(files, targets)
        if len(files) == len(targets):
            in_order = dict(zip(*_orders(files, targets, ordered), strict=True))
            if len(pairs) < len(files):
                if any(in_order.get(old, new) != new for old, new in pairs.items()) or not in_order:
                    continue  # the two contradict each other
                by_order += [old for old in in_order if old not in pairs]
                pairs = in_order
        for old, new in pairs.items():
            found[old] = (new, "hint" if old in set(by_order) else "likely")
    found = _with_siblings(left, _whole_modules(found))
    left.into.by_order += [old for old in by_order if old in found]
    for old, (new, confidence) in found.items():
        left.pair(old, new, confidence)


_Group = tuple[tuple[str, Shape], list[str], list[str]]


def _groups(
    mine: Mapping[tuple[str, Shape], list[str]], theirs: Mapping[tuple[str, Shape], list[str]]
) -> Iterable[_Group]:
    """What could be paired: of one kind and shape; of one layer, where both count them alike."""
    for key, files in mine.items():
        targets = theirs.get(key, [])
        layers = _layers(files, targets)
        if layers:
            yield from ((key, group, others) for group, others in layers)
        elif targets:
            yield key, files, targets


def _layers(files: list[str], targets: list[str]) -> list[tuple[list[str], list[str]]]:
    """Those of each layer of their own; none where the two count differently."""
    for counted in (_numbers, _indices):
        ours, others = _grouped_by(counted, files), _grouped_by(counted, targets)
        alike = {n: len(g) for n, g in ours.items()} == {n: len(g) for n, g in others.items()}
        if len(ours) > 1 and alike:
            return [(group, others[numbers]) for numbers, group in ours.items()]
    return []


def _grouped_by(
    counted: Callable[[str], tuple[int, ...]], names: Iterable[str]
) -> dict[tuple[int, ...], list[str]]:
    found: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for name in names:
        found[counted(name)].append(name)
    return found


def _indices(name: str) -> tuple[int, ...]:
    """The numbers that stand alone: of layers, not of `fc1` and `fc2`."""
    return tuple(int(c) for c in name.split(".") if c.isdigit())


def _kind(name: str) -> str:
    return canonical(name).rpartition(".")[2]


def _alike(files: list[str], targets: list[str]) -> dict[str, str]:
    """Pairs of which each is the most alike of the other, by a margin.

    What has found a better partner does not stand in the way of others; but nothing is paired
    because it is all that is left.
    """
    scores = {(f, t): likeness(f, t) for f in files for t in targets}
    turned = {(t, f): score for (f, t), score in scores.items()}
    wished = {f: t for f in files if (t := _clearly(f, targets, scores)) and scores[f, t] > 0.5}
    pairs: dict[str, str] = {}
    while True:
        left = [f for f in files if f not in pairs]
        taken = set(pairs.values())
        found = {f: wished[f] for f in left if f in wished and wished[f] not in taken}
        found = {f: t for f, t in found.items() if _clearly(t, left, turned) == f}
        if not found:
            return pairs
        pairs |= found


def _clearly(name: str, others: list[str], scores: Mapping[tuple[str, str], float]) -> str | None:
    """The one of the highest score, by a margin; None where two are near each other."""
    ranked = sorted(others, key=lambda other: -scores[name, other])
    if len(ranked) > 1 and scores[name, ranked[0]] - scores[name, ranked[1]] <= _MARGIN:
        return None
    return ranked[0] if ranked else None


def _orders(files: list[str], targets: list[str], ordered: bool) -> tuple[list[str], list[str]]:
    """Both in one order: that of saving, or, for names that differ in numbers only, theirs."""
    if ordered:
        return files, targets
    if all(len({_template(n) for n in names}) == 1 for names in (files, targets)):
        return sorted(files, key=_numbers), sorted(targets, key=_numbers)
    return [], []


def _template(name: str) -> tuple[str, ...]:
    return tuple("#" if w.isdigit() else w for w in words(name))


def _numbers(name: str) -> tuple[int, ...]:
    return tuple(int(w) for w in words(name) if w.isdigit())


def _with_siblings(
    left: _Open, found: Mapping[str, tuple[str, Confidence]]
) -> dict[str, tuple[str, Confidence]]:
    """With what stands in a module whose home is known, of the same kind and shape there."""
    homes = {_module(old): (_module(new), sure) for old, (new, sure) in found.items()}
    taken = {new for new, _ in found.values()}
    theirs = {(_module(n), _kind(n)): n for n in left.target if n not in taken}
    more = dict(found)
    for old, shape in left.file.items():
        if old in found or _module(old) not in homes:
            continue
        home, sure = homes[_module(old)]
        new = theirs.pop((home, _kind(old)), None)
        if new is not None and left.target[new] == shape:
            more[old] = (new, sure)
    return more


def _whole_modules(
    found: Mapping[str, tuple[str, Confidence]],
) -> dict[str, tuple[str, Confidence]]:
    """Only pairs by which all tensors of one module go to one module."""
    homes: dict[str, set[str]] = defaultdict(set)
    for old, (new, _) in found.items():
        homes[_module(old)].add(_module(new))
    return {old: pair for old, pair in found.items() if len(homes[_module(old)]) == 1}


def _module(name: str) -> str:
    return canonical(name).rpartition(".")[0]
