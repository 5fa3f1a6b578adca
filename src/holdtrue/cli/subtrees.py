"""Thousands of tensors as a few lines: names gathered by the subtree that they stand in."""

import re
from collections.abc import Collection, Mapping

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
    return [
        Row(
            name,
            _gathered([leaves[leaf] for leaf in found]),
            sum(leaves[leaf].nbytes for leaf in found),
        )
        for name, found in gather(leaves, most).items()
    ]


def gather(names: Collection[str], most: int) -> dict[str, list[str]]:
    """Names by the subtree that they stand in, as deep as gives at most about `most` subtrees."""
    if len(names) <= most:
        return {name: [name] for name in names}
    deepest = max(len(_STEP.split(name)) for name in names)
    gathered: dict[str, list[str]] = {}
    for depth in range(deepest, 0, -1):
        gathered = {}
        for name in names:
            gathered.setdefault(_prefix(name, depth), []).append(name)
        if len(gathered) <= most:
            break
    return gathered


def _prefix(name: str, depth: int) -> str:
    cuts = [m.start() for m in _STEP.finditer(name)]
    return name if len(cuts) < depth else name[: cuts[depth - 1]]


def _gathered(found: list[Leaf]) -> str:
    if len(found) == 1:
        return found[0].what
    dtypes = sorted({leaf.what.partition(" ")[0] for leaf in found})
    return f"{len(found):,} tensors, {', '.join(dtypes)}"
