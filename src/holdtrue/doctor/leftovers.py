"""What of a view a destination does not hold, as findings: listed, never silently dropped."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from holdtrue.doctor.state_dicts import StateDict
from holdtrue.findings import Finding
from holdtrue.formats.tree_walk import children
from holdtrue.formats.view import LazyTensor, View
from holdtrue.records.inert import Record


def left_values(view: View, carried: StateDict, *, attributes: bool = False) -> list[str]:
    """The places of a tree beside the one state dict that is carried; whole subtrees as one.

    `attributes` says that those of the dict itself are carried, too.
    """
    if carried.node is None:
        return []
    left = carried.beside if attributes else carried.beside | carried.attributes
    return [*_around(view.tree, carried, "", left), *left_files(view)]


def left_files(view: View) -> list[str]:
    """What lies in an archive beside its tree: code and files that others put there."""
    code, extra = view.about.get("code"), view.about.get("extra_files")
    return [
        *([f"code/ ({len(code):,} files of TorchScript)"] if code else ()),
        *(f"extra/{name}" for name in extra or ()),
    ]


def _around(node: Any, carried: StateDict, path: str, left: dict[str, Any]) -> Iterator[str]:
    if node is carried.node:
        for name, value in left.items():
            yield _place(path, name, value)
        return
    for name, value in children(node):
        place = f"{path}/{name}" if path else name
        if value is carried.node or carried.path.startswith(place + "/"):
            yield from _around(value, carried, place, left)
        else:
            yield _place(path, name, value)


def _place(path: str, name: str, value: Any) -> str:
    return f"{path}/{name} ({_describe(value)})" if path else f"{name} ({_describe(value)})"


def _describe(value: Any) -> str:
    if isinstance(value, LazyTensor):
        return repr(value)
    if isinstance(value, Record):
        return f"a {value.class_name[:80]}"
    kind = type(value).__name__
    return f"{kind} of {len(value)}" if isinstance(value, (dict, list, tuple, set)) else kind


def values_finding(where: str, kind: str, places: list[str]) -> list[Finding]:
    """One finding for the values that the destination has no place for."""
    if not places:
        return []
    versions = all(place.rpartition("/")[2].startswith("_metadata ") for place in places)
    return [
        Finding(
            code="values-not-carried",
            severity="note" if versions else "warning",
            where=places[0],
            places=tuple(places),
            what=f"{_count(places, 'value')} in {where} and not in the result",
            why=f"{kind} holds the tensors of one state dict and nothing else",
            fix="convert to a holdtrue checkpoint, which keeps values and records too: "
            "--to holdtrue",
        )
    ]


def tensors_findings(left: Mapping[str, str]) -> Iterable[Finding]:
    """One finding for each reason for which tensors or values were left out."""
    reasons: dict[str, list[str]] = {}
    for place, why in left.items():
        reasons.setdefault(why, []).append(place)
    for why, places in reasons.items():
        yield Finding(
            code="not-carried",
            severity="warning",
            where=places[0],
            places=tuple(places),
            what=f"{_count(places, 'tensor')} not in the result",
            why=why,
            fix="take them from the source: holdtrue.open(SRC) still reads it",
        )


def _count(places: list[str], noun: str) -> str:
    return f"1 {noun} is" if len(places) == 1 else f"{len(places):,} {noun}s are"
