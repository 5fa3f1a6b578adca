"""Plain values and inert records of two checkpoints, laid side by side by path."""

import struct
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
from msgspec import Struct

from holdtrue.doctor.tree_leaves import Container
from holdtrue.formats.tree_walk import name_of

_SHOWN = 80  # characters of a value in a report
_MANY = 8  # differing members of one list that are told as one row


class ValueChange(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A value that only one side has, or that differs. `count` values are told as one."""

    path: str
    kind: Literal["added", "removed", "changed"]
    a: str | None = None
    b: str | None = None
    count: int = 1


def compare_values(
    a: dict[str, Any], b: dict[str, Any], tensors: Iterable[str]
) -> list[ValueChange]:
    """The rows that differ. `tensors` are the tensors' paths: what holds one is no value itself."""
    changed = [path for path in a if path in b and not same_value(a[path], b[path])]
    both = [path for path in a if path in b]
    inner = _ancestors([*both, *tensors])
    rows = _together(changed, a, b)
    rows += _one_sided(a, b, inner, "removed")
    rows += _one_sided(b, a, inner, "added")
    return rows


def _one_sided(
    table: dict[str, Any],
    other: dict[str, Any],
    inner: set[str],
    kind: Literal["added", "removed"],
) -> list[ValueChange]:
    """A whole subtree that one side lacks is one row."""
    counts: dict[str, int] = {}
    for path, value in table.items():
        if path in other:
            continue
        top = _topmost(path, table, other, inner)
        is_dict = isinstance(value, Container) and value.size is None
        if path in inner and is_dict:
            continue  # what it holds is told by itself
        counts[top] = counts.get(top, 0) + (not isinstance(value, Container))
    rows = []
    for path, count in counts.items():
        text = shown(table[path])
        side = {"a": text} if kind == "removed" else {"b": text}
        rows.append(ValueChange(path=path, kind=kind, count=max(1, count), **side))
    return rows


def _topmost(path: str, table: dict[str, Any], other: dict[str, Any], inner: set[str]) -> str:
    top = path
    while "/" in path:
        path = path.rpartition("/")[0]
        if path in inner or path in other:
            break
        if path in table:
            top = path
    return top


def _ancestors(paths: Iterable[str]) -> set[str]:
    found: set[str] = set()
    for path in paths:
        while path:
            path = path.rpartition("/")[0]
            if path in found:
                break
            found.add(path)
    return found


def _together(changed: list[str], a: dict[str, Any], b: dict[str, Any]) -> list[ValueChange]:
    """Many differing members of one list are one row: a random state has hundreds."""
    by_list: dict[str, list[str]] = {}
    for path in changed:
        parent = path.rpartition("/")[0]
        in_list = isinstance(a.get(parent), Container) and a[parent].size is not None
        by_list.setdefault(parent if in_list else path, []).append(path)
    rows = []
    for parent, paths in by_list.items():
        if len(paths) > _MANY and parent not in paths:
            row = ValueChange(path=parent, kind="changed", a=shown(a[parent]), b=shown(b[parent]),
                              count=len(paths))  # fmt: skip
            rows.append(row)
            continue
        for path in paths:
            left, right = shown(a[path]), shown(b[path])
            if left == right:
                left, right = f"{left} ({_kind(a[path])})", f"{right} ({_kind(b[path])})"
            rows.append(ValueChange(path=path, kind="changed", a=left, b=right))
    return rows


def same_value(a: Any, b: Any) -> bool:
    """Equal in type and value; floats bit by bit, so that nan is nan and 0.0 is not -0.0."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, float) and not isinstance(a, np.generic):
        return struct.pack("<d", a) == struct.pack("<d", b)
    if isinstance(a, complex) and not isinstance(a, np.generic):
        return struct.pack("<dd", a.real, a.imag) == struct.pack("<dd", b.real, b.imag)
    if isinstance(a, np.generic):
        return bool(a.dtype == b.dtype) and a.tobytes() == b.tobytes()
    try:
        return bool(a == b)
    except (TypeError, ValueError):
        return repr(a) == repr(b)


def shown(value: Any) -> str:
    """A value in one short line."""
    if isinstance(value, Container):
        return str(value)
    if isinstance(value, bool | np.generic) or value is None:
        text = str(value)
    elif isinstance(value, int):
        text = name_of(value)
    elif isinstance(value, str | bytes | bytearray):
        text = repr(value[: _SHOWN + 1])
    else:
        text = repr(value)
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def _kind(value: Any) -> str:
    if isinstance(value, str | bytes | bytearray):
        return f"{len(value):,} long"
    return type(value).__name__
