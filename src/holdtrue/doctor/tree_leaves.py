"""A checkpoint as two flat tables, tensors and values by path, so that any two can be laid side by
side.

Whole pickled models are given as their state dicts. What only some formats hold beside tensors and
values (module attributes, random states, versions) is kept apart, by label.
"""

import argparse
import random
from collections import OrderedDict, deque
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
from msgspec import Struct

from holdtrue.errors import OpenError, fail
from holdtrue.findings import Finding
from holdtrue.formats.module_tree import is_module, module_nodes, state_dict
from holdtrue.formats.pickle_source import over_budget
from holdtrue.formats.tree_walk import children, name_of
from holdtrue.formats.view import LazyTensor
from holdtrue.limits import limits
from holdtrue.records.inert import InertKey, NamedReference, Record

MODULES = "attributes of pickled modules"
VERSIONS = "state dict versions"


class Container(Struct, frozen=True):
    """A dict, list or object as a row of its own: its kind, and the length where order counts."""

    kind: str
    size: int | None = None

    def __str__(self) -> str:
        return self.kind if self.size is None else f"{self.kind} of {self.size:,}"


class Leaves(Struct, frozen=True):
    """What one tree holds, by path. `extras` are values by label, then by path."""

    tensors: dict[str, LazyTensor]
    values: dict[str, Any]
    extras: dict[str, dict[str, Any]]


class _Frame(Struct):
    node: Any
    path: str
    again: bool  # inside a part that stands at several places
    parts: Iterator[tuple[str, Any]]


def leaves(tree: Any, where: str) -> Leaves:
    """Every tensor and value of a tree. Raises OpenError past the budgets; cycles end in a value
    that names the place which contains itself."""
    held = limits()
    left = held.entries // 5
    found = Leaves({}, {}, {})
    seen: set[int] = set()
    above: dict[int, str] = {}
    stack: list[_Frame] = []
    pending: tuple[str, Any] | None = ("", tree)
    while pending is not None or stack:
        if pending is None:
            pending = next(stack[-1].parts, None)
            if pending is None:
                above.pop(id(stack.pop().node), None)
                continue
            name, node = pending
            path = f"{stack[-1].path}/{name}" if stack[-1].path else name
        else:
            path, node = pending
        pending = None
        node = _canonical(node)
        again = bool(stack) and stack[-1].again
        left -= again
        if left < 0:
            raise over_budget(where, "entries", held.entries, "values in one tree")
        if id(node) in above:
            _put(found.values, path, Container(f"the {above[id(node)] or 'top'} that holds it"))
            continue
        parts = _enter(found, path, node, where)
        if parts is None:
            continue
        if len(stack) >= held.value_depth:
            raise _too_deep(where, path, held.value_depth)
        stack.append(_Frame(node, path, again or id(node) in seen, parts))
        seen.add(id(node))
        above[id(node)] = path
    return found


def _enter(found: Leaves, path: str, node: Any, where: str) -> Iterator[tuple[str, Any]] | None:
    """Put a node into the tables; what is left to go into, if anything."""
    if isinstance(node, LazyTensor):
        _put(found.tensors, path, node)
        inner = list(node.components.items())
        # Of a sparse tensor the state says no more than its fields do.
        if node.state is not None and not node.layout.startswith("sparse"):
            inner.append(("state", node.state if node.numpy is None else _untagged(node.state)))
        return iter(inner) if inner else None
    if isinstance(node, Record) and is_module(node):
        _put(found.values, path, Container("dict"))
        for name, tensor in state_dict(node, where, hidden=True).items():
            _put(found.tensors, f"{path}/{name}" if path else name, tensor)
        attributes = {
            module.path: {
                "class": module.class_name,
                "training": module.training,
                **module.attributes,
            }
            for module in module_nodes(node, where)
        }
        _put_extra(found, MODULES, path, leaves(attributes, where))
        return None
    container = _container(node)
    _put(found.values, path, node if container is None else container)
    if container is None:
        return None
    if isinstance(node, OrderedDict) and "_metadata" in getattr(node, "__dict__", {}):
        _put_extra(found, VERSIONS, path, leaves(node.__dict__["_metadata"], where))
    return _parts(node)


def _untagged(state: Any) -> Any:
    """What describes an array's fields, its tuples plain: a manifest spells them as nodes."""
    if isinstance(state, dict) and state.keys() == {"$", "v"} and state["$"] == "tuple":
        return tuple(_untagged(part) for part in state["v"])
    if isinstance(state, dict):
        return {key: _untagged(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(map(_untagged, state))
    return state


def _put_extra(found: Leaves, label: str, path: str, inner: Leaves) -> None:
    into = found.extras.setdefault(label, {})
    for name, value in inner.values.items():
        _put(into, f"{path}/{name}" if path and name else path or name, value)
    for name, tensor in inner.tensors.items():
        # A plain attribute, so no state dict holds it.
        _put(into, f"{path}/{name}" if path else name, Container(repr(tensor)))


def _put(table: dict[str, Any], path: str, value: Any) -> None:
    """Keys 1 and "1" give one path; the later has "#2" behind."""
    unique, count = path, 1
    while unique in table:
        count += 1
        unique = f"{path}#{count}"
    table[unique] = value


def _container(node: Any) -> Container | None:
    if isinstance(node, dict):
        kind = "dict" if type(node) is OrderedDict else type(node).__name__
        keys = sorted({type(key).__name__ for key in node} - {"str"})
        return Container(f"{kind} with {' and '.join(keys)} keys" if keys else kind)
    if isinstance(node, (list, tuple, deque)):
        return Container(type(node).__name__, len(node))
    if isinstance(node, (set, frozenset)):
        return Container(type(node).__name__)
    if isinstance(node, Record):
        return Container(f"object of {node.class_name}")
    if isinstance(node, (argparse.Namespace, SimpleNamespace)):
        return Container(type(node).__name__)
    return None


def _parts(node: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(node, (set, frozenset)):
        yield from _members(node)
    elif isinstance(node, (argparse.Namespace, SimpleNamespace)):
        yield from ((name_of(key), value) for key, value in vars(node).items())
    elif isinstance(node, OrderedDict) and "_metadata" in getattr(node, "__dict__", {}):
        yield from children(OrderedDict(node))
    else:
        yield from children(node)


def _members(node: Any) -> Iterator[tuple[str, Any]]:
    """The members of a set by what they are, since they have no order."""
    rest = []
    for member in node:
        if isinstance(member, (str, int, float, bytes, complex, type(None))):
            yield f"{{{name_of(member)}}}", member
        else:
            rest.append(member.value if isinstance(member, InertKey) else member)
    for index, member in enumerate(sorted(rest, key=lambda m: (type(m).__name__, _size(m)))):
        yield f"{{{type(member).__name__} {index}}}", member


def _size(member: Any) -> str:
    if isinstance(member, tuple):
        return " ".join(name_of(part) for part in member)
    return member.class_name if isinstance(member, Record) else name_of(member)


def _canonical(node: Any) -> Any:
    """One spelling for what two formats spell differently."""
    if isinstance(node, Record) and len(node.args) == 1 and node.state is None:
        if node.class_name in ("torch.dtype", "torch.layout", "torch.memory_format"):
            return NamedReference(f"torch.{str(node.args[0]).removeprefix('torch.')}")
        if node.class_name == "torch.Size" and isinstance(node.args[0], (list, tuple)):
            return Record(class_name="torch.Size", args=tuple(node.args[0]))
    if isinstance(node, random.Random):
        return Record(class_name="random.Random", state={"state": node.getstate()})
    if isinstance(node, np.random.RandomState):
        return Record(class_name="numpy.random.RandomState", state={"state": node.get_state()})
    if isinstance(node, np.random.Generator):
        return Record(class_name="numpy.random.Generator", state=dict(node.bit_generator.state))
    if isinstance(node, np.random.BitGenerator):
        name = f"numpy.random.{type(node).__name__}"
        return Record(class_name=name, state=dict(node.state))
    return node


def _too_deep(where: str, path: str, depth: int) -> OpenError:
    return fail(
        OpenError,
        where,
        Finding(
            code="over-budget",
            severity="error",
            where=f"{where}: {path[:200]}",
            what=f"values are nested more than {depth} deep",
            why="files are read within budgets, so that none can exhaust the machine",
            fix="if you trust the file, set HOLDTRUE_VALUE_DEPTH to a larger number",
        ),
    )
