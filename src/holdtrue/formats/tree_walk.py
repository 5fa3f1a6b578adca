"""Going through a tree without recursion: its tensors by path, and where a value stands.

A tree from a pickle may share parts, contain itself and be as deep as the file likes. Each walk
is a loop with its own stack, and held to budgets.
"""

from collections import deque
from collections.abc import Iterator
from typing import Any

from holdtrue.errors import OpenError, fail
from holdtrue.findings import Finding
from holdtrue.formats.pickle_source import over_budget
from holdtrue.formats.view import LazyTensor
from holdtrue.limits import limits
from holdtrue.records.inert import InertKey, NamedReference, Record

_LONG_NAME = 200  # characters of one key in a path


def children(node: Any) -> Iterator[tuple[str, Any]]:
    """The named parts of one node. Names are not unique: a dict may hold both 1 and "1"."""
    if isinstance(node, dict):
        for key, value in node.items():
            name = name_of(key)
            yield name, value
            if type(key) in (InertKey, tuple):
                yield f"{name}(key)", key.value if isinstance(key, InertKey) else key
        attributes = getattr(node, "__dict__", None)
        for name, value in attributes.items() if attributes else ():
            yield name_of(name), value
    elif isinstance(node, (list, tuple, set, frozenset, deque)):
        for index, value in enumerate(node):
            yield str(index), value.value if isinstance(value, InertKey) else value
    elif isinstance(node, Record):
        yield from _record_children(node)
    elif isinstance(node, LazyTensor):
        for name, part in node.components.items():
            yield name_of(name), part
        if node.state is not None:
            yield "state", node.state


def _record_children(record: Record) -> Iterator[tuple[str, Any]]:
    """State and items stand directly under the record, as attributes and entries do in Python."""
    for index, value in enumerate(record.args):
        yield f"args.{index}", value
    for name, value in record.kwargs.items():
        yield name_of(name), value
    states = record.state if _is_slots(record.state) else (record.state,)
    for state in states:
        if isinstance(state, dict):
            yield from children(state)
        elif state is not None:
            yield "state", state
    for index, item in enumerate(record.items or ()):
        if isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], (str, int)):
            yield name_of(item[0]), item[1]
        else:
            yield str(index), item


def _is_slots(state: Any) -> bool:
    """What an object with __slots__ pickles: (its __dict__ or None, its slots)."""
    return (
        isinstance(state, tuple)
        and len(state) == 2
        and isinstance(state[1], dict)
        and (state[0] is None or isinstance(state[0], dict))
    )


def name_of(key: Any) -> str:
    """A key as one component of a path, whatever the key is."""
    if isinstance(key, str):
        text = key if len(key) <= _LONG_NAME else key[:_LONG_NAME] + "…"
        return text.encode("utf-8", "replace").decode()
    if isinstance(key, int) and key.bit_length() > 64:  # str() of a long int may raise
        return "0x…"
    if isinstance(key, (int, float, complex, bytes, NamedReference, type(None))):
        return str(key)[:_LONG_NAME]
    return f"<{type(key.value if isinstance(key, InertKey) else key).__name__}>"


def _is_inner(node: Any) -> bool:
    return isinstance(node, (dict, list, tuple, set, frozenset, deque, Record, LazyTensor))


def each_node(tree: Any, where: str, *, repeats: int | None = None) -> Iterator[tuple[str, Any]]:
    """(path, node) of the inner nodes, a parent before its parts.

    A part that stands at several places is visited at each, and a part of itself is not entered
    again. `repeats` bounds the steps spent on parts seen before: with a number they are then
    passed over, without one OpenError is raised. Depth past the budget raises OpenError too.
    """
    held = limits()
    left = held.entries // 5 if repeats is None else repeats
    if not _is_inner(tree):
        return
    seen = {id(tree)}
    above = {id(tree)}
    yield "", tree
    stack: list[tuple[int, str, bool, Iterator[tuple[str, Any]]]] = [
        (id(tree), "", False, children(tree))
    ]
    while stack:
        own, prefix, again, parts = stack[-1]
        part = next(parts, None)
        if again and part is not None:
            left -= 1
        if part is None or (again and left < 0):
            if left < 0 and repeats is None:
                raise over_budget(where, "entries", held.entries, "values in one tree")
            above.discard(own)
            stack.pop()
            continue
        name, node = part
        if not _is_inner(node) or id(node) in above:
            continue
        repeated = again or id(node) in seen
        if repeated and left <= 0 and repeats is not None:
            continue
        path = f"{prefix}/{name}" if prefix else name
        if len(stack) >= held.value_depth:
            raise _too_deep(where, path, held.value_depth)
        seen.add(id(node))
        yield path, node
        above.add(id(node))
        stack.append((id(node), path, repeated, children(node)))


def tensors_by_path(tree: Any, where: str) -> dict[str, LazyTensor]:
    """Every tensor of a tree under its path; components of a tensor are not listed by themselves.

    Two tensors with one path (keys 1 and "1") both appear, the later with "#2" behind.
    """
    found: dict[str, LazyTensor] = {}
    inside: str | None = None
    for path, node in each_node(tree, where):
        if inside is not None and (path.startswith(inside + "/") or not inside):
            continue
        inside = None
        if isinstance(node, LazyTensor):
            unique, count = path, 1
            while unique in found:
                count += 1
                unique = f"{path}#{count}"
            found[unique] = node
            if node.components or node.state is not None:
                inside = path
    return found


def first_places(tree: Any, values: list[Any], where: str) -> dict[int, str]:
    """The path of each of these values, by id; those that are not in the tree are left out."""
    wanted = {id(value) for value in values}
    places: dict[int, str] = {}
    if not wanted:
        return places
    for path, node in each_node(tree, where, repeats=0):
        if id(node) in wanted:
            places.setdefault(id(node), path or "the top")
        for name, part in children(node):
            if id(part) in wanted and not _is_inner(part):
                places.setdefault(id(part), f"{path}/{name}" if path else name)
    return places


def _too_deep(where: str, path: str, depth: int) -> OpenError:
    shown = path if len(path) <= _LONG_NAME else path[:_LONG_NAME] + "…"
    return fail(
        OpenError,
        where,
        Finding(
            code="over-budget",
            severity="error",
            where=f"{where}: {shown}",
            what=f"values are nested more than {depth} deep",
            why="files are read within budgets, so that none can exhaust the machine",
            fix="if you trust the file, set HOLDTRUE_VALUE_DEPTH to a larger number",
        ),
    )
