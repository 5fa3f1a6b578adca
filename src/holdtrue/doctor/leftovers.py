"""What of a view a destination does not hold, as findings: listed, never silently dropped."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from holdtrue.doctor.state_dicts import StateDict
from holdtrue.findings import Finding
from holdtrue.formats.tree_walk import children
from holdtrue.formats.view import LazyTensor, View
from holdtrue.records.inert import Record


def left_values(view: View, carried: StateDict) -> list[str]:
    """The places of a tree beside the one state dict that is carried; whole subtrees as one."""
    if carried.node is None:
        return []
    return list(_beside(view.tree, carried, ""))


def _beside(node: Any, carried: StateDict, path: str) -> Iterator[str]:
    if node is carried.node:
        yield from _within(node, carried, path)
        return
    for name, value in children(node):
        place = f"{path}/{name}" if path else name
        if carried.path == place or carried.path.startswith(place + "/"):
            yield from _beside(value, carried, place)
        else:
            yield f"{place} ({_describe(value)})"


def _within(node: Any, carried: StateDict, path: str) -> Iterator[str]:
    """What a carried mapping holds beside tensors, and of a pickled model all but its tensors."""
    if isinstance(node, Record):
        yield f"{path or 'the model'} (modules and attributes of {node.class_name[:80]})"
    elif isinstance(node, dict) and not _is_module_part(node):
        for name, value in children(node):
            if not isinstance(value, LazyTensor):
                yield (
                    f"{path}/{name} ({_describe(value)})"
                    if path
                    else f"{name} ({_describe(value)})"
                )


def _is_module_part(node: dict[Any, Any]) -> bool:
    return "entries" in node and isinstance(node["entries"], dict)


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
            what=f"{len(places):,} values of {where} are not in the result",
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
            what=f"{len(places):,} tensors or values are not in the result",
            why=why,
            fix="take them from the source: holdtrue.open(SRC) still reads it",
        )
