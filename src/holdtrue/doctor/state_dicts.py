"""Which state dicts a file holds: plain ones, nested ones, and those of whole pickled models."""

from typing import Any

from msgspec import Struct, field

from holdtrue.formats.module_tree import is_module, module_nodes, state_dict
from holdtrue.formats.tree_walk import each_node
from holdtrue.formats.view import LazyTensor, View


class StateDict(Struct, frozen=True, kw_only=True):
    """Tensors under the names of one model."""

    path: str  # in the tree, names joined by "/"; "" where the file is nothing else
    names: dict[str, LazyTensor]
    class_name: str | None = None  # of a whole model
    training: dict[str, bool] = field(default_factory=dict)  # module path → flag, where kept


def state_dicts(view: View) -> list[StateDict]:
    """The state dicts of a file, the largest first; those inside optimizers' state are not ones."""
    if view.format == "holdtrue":
        found = _of_parts(view)
    elif view.format == "torchscript":
        found = _of_script(view)
    else:
        found = _in_tree(view)
    return sorted(found, key=lambda state: (-len(state.names), state.path))


def _in_tree(view: View) -> list[StateDict]:
    found: list[StateDict] = []
    closed: list[str] = []  # paths below which there is nothing more to look for
    for path, node in each_node(view.tree, view.path):
        if any(not stop or path == stop or path.startswith(stop + "/") for stop in closed):
            continue
        if is_module(node):
            closed.append(path)
            found.append(_of_model(path, node))
        elif isinstance(node, dict):
            if {"state", "param_groups"} <= node.keys():
                closed.append(path)
            elif _is_state_dict(node):
                names = {k: v for k, v in node.items() if isinstance(v, LazyTensor)}
                found.append(StateDict(path=path, names=names))
    return found


def _is_state_dict(node: dict[Any, Any]) -> bool:
    """Mostly tensors, under names; a few values beside them (extra state) are usual."""
    tensors = sum(isinstance(v, LazyTensor) for v in node.values())
    return tensors * 2 > len(node) and all(isinstance(key, str) for key in node)


def _of_model(path: str, record: Any) -> StateDict:
    nodes = module_nodes(record, path)
    flags = {n.path: n.training for n in nodes if n.training is not None}
    return StateDict(
        path=path,
        names=state_dict(record, path),
        class_name=record.class_name,
        training=flags,
    )


def _of_parts(view: View) -> list[StateDict]:
    """holdtrue's own module parts: their entries name tensor keys."""
    found = []
    for part, state in view.tree.items():
        entries = state.get("entries") if isinstance(state, dict) else None
        if isinstance(entries, dict) and entries.keys() and "training" in state:
            names = {n: view.tensors[k] for n, k in entries.items() if k in view.tensors}
            kept = {n: t for n, t in names.items() if t.persistent}
            found.append(StateDict(path=part, names=kept))
    return found


def _of_script(view: View) -> list[StateDict]:
    names = view.about.get("state_dict") or {}
    tensors = {n: view.tensors[p] for n, p in names.items() if p in view.tensors}
    return [StateDict(path="", names=tensors)] if tensors else []
