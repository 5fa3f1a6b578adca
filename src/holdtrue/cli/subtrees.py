"""Thousands of tensors as a few lines: names gathered by the subtree that they stand in."""

import re
from collections.abc import Mapping

from msgspec import Struct

_STEP = re.compile(r"[./]")


class Leaf(Struct, frozen=True):
    what: str  # "float32 [10, 3]"
    nbytes: int


class Row(Struct, frozen=True):
    name: str
    what: str
    nbytes: int


def rows(leaves: Mapping[str, Leaf], most: int) -> list[Row]:
    """At most about `most` rows: every leaf where they fit, else one row for each subtree."""
    if len(leaves) <= most:
        return [Row(name, leaf.what, leaf.nbytes) for name, leaf in leaves.items()]
    deepest = max(len(_STEP.split(name)) for name in leaves)
    gathered: dict[str, list[Leaf]] = {}
    for depth in range(deepest, 0, -1):
        gathered = {}
        for name, leaf in leaves.items():
            gathered.setdefault(_prefix(name, depth), []).append(leaf)
        if len(gathered) <= most:
            break
    return [
        Row(name, _gathered(found), sum(leaf.nbytes for leaf in found))
        for name, found in gathered.items()
    ]


def _prefix(name: str, depth: int) -> str:
    cuts = [m.start() for m in _STEP.finditer(name)]
    return name if len(cuts) < depth else name[: cuts[depth - 1]]


def _gathered(found: list[Leaf]) -> str:
    if len(found) == 1:
        return found[0].what
    dtypes = sorted({leaf.what.partition(" ")[0] for leaf in found})
    return f"{len(found):,} tensors, {', '.join(dtypes)}"
