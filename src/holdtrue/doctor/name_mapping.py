"""Which tensor of one checkpoint is which of the other: by name, by a prefix, by content."""

import re
from collections import Counter
from collections.abc import Callable, Collection

from msgspec import Struct

from holdtrue.formats.view import LazyTensor

_CUT = re.compile(r"[./]")
_SAMPLED = 256  # names that propose prefixes; every name counts when they are weighed
_RIVALS = 16  # names of the other side that one ending may propose
_WEIGHED = 32  # proposals that are weighed


class PrefixMapping(Struct, frozen=True, kw_only=True):
    """Names of A that begin with `a` are those of B that begin with `b` instead."""

    a: str
    b: str
    count: int  # tensors that it matches

    @property
    def renames(self) -> bool:
        """Whether names differ within their dict, and not only the place of the dict."""
        return self.a.rpartition("/")[2] != self.b.rpartition("/")[2]

    def __str__(self) -> str:
        return f"{self.a or '(nothing)'} → {self.b or '(nothing)'}"


class Renamed(Struct, frozen=True, kw_only=True):
    """Tensors of equal content under other names. Several on a side: which is which is open."""

    a: tuple[str, ...]
    b: tuple[str, ...]
    dtype: str
    shape: tuple[int, ...]

    @property
    def ambiguous(self) -> bool:
        return len(self.a) > 1 or len(self.b) > 1


def map_names(
    names: Collection[str], others: Collection[str], mapping: PrefixMapping | None
) -> dict[str, str]:
    """What each name of A is called in B. One stays itself where B has it as it is, or A the new
    one already."""
    if mapping is None:
        return {name: name for name in names}
    found = {}
    for name in names:
        new = name if name in others else _mapped(name, mapping)
        found[name] = name if new in names else new
    return found


def _mapped(name: str, mapping: PrefixMapping) -> str:
    if name.startswith(mapping.a) and name:
        return mapping.b + name[len(mapping.a) :]
    whole_dict = mapping.a in ("", f"{name}/") and (mapping.a or not name)
    return mapping.b.rpartition("/")[0] if whole_dict else name


def find_mapping(a: dict[str, LazyTensor], b: dict[str, LazyTensor]) -> PrefixMapping | None:
    """The one change of prefix that matches most names; None where none matches any more."""
    lost = [name for name in a if name not in b]
    free = [name for name in b if name not in a]
    if not lost or not free:
        return None
    if len(a) == len(b) == 1 and "" in (*a, *b):  # a bare tensor, and one that had to get a name
        old, new = lost[0], free[0]
        if "/" not in old + new:
            return PrefixMapping(a=old and f"{old}/", b=new and f"{new}/", count=1)
    endings: dict[str, list[str]] = {}
    for name in free:
        for at in _cuts(name):
            rivals = endings.setdefault(name[at:], [])
            if len(rivals) < _RIVALS:
                rivals.append(name[:at])
    votes: Counter[tuple[str, str]] = Counter()
    step = max(1, len(lost) // _SAMPLED)
    for name in lost[::step]:
        for at in _cuts(name):
            if name[at:] in endings:
                votes.update((name[:at], prefix) for prefix in endings[name[at:]])
                break
    best: PrefixMapping | None = None
    weight = (0, 0)
    for (old, new), _ in votes.most_common(_WEIGHED):
        fits = [name for name in lost if name.startswith(old) and new + name[len(old) :] in b]
        fits = [name for name in fits if new + name[len(old) :] not in a]
        alike = sum(a[name].shape == b[new + name[len(old) :]].shape for name in fits)
        if (alike, len(fits)) > weight:
            weight = (alike, len(fits))
            best = PrefixMapping(a=old, b=new, count=len(fits))
    # A few names out of many that happen to end alike are renamed tensors, not a prefix.
    enough = best is not None and weight[0] and 2 * best.count >= min(len(lost), len(free))
    return best if enough else None


def _cuts(name: str) -> list[int]:
    """Where a name can be split into prefix and rest, the longest rest first."""
    return [0, *(found.end() for found in _CUT.finditer(name))]


def same_kind(
    a: dict[str, LazyTensor],
    b: dict[str, LazyTensor],
    key: Callable[[LazyTensor], tuple[object, ...]],
) -> tuple[dict[str, LazyTensor], dict[str, LazyTensor]]:
    """Those of each side whose `key` (dtype, shape) the other side has too: no other is read."""
    kinds = {key(tensor) for tensor in a.values()} & {key(tensor) for tensor in b.values()}
    left, right = (
        {name: tensor for name, tensor in side.items() if key(tensor) in kinds} for side in (a, b)
    )
    return left, right


def find_renamed(
    a: dict[str, LazyTensor],
    b: dict[str, LazyTensor],
    key: Callable[[LazyTensor], tuple[object, ...]],
) -> list[Renamed]:
    """Tensors of both sides with one content, which `key` stands for."""
    groups: dict[tuple[object, ...], tuple[list[str], list[str]]] = {}
    for side, table in enumerate((a, b)):
        for name, tensor in table.items():
            groups.setdefault(key(tensor), ([], []))[side].append(name)
    return [
        Renamed(a=tuple(old), b=tuple(new), dtype=a[old[0]].dtype, shape=a[old[0]].shape)
        for old, new in groups.values()
        if old and new
    ]
