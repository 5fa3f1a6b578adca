"""A whole pickled model as data: its state dict and its modules, with its classes gone.

`torch.save(model)` stores each module as a record whose state has `_parameters`, `_buffers` and
`_modules`; what torch's own `state_dict()` does with them is done here on the records.
"""

from collections.abc import Iterator
from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace

from holdtrue.errors import OpenError
from holdtrue.formats.pickle_source import over_budget
from holdtrue.formats.tree_walk import each_node, name_of
from holdtrue.formats.view import LazyTensor
from holdtrue.limits import limits
from holdtrue.records.inert import Record

# What torch keeps on every module for itself; older ones lack some of them.
_MACHINERY = frozenset({
    "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_backward_hooks",
    "_backward_pre_hooks", "_is_full_backward_hook", "_forward_hooks", "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called", "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs",
    "_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks", "_backend", "training", "_compiled_call_impl",
})  # fmt: skip


_TRACED = (
    "torch.fx.graph_module.reduce_graph_module",
    "torch.fx.graph_module.reduce_deploy_graph_module",
)


class ModuleNode(Struct, frozen=True, kw_only=True):
    """One module of a pickled model. `attributes` are those that torch does not manage itself."""

    path: str  # "" for the model itself
    class_name: str
    training: bool | None  # None where the file does not say
    parameters: tuple[str, ...] = ()
    buffers: tuple[str, ...] = ()
    non_persistent: tuple[str, ...] = ()  # buffers that stay out of the state dict
    children: tuple[str, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)


def module_state(value: Any) -> dict[Any, Any] | None:
    """The attributes of a pickled torch.nn.Module; None for anything else."""
    if not isinstance(value, Record):
        return None
    state = value.state
    if value.class_name in _TRACED and value.args:
        state = value.args[0]  # torch.fx makes a traced module again from its attributes
    if isinstance(state, tuple) and len(state) == 2:  # a class with __slots__
        state = state[0]
    if not isinstance(state, dict):
        return None
    managed = all(isinstance(state.get(name), dict) for name in ("_parameters", "_modules"))
    return state if managed else None


def is_module(value: Any) -> bool:
    """Whether a record is a pickled torch.nn.Module."""
    return module_state(value) is not None


def find_modules(tree: Any, where: str) -> dict[str, Record]:
    """The models in a tree by their path; the modules inside a model are not listed."""
    found: dict[str, Record] = {}
    inside: str | None = None
    for path, node in each_node(tree, where):
        if inside is not None and (not inside or path.startswith(inside + "/")):
            continue
        inside = None
        if isinstance(node, Record) and is_module(node):
            found[path] = node
            inside = path
    return found


def state_dict(
    model: Record, where: str = "a pickled model", *, hidden: bool = False
) -> dict[str, LazyTensor]:
    """What `model.state_dict()` gave when the model was saved, in torch's order.

    Tied parameters are one LazyTensor, or share their storage, under each of their names. Hooks
    and `get_extra_state` of the lost class are code, and cannot take part. With `hidden` the
    buffers that stay out of a state dict are given too, marked as not persistent.
    """
    found: dict[str, LazyTensor] = {}
    for path, _, state in _modules(model, where):
        prefix = f"{path}." if path else ""
        unsaved = _hidden(state)
        for name, tensor in _tensors(state.get("_parameters")):
            found[prefix + name] = tensor
        for name, tensor in _tensors(state.get("_buffers")):
            if name not in unsaved:
                found[prefix + name] = tensor
            elif hidden:
                found[prefix + name] = replace(tensor, persistent=False)
    return found


def has_packed(model: Record, where: str = "a pickled model") -> bool:
    """Whether some module keeps its weights packed, where no state dict can be made of them."""
    return any("_packed_params" in state for _, _, state in _modules(model, where))


def module_nodes(model: Record, where: str = "a pickled model") -> tuple[ModuleNode, ...]:
    """Every module of a pickled model, parents before children, in the order of the model."""
    nodes = []
    for path, record, state in _modules(model, where):
        hidden = _hidden(state)
        training = state.get("training")
        buffers = [name_of(name) for name in _mapping(state.get("_buffers"))]
        nodes.append(
            ModuleNode(
                path=path,
                class_name=record.class_name,
                training=training if isinstance(training, bool) else None,
                parameters=tuple(name_of(name) for name in _mapping(state.get("_parameters"))),
                buffers=tuple(buffers),
                non_persistent=tuple(name for name in buffers if name in hidden),
                children=tuple(name_of(name) for name in _mapping(state.get("_modules"))),
                attributes=_attributes(state),
            )
        )
    return tuple(nodes)


def _modules(model: Record, where: str) -> Iterator[tuple[str, Record, dict[Any, Any]]]:
    """(path, record, attributes) in torch's order: a module, then each child with all of its own.

    A module at two places is given twice, as torch names it twice; one inside itself is not.
    """
    left = limits().entries // 5
    pending: list[tuple[str, Record, frozenset[int]]] = [("", model, frozenset())]
    while pending:
        path, record, above = pending.pop()
        state = module_state(record)
        if state is None or id(record) in above:
            continue
        left -= 1
        if left < 0:
            raise over_budget(where, "entries", limits().entries, "modules in one model")
        if len(above) >= limits().value_depth:
            raise _too_deep(where)
        yield path, record, state
        inner = above | {id(record)}
        children = list(_mapping(state.get("_modules")).items())
        for name, child in reversed(children):
            if isinstance(child, Record):
                pending.append((f"{path}.{name_of(name)}" if path else name_of(name), child, inner))


def _too_deep(where: str) -> OpenError:
    return over_budget(where, "value_depth", limits().value_depth, "modules inside one another")


def _mapping(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}


def _tensors(value: Any) -> Iterator[tuple[str, LazyTensor]]:
    for name, tensor in _mapping(value).items():
        if isinstance(tensor, LazyTensor):
            yield name_of(name), tensor


def _hidden(state: dict[Any, Any]) -> set[str]:
    names = state.get("_non_persistent_buffers_set")
    return {n for n in names if isinstance(n, str)} if isinstance(names, set) else set()


def _attributes(state: dict[Any, Any]) -> dict[str, Any]:
    """What the class itself set, and those of torch's own attributes that hold something."""
    found = {}
    for key, value in state.items():
        plumbing = key in _MACHINERY and not (isinstance(value, dict) and value)
        if not plumbing and key not in ("_parameters", "_buffers", "_modules"):
            found[name_of(key)] = value
    return found
