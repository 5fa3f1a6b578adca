"""Putting values into dicts, sets and lists as SETITEMS, ADDITEMS and APPENDS ask.

Keys come from a hostile file: hashing one may recurse without end, take exponential time on
shared tuples, or collide on purpose. Keys that could are wrapped or refused here.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from msgspec.structs import force_setattr

from holdtrue.formats.pickle_context import Context
from holdtrue.formats.view import LazyTensor
from holdtrue.on_demand import numpy as np
from holdtrue.records.inert import InertKey, NamedReference, Record

_KEY_NODES = 1000  # of one tuple key, shared parts counted each time
_KEY_DEPTH = 50  # of tuples inside one key
_KEY_BITS = 4096  # of one integer key: hashing takes time in its length
_CROWD = 4096  # entries from which on collisions are looked for


def as_key(value: Any) -> Any:
    """The value as a dict key. Raises ValueError for what Python itself cannot hash."""
    if type(value) in (str, bytes, float, bool, type(None), complex, NamedReference):
        return value
    if isinstance(value, (list, dict, set, bytearray, deque)):
        raise ValueError(f"a {type(value).__name__} as a key")
    return value if _hashes_fast(value) else InertKey(value)


def _hashes_fast(value: Any) -> bool:
    pending, seen = [(value, 0)], 0
    while pending:
        item, depth = pending.pop()
        seen += 1
        if seen > _KEY_NODES or depth > _KEY_DEPTH:
            return False
        if type(item) in (tuple, frozenset):
            if len(item) > _KEY_NODES:
                return False
            pending.extend((part, depth + 1) for part in item)
        elif type(item) is int:
            if item.bit_length() > _KEY_BITS:
                return False
        elif not (
            item is None
            or type(item) in (str, bytes, float, bool, complex, range, NamedReference, InertKey)
            or (isinstance(item, np.generic) and not isinstance(item, np.void))
        ):
            return False
    return True


def add_pairs(context: Context, target: Any, items: Sequence[Any]) -> None:
    """What SETITEMS does: `items` is key, value, key, value."""
    if len(items) % 2:
        raise ValueError("a key without a value")
    if isinstance(target, dict):
        # dict.__setitem__ and not `[]`: defaultdict and Counter have nothing to add to it.
        for position in range(0, len(items), 2):
            put(target, items[position], items[position + 1])
    elif isinstance(target, Record):
        pairs = zip(items[::2], items[1::2], strict=True)
        context.spend_nodes(len(items) // 2)
        _add_items(target, pairs)
    elif isinstance(target, NamedReference):
        context.would("call", f"{target.name}.__setitem__", target)
    else:
        raise ValueError(f"SETITEMS on {_kind(target)}, which has no items")


def put(target: dict[Any, Any], key: Any, value: Any) -> None:
    """One entry, with an eye on keys that collide."""
    before = len(target)
    target[as_key(key)] = value
    size = len(target)
    if size != before and size >= _CROWD and not size & (size - 1):
        refuse_collisions(target)


def refuse_collisions(keys: Iterable[Any]) -> None:
    """Raise ValueError where most keys share their hashes: a dict of such takes time squared."""
    hashes = [hash(key) for key in keys]
    if len(set(hashes)) * 4 < len(hashes):
        raise ValueError("keys chosen to collide")


def add_elements(context: Context, target: Any, items: Sequence[Any]) -> None:
    """What ADDITEMS does."""
    if isinstance(target, set):
        target.update(elements(items))
    elif isinstance(target, Record):
        _add_items(target, items)
    elif isinstance(target, NamedReference):
        context.would("call", f"{target.name}.add", target)
    else:
        raise ValueError(f"ADDITEMS on {_kind(target)}, which is no set")


def elements(items: Iterable[Any]) -> list[Any]:
    """Members for a set, in order, each once."""
    found: dict[Any, Any] = {}
    for item in items:
        put(found, item, None)
    return list(found)


def extend(context: Context, target: Any, items: Sequence[Any]) -> None:
    """What APPENDS does."""
    if isinstance(target, (list, deque)):
        target.extend(items)
    elif isinstance(target, Record):
        _add_items(target, items)
    elif isinstance(target, NamedReference):
        context.would("call", f"{target.name}.extend", target)
    else:
        raise ValueError(f"APPENDS on {_kind(target)}, which is no list")


def _add_items(record: Record, items: Iterable[Any]) -> None:
    # The record is still being made: the memo may already hold it, so it is changed in place.
    if record.items is None:
        force_setattr(record, "items", [])
    record.items.extend(items)


def _kind(value: Any) -> str:
    return "a tensor" if isinstance(value, LazyTensor) else f"a {type(value).__name__}"
