"""The state dicts that a view holds, whatever wrote it, and which of them is meant."""

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

from msgspec import Struct, field

from holdtrue.errors import OpenError, fail
from holdtrue.findings import Finding
from holdtrue.formats.checkpoint_directory import read_manifest
from holdtrue.formats.module_tree import is_module, module_nodes, state_dict
from holdtrue.formats.pickle_tensors import is_storage
from holdtrue.formats.tensor_bytes import element_bytes
from holdtrue.formats.tree_walk import each_node, name_of
from holdtrue.formats.verifying import parts
from holdtrue.formats.view import LazyTensor, View
from holdtrue.records.inert import Record

# What torch.optim writes: the tensors inside are moments, not weights.
_OPTIMIZER = frozenset({"state", "param_groups"})


class StateDict(Struct, frozen=True, kw_only=True, eq=False):
    """Names and tensors that belong to one model, and what stands beside them in its place.

    `node` is that place in the view's tree; `attributes` are those of the dict, its `_metadata`.
    """

    path: str  # in the tree; "" for the top
    names: dict[str, LazyTensor]
    class_name: str | None = None  # of a whole pickled model
    training: dict[str, bool] = field(default_factory=dict)  # as in a module part
    node: Any = None
    beside: dict[str, Any] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """What the model is called: the last name of its path."""
        return self.path.rpartition("/")[2]


def state_dicts(view: View) -> list[StateDict]:
    """Every state dict of a view, in the order of its tree.

    That is: a mapping with string keys of which most are tensors, a whole pickled model, and a
    module of a holdtrue checkpoint. What lies in an optimizer's state is none.
    """
    if view.format == "holdtrue":
        return [*_module_parts(view), *_in_value_parts(view)]
    # A damaged one may have lost its modules, and its storages stand without names.
    if view.format == "torchscript" and isinstance(view.about.get("state_dict"), dict):
        return [_scripted(view)]
    return list(_in_tree(view.tree, view.path))


def choose(view: View, part: str | None = None) -> StateDict:
    """The state dict at a path, or of that last name; without one the largest, the first of equals.

    A view without any gives all its tensors, under their paths. Raises OpenError where `part` is
    not to be found, or the view has no tensor at all.
    """
    found = state_dicts(view)
    if part is not None:
        named = [s for s in found if s.path == part] or [s for s in found if s.label == part]
        if not named:
            raise _no_part(view, part, found)
        return named[0]
    if found:
        return max(found, key=nbytes)
    names = {path or "tensor": t for path, t in view.tensors.items() if not is_storage(t)}
    if not names:
        raise _no_tensor(view)
    return StateDict(path="", names=names)


def nbytes(state: StateDict) -> int:
    """Bytes of all tensors, those of tied ones once."""
    distinct = {id(t): t for t in state.names.values()}
    inner = (part for tensor in distinct.values() for part in parts(tensor) if part.pieces)
    return sum(prod(part.shape) * element_bytes(part) for part in inner)


def _in_tree(tree: Any, where: str) -> Iterator[StateDict]:
    seen: set[int] = set()
    closed: list[str] = []  # what lies below these has been dealt with
    for path, node in each_node(tree, where):
        closed = [c for c in closed if not c or path.startswith(c + "/")]
        if closed or id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, Record) and is_module(node):
            closed.append(path)
            yield _pickled(path, node, where)
        elif isinstance(node, dict) and node.keys() >= _OPTIMIZER:
            closed.append(path)
        elif isinstance(node, dict) and (names := named_tensors(node)):
            yield StateDict(
                path=path,
                names=names,
                node=node,
                beside={name_of(k): v for k, v in node.items() if names.get(k) is not v},
                attributes=dict(getattr(node, "__dict__", {})),
            )


def named_tensors(node: dict[Any, Any]) -> dict[str, LazyTensor]:
    """The tensors of a mapping that is a state dict; none where it is another mapping."""
    names = {
        key: value
        for key, value in node.items()
        if isinstance(key, str) and isinstance(value, LazyTensor) and not is_storage(value)
    }
    return names if 2 * len(names) > len(node) else {}


def _pickled(path: str, model: Record, where: str) -> StateDict:
    training: dict[str, bool] = {}
    flags: dict[str, bool | None] = {}
    for module in module_nodes(model, where):
        flags[module.path] = module.training
        above = flags.get(module.path.rpartition(".")[0]) if module.path else None
        if module.training is not None and module.training != above:
            training[module.path] = module.training
    return StateDict(
        path=path,
        names=state_dict(model, where),
        class_name=model.class_name,
        training=training,
        node=model,
        beside={"modules and attributes": model},
    )


def _scripted(view: View) -> StateDict:
    names: dict[str, str] = view.about["state_dict"]
    # Salvaging puts bytes without a name beside the tree that is left.
    tree = view.tree.get("salvaged", view.tree)
    module = tree.get("module") if isinstance(tree, dict) else None
    return StateDict(
        path="",
        names={name: view.tensors[path] for name, path in names.items() if path in view.tensors},
        class_name=view.about["class"],
        node=module,
        beside={"modules and attributes": module},
    )


def _module_parts(view: View) -> Iterator[StateDict]:
    for name, part in read_manifest(Path(view.path)).parts.items():
        state = part.state if isinstance(part.state, dict) else {}
        entries, training = state.get("entries"), state.get("training")
        if part.kind != "module" or not isinstance(entries, dict):
            continue
        attributes = view.tree[name].get("attributes")
        held = {
            n: view.tensors[key]
            for n, key in entries.items()
            if isinstance(key, str) and key in view.tensors
        }
        yield StateDict(
            path=name,
            names={n: tensor for n, tensor in held.items() if tensor.persistent},
            class_name=part.class_name,
            training=training if isinstance(training, dict) else {},
            node=view.tree[name],
            beside=_beside_entries(view.tree[name], held),
            attributes=attributes if isinstance(attributes, dict) else {},
        )


def _beside_entries(part: dict[str, Any], held: dict[str, LazyTensor]) -> dict[str, Any]:
    """What else a module part keeps, where there is some of it."""
    kept = {name: part[name] for name in ("extra", "custom", "getstate") if part.get(name)}
    return kept | {name: tensor for name, tensor in held.items() if not tensor.persistent}


def _in_value_parts(view: View) -> Iterator[StateDict]:
    for name, part in read_manifest(Path(view.path)).parts.items():
        if part.kind == "value":
            # As the only entry of a dict, so that its path begins with the part's name.
            yield from _in_tree({name: view.tree[name]}, view.path)


def _no_part(view: View, part: str, found: list[StateDict]) -> OpenError:
    known = ", ".join(repr(s.path) for s in found[:10]) or "none"
    return fail(
        OpenError,
        view.path,
        Finding(
            code="part-missing",
            severity="error",
            where=view.path,
            what=f"there is no state dict {part[:80]!r}",
            why=f"the file has these: {known}",
            fix="name one of these, or none for the largest",
        ),
    )


def _no_tensor(view: View) -> OpenError:
    return fail(
        OpenError,
        view.path,
        Finding(
            code="no-tensors",
            severity="error",
            where=view.path,
            what="the file holds no tensors",
            why=f"it is {view.format}, and everything in it is plain values",
            fix="holdtrue inspect shows what there is; a holdtrue checkpoint can keep values",
        ),
    )
