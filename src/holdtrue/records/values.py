"""Value nodes: how a plain value looks in the manifest, and how it comes back.

null, true, false, strings, finite floats and integers up to 2**53 are themselves; a list is a JSON
array; a dict with string keys that do not start with "$" is a JSON object. Everything else is an
object whose member "$" names its kind. `docs/format.md` lists the kinds.

Decoding reads first and builds second: an object of a class that nobody agreed to stays a `Record`.
"""

import argparse
import base64
import random
import struct
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from functools import partial
from pathlib import Path, PosixPath, PurePath, PurePosixPath, PureWindowsPath, WindowsPath
from types import SimpleNamespace
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
from msgspec import Struct, field

from holdtrue.limits import limits
from holdtrue.records.inert import NamedReference, Record
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


class Revival(Struct, frozen=True, kw_only=True):
    """A state to be put into a live object, once everything else has been checked."""

    target: Any
    via: str  # state_dict · setstate · dict · random · np.random · generator
    state: Any
    items: Any = None
    path: str


class NodeError(ValueError):
    """A node that does not follow the format, with its path."""


class Decoding(Struct, kw_only=True):
    """What one decoding is given, and what it gathers."""

    tensor: Callable[[str], Any]  # tensor key → value
    builders: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)  # torch's own kinds
    agreed: Trust = field(default_factory=Trust)
    shared: dict[int, Any] = field(default_factory=dict)
    revivals: list[Revival] = field(default_factory=list)
    unmatched: list[tuple[str, str]] = field(default_factory=list)  # (path, name) left inert


# What decoding hostile nodes ends in; torch's builders raise RuntimeError.
_MALFORMED = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError,
              struct.error)  # fmt: skip


def decode(node: Any, decoding: Decoding, live: Any = None, path: str = "") -> Any:
    """The value of a node. `live` is the object that the value will replace, if there is one:

    records of its class come back as that very object, with a `Revival` to be carried out later.
    Raises NodeError for a node that does not follow the format.
    """
    try:
        return _decode(node, decoding, live, path, 0)
    except NodeError:
        raise
    except _MALFORMED as error:
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
        # An inert record is made whole, so one that contains itself cannot refer to itself.
        return d.shared.get(node["id"], NamedReference("(itself)"))
    value = _tagged(kind, node, d, live, path, depth)
    if "id" in node:
        d.shared.setdefault(node["id"], value)
    return value


def _tagged(kind: str, node: dict[str, Any], d: Decoding, live: Any, path: str, depth: int) -> Any:
    if kind in _LEAVES:
        return _LEAVES[kind](node["v"])
    if kind == "tensor":
        return d.tensor(node["v"])
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
        return _reference(kind, node["v"], d, live, path)
    if kind in ("namedtuple", "enum"):
        return _named(kind, node, d, live, path, depth)
    if kind == "object":
        return _object(node, d, live, path, depth)
    if kind in ("random", "np.random"):
        return _generator(kind, node, d, live, path, depth)
    if kind in d.builders:
        made = d.builders[kind](node["v"])
        if kind != "generator" or type(live) is not type(made):
            return made
        d.revivals.append(Revival(target=live, via=kind, state=made.get_state(), path=path))
        return live
    if kind in _TORCH:
        return Record(class_name=f"torch.{_TORCH[kind]}", args=(node["v"],))
    raise NodeError(f"{path}: unknown kind {str(kind)[:40]!r}")


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
        else:
            peer = peers.get(key) if peers else None
            made[key] = _decode(item, d, peer, join(path, key), depth + 1)
    return made


def join(path: str, key: Any) -> str:
    """The path of a dict's item: names joined by "/", other keys as they print."""
    step = key if isinstance(key, str) else repr(key)
    return f"{path}/{step}" if path else step


def _reference(kind: str, name: str, d: Decoding, live: Any, path: str) -> Any:
    if live is not None and callable(live) and class_name(live) == name:
        return live
    found = find_class(name, d.agreed) if kind == "class" else None
    if found is None:
        d.unmatched.append((path, name))
        return NamedReference(name)
    return found


def _named(kind: str, node: dict[str, Any], d: Decoding, live: Any, path: str, depth: int) -> Any:
    name = node["class"]
    cls: Any = type(live) if class_name(type(live)) == name else find_class(name, d.agreed)
    if kind == "namedtuple":
        fields = _fill_dict(
            {}, node["v"], d, live._asdict() if cls is type(live) else None, path, depth
        )
        if cls is not None and getattr(cls, "_fields", None) == tuple(fields):
            return tuple.__new__(cls, fields.values())
        d.unmatched.append((path, name))
        return Record(class_name=name, items=fields)
    value = _decode(node["v"], d, None, path, depth + 1)
    if isinstance(cls, type) and issubclass(cls, Enum):
        return cls.__members__[node["name"]] if node["name"] in cls.__members__ else cls(value)
    d.unmatched.append((path, name))
    return Record(class_name=name, args=(node["name"],), state=value)


def _object(node: dict[str, Any], d: Decoding, live: Any, path: str, depth: int) -> Any:
    name, via = node["class"], node["via"]
    target = live if class_name(type(live)) == name else None
    if target is not None:
        _share(node, d, target)
    cls = find_class(name, d.agreed)
    made: Any = None
    if target is None and cls is not None and via != "state_dict":
        args = _fill_list([], node.get("args", []), d, None, path, depth)
        made = cls.__new__(cls, *args)
        _share(node, d, made)
    state = _decode(node.get("state"), d, _peer_state(target, via), path, depth + 1)
    items = _decode(node.get("items"), d, target, path, depth + 1)
    if target is not None:
        d.revivals.append(Revival(target=target, via=via, state=state, items=items, path=path))
        return target
    if made is not None:
        set_state(made, via, state, items)
        return made
    d.unmatched.append((path, name))
    args = tuple(_fill_list([], node.get("args", []), d, None, path, depth))
    return Record(class_name=name, args=args, state=state, items=items)


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
        made = getattr(np.random, bits)()
        made = made if name == bits else getattr(np.random, name)(made)
    set_state(made, kind, state, None)  # also proves the state before any live object sees it
    same = type(live) is type(made) and _bits(live) is _bits(made)
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


def set_state(target: Any, via: str, state: Any, items: Any) -> None:
    """Put a decoded state into an object, as copying protocols do."""
    if via == "state_dict":
        target.load_state_dict(state)
    elif via == "setstate":
        target.__setstate__(state)
    elif via == "random":
        target.setstate(state)
    elif via == "generator":
        target.set_state(state)
    elif via == "np.random":
        if isinstance(target, np.random.RandomState):
            target.set_state(state)
        else:
            getattr(target, "bit_generator", target).state = state
    else:
        attributes, slots = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
        if attributes:
            # Attributes set since are forgotten: the object is what it was when saved.
            target.__dict__.clear()
            target.__dict__.update(attributes)
        for name, value in (slots or {}).items():
            object.__setattr__(target, name, value)
    if isinstance(items, dict):
        dict.clear(target)
        dict.update(target, items)
    elif isinstance(items, list):
        if isinstance(target, set):
            set.clear(target)
            set.update(target, items)
        else:
            list.clear(target)
            list.extend(target, items)


def _float(text: str) -> float:
    if text.startswith("nan:"):  # the payload is kept: nan:7ff8000000000001
        return float(struct.unpack(">d", bytes.fromhex(text[4:]))[0])
    return float(text)


def _path(payload: list[str]) -> PurePath:
    kind, text = payload
    concrete: dict[str, type[PurePath]] = {
        "Path": Path,
        "PosixPath": PosixPath,
        "WindowsPath": WindowsPath,
        "PurePosixPath": PurePosixPath,
        "PureWindowsPath": PureWindowsPath,
    }
    cls = concrete[kind]
    if issubclass(cls, Path) and not isinstance(Path(), cls):
        # A path of the other system: it can be looked at here, not opened.
        cls = PurePosixPath if kind == "PosixPath" else PureWindowsPath
    return cls(text)


def _zone(key: str) -> Any:
    try:
        return ZoneInfo(key)
    except (ZoneInfoNotFoundError, ValueError):
        return Record(class_name="zoneinfo.ZoneInfo", args=(key,))


def _timezone(payload: list[Any]) -> timezone:
    offset = timedelta(*payload[0])
    return timezone(offset) if payload[1] is None else timezone(offset, payload[1])


def _complex(payload: list[Any]) -> complex:
    real, imaginary = (_float(v) if isinstance(v, str) else float(v) for v in payload)
    return complex(real, imaginary)


def _scalar(payload: list[str]) -> Any:
    dtype, data = payload
    return np.frombuffer(base64.b64decode(data), np.dtype(dtype)).reshape(())[()]


def _number(text: str) -> int:
    return int(text, 16)


_LEAVES: dict[str, Callable[[Any], Any]] = {
    "int": _number,
    "float": _float,
    "complex": _complex,
    "str": lambda v: bytes.fromhex(v).decode("utf-8", "surrogatepass"),
    "bytes": partial(base64.b64decode, validate=True),
    "bytearray": lambda v: bytearray(base64.b64decode(v, validate=True)),
    "path": _path,
    "date": date.fromisoformat,
    "timedelta": lambda v: timedelta(*v),
    "timezone": _timezone,
    "zoneinfo": _zone,
    "decimal": Decimal,
    "fraction": lambda v: Fraction(int(v[0], 16), int(v[1], 16)),
    "uuid": lambda v: UUID(hex=v),
    "ellipsis": lambda _: ...,
    "scalar": _scalar,
    "np.dtype": lambda v: np.dtype([tuple(f) for f in v] if isinstance(v, list) else v),
}

# Kinds that only torch can build; without it they stay records.
_TORCH = {
    "dtype": "dtype",
    "device": "device",
    "size": "Size",
    "layout": "layout",
    "memory_format": "memory_format",
    "generator": "Generator",
}
