"""Value nodes: how a plain value looks in the manifest, and how it comes back.

null, true, false, strings, finite floats and integers up to 2**53 are themselves; a list is a JSON
array; a dict with string keys that do not start with "$" is a JSON object. Everything else is an
object whose member "$" names its kind. `docs/format.md` lists the kinds.

Decoding reads first and builds second: an object of a class that nobody agreed to stays a `Record`.
"""

import argparse
import base64
import inspect
import random
import struct
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from datetime import datetime, time
from enum import Enum
from types import SimpleNamespace
from typing import Any

from msgspec import Struct, field

from holdtrue.errors import HoldtrueError
from holdtrue.limits import limits
from holdtrue.on_demand import numpy as np
from holdtrue.records.arrays import dtype_of
from holdtrue.records.inert import NamedReference, Record
from holdtrue.records.leaves import LEAVES, TORCH
from holdtrue.records.revival import Revival, set_state
from holdtrue.records.trust import Trust, class_name, find_class

TAG = "$"
FACTORIES: dict[str, Callable[[], Any] | None] = {
    "none": None,
    "int": int,
    "float": float,
    "str": str,
    "bool": bool,
    "bytes": bytes,
    "complex": complex,
    "list": list,
    "dict": dict,
    "set": set,
    "tuple": tuple,
    "deque": deque,
    "counter": Counter,
    "odict": OrderedDict,
}


class NodeError(ValueError):
    """A node that does not follow the format, with its path."""


class Decoding(Struct, kw_only=True):
    """What one decoding is given, and what it gathers."""

    tensor: Callable[[str], Any]  # tensor key → value
    builders: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)  # torch's own kinds
    agreed: Trust = field(default_factory=Trust)
    inert: bool = False  # describe only: tensors are not values, so no generator can be made
    shared: dict[int, Any] = field(default_factory=dict)
    revivals: list[Revival] = field(default_factory=list)
    unmatched: list[tuple[str, str]] = field(default_factory=list)  # (path, name) left inert
    begun: set[int] = field(default_factory=set)  # numbers whose value is being made
    taken: set[int] = field(default_factory=set)  # ids of live objects that got a state


def decode(node: Any, decoding: Decoding, live: Any = None, path: str = "") -> Any:
    """The value of a node. `live` is the object that the value will replace, if there is one:

    records of its class come back as that very object, with a `Revival` to be carried out later.
    Raises NodeError for a node that does not follow the format.
    """
    try:
        return _decode(node, decoding, live, path, 0)
    except (NodeError, HoldtrueError):
        raise
    except Exception as error:
        # Anything at all: each kind has its own ways to be wrong (a UUID of a number, a zone that
        # is a directory, nesting past the caller's stack), and trusted classes run their own code.
        raise NodeError(f"{path or 'the value'}: {error!r}") from None


def _decode(node: Any, d: Decoding, live: Any, path: str, depth: int) -> Any:
    if depth > limits().value_depth:
        raise NodeError(f"{path}: nested deeper than {limits().value_depth}")
    if node is None or isinstance(node, bool | int | float | str):
        return node
    if isinstance(node, list):
        return _fill_list([], node, d, live, path, depth)
    if not isinstance(node, dict):
        raise NodeError(f"{path}: {type(node).__name__} is no node")
    if TAG not in node:
        return _fill_dict({}, [[k, v] for k, v in node.items()], d, live, path, depth)
    kind = node[TAG]
    if kind == "ref":
        return _referred(node["id"], d, path)
    if "id" not in node:
        return _tagged(kind, node, d, live, path, depth)
    if kind not in _SHARED or type(node["id"]) is not int:
        raise NodeError(f"{path}: a {str(kind)[:40]!r} cannot be shared")
    d.begun.add(node["id"])
    value = _tagged(kind, node, d, live, path, depth)
    return d.shared.setdefault(node["id"], value)


# What can be referred to. None of these has a hash that reaches into its content: shared tuples as
# keys could make a small file take for ever.
_SHARED = frozenset({
    "list", "set", "deque", "dict", "odict", "defaultdict", "counter", "namespace", "object",
    "bytearray", "tensor", "random", "np.random", "generator",
})  # fmt: skip


def _referred(number: int, d: Decoding, path: str) -> Any:
    if number in d.shared:
        return d.shared[number]
    if number in d.begun:
        # An inert record is made whole, so one that contains itself cannot refer to itself.
        return NamedReference("(itself)")
    raise NodeError(f"{path}: it refers to {number!r}, which comes nowhere before it")


def _tagged(kind: str, node: dict[str, Any], d: Decoding, live: Any, path: str, depth: int) -> Any:
    if kind in LEAVES:
        return LEAVES[kind](node["v"])
    if kind == "tensor":
        made = d.tensor(node["v"])
        return made.view(dtype_of(node["dtype"])) if _is_array(made, node) else made
    if kind in ("list", "set", "frozenset", "tuple", "deque"):
        return _sequence(kind, node, d, live, path, depth)
    if kind in ("dict", "odict", "defaultdict", "counter"):
        return _mapping(kind, node, d, live, path, depth)
    if kind in ("range", "slice"):
        parts = [_decode(v, d, None, f"{path}[{i}]", depth + 1) for i, v in enumerate(node["v"])]
        return (range if kind == "range" else slice)(*parts)
    if kind in ("datetime", "time"):
        zone = _decode(node.get("tz"), d, None, path, depth + 1)
        moment: Any = (datetime if kind == "datetime" else time).fromisoformat(node["v"])
        return moment.replace(tzinfo=zone, fold=node.get("fold", 0))
    if kind == "namespace":
        made = SimpleNamespace() if node.get("simple") else argparse.Namespace()
        _share(node, d, made)
        made.__dict__.update(
            _decode(node["v"], d, getattr(live, "__dict__", None), path, depth + 1)
        )
        return made
    if kind in ("class", "callable"):
        return _reference(kind, _name(node["v"], path), d, live, path)
    if kind in ("namedtuple", "enum"):
        return _named(kind, node, d, live, path, depth)
    if kind == "object":
        return _object(node, d, live, path, depth)
    if kind in ("random", "np.random"):
        return _generator(kind, node, d, live, path, depth)
    if kind in d.builders:
        made = d.builders[kind](node["v"])
        if kind != "generator" or type(live) is not type(made) or not _take(live, d):
            return made
        d.revivals.append(Revival(target=live, via=kind, state=made.get_state(), path=path))
        return live
    if kind in TORCH:
        return Record(class_name=f"torch.{TORCH[kind]}", args=(node["v"],))
    raise NodeError(f"{path}: unknown kind {str(kind)[:40]!r}")


def _is_array(made: Any, node: dict[str, Any]) -> bool:
    return "dtype" in node and isinstance(made, np.ndarray)


def _take(live: Any, d: Decoding) -> bool:
    """True the first time: two saved objects cannot both go into one live object."""
    new = id(live) not in d.taken
    d.taken.add(id(live))
    return new


def _share(node: dict[str, Any], d: Decoding, value: Any) -> None:
    # Before its contents are read, so that a cycle finds the container itself.
    if "id" in node:
        d.shared[node["id"]] = value


def _sequence(
    kind: str, node: dict[str, Any], d: Decoding, live: Any, path: str, depth: int
) -> Any:
    made: Any
    if kind == "list":
        made = []
        _share(node, d, made)
        return _fill_list(made, node["v"], d, live, path, depth)
    if kind == "deque":
        made = deque(maxlen=node.get("maxlen"))
        _share(node, d, made)
        return _fill_list(made, node["v"], d, live, path, depth)
    if kind == "set":
        made = set()
        _share(node, d, made)
        made.update(_fill_list([], node["v"], d, None, path, depth))
        return made
    return (tuple if kind == "tuple" else frozenset)(
        _fill_list([], node["v"], d, live if kind == "tuple" else None, path, depth)
    )


def _fill_list(made: Any, nodes: list[Any], d: Decoding, live: Any, path: str, depth: int) -> Any:
    if not isinstance(nodes, list):
        raise NodeError(f"{path}: its elements are no list")
    peers = live if isinstance(live, list | tuple | deque) else ()
    for i, item in enumerate(nodes):
        if item is None or isinstance(item, bool | int | float | str):
            made.append(item)  # the common case, without a call
        else:
            peer = peers[i] if i < len(peers) else None
            made.append(_decode(item, d, peer, f"{path}[{i}]", depth + 1))
    return made


def _mapping(kind: str, node: dict[str, Any], d: Decoding, live: Any, path: str, depth: int) -> Any:
    made: Any
    if kind == "defaultdict":
        factory = node["factory"]
        if isinstance(factory, str):
            made = defaultdict(FACTORIES[factory])
        else:
            made = defaultdict(
                _factory(
                    _decode(factory, d, getattr(live, "default_factory", None), path, depth + 1)
                )
            )
    else:
        made = {"dict": dict, "odict": OrderedDict, "counter": Counter}[kind]()
    _share(node, d, made)
    _fill_dict(made, node["v"], d, live, path, depth)
    if node.get("attributes"):
        made.__dict__.update(_decode(node["attributes"], d, None, path, depth + 1))
    return made


def _factory(value: Any) -> Any:
    return value if callable(value) else None


def _fill_dict(made: Any, pairs: list[Any], d: Decoding, live: Any, path: str, depth: int) -> Any:
    peers = live if isinstance(live, Mapping) else {}
    for key_node, item in pairs:
        simple = isinstance(key_node, str)
        key = key_node if simple else _decode(key_node, d, None, f"{path} key", depth + 1)
        if item is None or isinstance(item, bool | int | float | str):
            made[key] = item
        elif type(item) is dict and len(item) == 2 and item.get(TAG) == "tensor":
            made[key] = d.tensor(item["v"])  # a dict of thousands, likewise
        else:
            peer = peers.get(key) if peers else None
            made[key] = _decode(item, d, peer, join(path, key), depth + 1)
    return made


def join(path: str, key: Any) -> str:
    """The path of a dict's item: names joined by "/", other keys as they print."""
    step = key if isinstance(key, str) else repr(key)
    return f"{path}/{step}" if path else step


def _name(value: Any, path: str) -> str:
    if not isinstance(value, str):
        raise NodeError(f"{path}: {str(value)[:40]!r} is no name of a class")
    return value


def _reference(kind: str, name: str, d: Decoding, live: Any, path: str) -> Any:
    if live is not None and callable(live) and class_name(live) == name:
        return live
    found = find_class(name, d.agreed) if kind == "class" else None
    if found is None:
        d.unmatched.append((path, name))
        return NamedReference(name)
    return found


def _named(kind: str, node: dict[str, Any], d: Decoding, live: Any, path: str, depth: int) -> Any:
    name = _name(node["class"], path)
    cls: Any = type(live) if class_name(type(live)) == name else find_class(name, d.agreed)
    if kind == "namedtuple":
        fields = _fill_dict(
            {}, node["v"], d, live._asdict() if cls is type(live) else None, path, depth
        )
        if cls is not None and getattr(cls, "_fields", None) == tuple(fields):
            return tuple.__new__(cls, fields.values())
        d.unmatched.append((path, name))
        return Record(class_name=name, items=fields)
    if isinstance(cls, type) and issubclass(cls, Enum) and node["name"] in cls.__members__:
        return cls.__members__[node["name"]]
    value = _decode(node["v"], d, None, path, depth + 1)
    if isinstance(cls, type) and issubclass(cls, Enum):
        return cls(value)  # flags that are combined have no name of their own
    d.unmatched.append((path, name))
    return Record(class_name=name, args=(node["name"],), state=value)


def _object(node: dict[str, Any], d: Decoding, live: Any, path: str, depth: int) -> Any:
    name, via = _name(node["class"], path), node["via"]
    args = tuple(_fill_list([], node.get("args", []), d, None, path, depth))
    kwargs = _decode(node.get("kwargs", {}), d, None, path, depth + 1)
    target = live if class_name(type(live)) == name and _can_become(live, args) else None
    if target is not None and not _take(target, d):
        target = None
    made = None if target is not None else _new(find_class(name, d.agreed), via, args, kwargs)
    if target is not None or made is not None:
        _share(node, d, made if target is None else target)
    state = _decode(node.get("state"), d, _peer_state(target, via), path, depth + 1)
    items = _decode(node.get("items"), d, target, path, depth + 1)
    if target is not None:
        d.revivals.append(Revival(target=target, via=via, state=state, items=items, path=path))
        return target
    if made is not None:
        set_state(made, via, state, items)
        return made
    d.unmatched.append((path, name))
    return Record(class_name=name, args=args, kwargs=kwargs, state=state, items=items)


def _can_become(live: Any, args: tuple[Any, ...]) -> bool:
    """False where the value itself is in the arguments of `__new__`, and another one here."""
    fixed = isinstance(live, int | float | complex | str | bytes | tuple)
    return not fixed or args == tuple(live.__getnewargs__())


def _new(cls: Any, via: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An object of a trusted class that waits for its state; None where none can be made."""
    if cls is None:
        return None
    if via != "state_dict":
        return cls.__new__(cls, *args, **kwargs)
    # load_state_dict belongs to an object that has been constructed.
    try:
        inspect.signature(cls).bind()
    except (TypeError, ValueError):
        return None
    return cls()


_BITS = ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")


def _generator(
    kind: str, node: dict[str, Any], d: Decoding, live: Any, path: str, depth: int
) -> Any:
    """Python's and NumPy's random generators; into the live one where it is of the same kind."""
    made: Any
    if kind == "random":
        version, packed, gauss = node["v"]
        words = base64.b64decode(packed, validate=True)
        state: Any = (version, struct.unpack(f"<{len(words) // 4}I", words), gauss)
        made = random.Random()
    else:
        name, bits = node["class"], node["bits"]
        if bits not in _BITS or name not in ("Generator", "RandomState", bits):
            raise NodeError(f"{path}: unknown generator {str(name)[:40]!r}")
        state = _decode(node["v"], d, None, path, depth + 1)
        if d.inert:
            return Record(class_name=f"numpy.random.{name}", args=(bits,), state=state)
        made = getattr(np.random, bits)()
        made = made if name == bits else getattr(np.random, name)(made)
    set_state(made, kind, state, None)  # also proves the state before any live object sees it
    same = type(live) is type(made) and _bits(live) is _bits(made) and _take(live, d)
    if not same:
        _share(node, d, made)
        return made
    d.revivals.append(Revival(target=live, via=kind, state=state, path=path))
    return live


def _bits(value: Any) -> type:
    return type(getattr(value, "bit_generator", getattr(value, "_bit_generator", value)))


def _peer_state(target: Any, via: str) -> Any:
    if target is None:
        return None
    return target.state_dict() if via == "state_dict" else getattr(target, "__dict__", None)
