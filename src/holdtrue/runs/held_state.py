"""What can hold state beside the parts of a run, and how to take it and put it back.

These are live objects of the caller's own process, looked at and never stored.
"""

import functools
import io
import os
import random
import reprlib
import struct
import types
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import xxhash
from msgspec import Struct
from torch import Tensor

from holdtrue.capture.raw import raw_bytes

MISSING = type("MISSING", (), {"__repr__": lambda self: "(nothing)"})()
_PLAIN = (type(None), bool, int, str, bytes, complex, torch.dtype, torch.device, torch.Size, range)
# Positions in these can be set; all other iterators only move on.
_SETTABLE: tuple[type[Any], ...] = (
    type(iter([])),
    type(iter(())),
    type(iter(range(0))),
    type(iter(range(2**65))),
)
ENVIRONMENT = "os.environ"
Take = Callable[[], dict[str, Any]]
Put = Callable[[str, Any], None]


class Held(Struct, frozen=True, eq=False):
    """Something that holds state under keys: a namespace has names, all else the one key ""."""

    path: str
    group: str | None  # what it belongs to; None for a namespace, whose names stand for themselves
    take: Take
    put: Put | None  # None: it cannot be put back
    name: Callable[[str], str]  # key → what is appended to the path
    owner: Any = None  # the object


def named(
    path: str, group: str | None, take: Take, put: Put, name: str = ".{}", owner: Any = None
) -> Held:
    """A namespace: each of its names is taken and put back by itself."""
    return Held(path, group, take, put, lambda key: name.format(key), owner)


def single(value: Any, path: str, group: str) -> Held | None:
    """How one object's own state is taken; None where it has none of its own."""
    ways = _generator(value) or _numbers(value) or _container(value) or _moving(value)
    if ways is None:
        return None
    read, write = ways
    put = None if write is None else lambda key, state: write(state)
    return Held(path, group, lambda: {"": read()}, put, lambda key: "", value)


_Ways = tuple[Callable[[], Any], Callable[[Any], Any] | None] | None


def _generator(value: Any) -> _Ways:
    if isinstance(value, torch.Generator):
        return value.get_state, value.set_state
    if isinstance(value, random.Random) and not isinstance(value, random.SystemRandom):
        return value.getstate, value.setstate
    if isinstance(value, np.random.RandomState):
        return (lambda: value.get_state(legacy=False)), value.set_state
    bits = getattr(value, "bit_generator", value)
    if isinstance(bits, np.random.BitGenerator):
        return (lambda: bits.state), lambda state: setattr(bits, "state", state)
    return None


def _numbers(value: Any) -> _Ways:
    if isinstance(value, Tensor):

        def fill(state: Tensor) -> None:
            with torch.no_grad():
                value.data = state.clone()

        return (lambda: value.detach().clone()), fill
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return value.copy, lambda state: np.copyto(value, state)
    return None


def _container(value: Any) -> _Ways:
    if isinstance(value, dict):

        def refill(state: Any) -> None:
            value.clear()
            value.update(state)

        return (lambda: tuple(value.items())), refill
    if isinstance(value, list | bytearray):
        return (lambda: tuple(value)), lambda state: value.__setitem__(slice(None), state)
    if isinstance(value, set | deque):

        def fill(state: Any) -> None:
            value.clear()
            (value.update if isinstance(value, set) else value.extend)(state)

        return (lambda: tuple(value)), fill
    return None


def _moving(value: Any) -> _Ways:
    """Iterators, files and caches."""
    if isinstance(value, _SETTABLE):
        return (lambda: _position(value)), lambda at: _move(value, at)
    if isinstance(value, types.GeneratorType):
        return (lambda: _frame_of(value)), None
    if isinstance(value, io.IOBase):
        if value.closed or not value.seekable():
            return None
        return value.tell, lambda at: value.seek(at)
    if isinstance(value, functools._lru_cache_wrapper):

        def clear(state: Any) -> None:
            if state[3] or value.cache_info()[3] == 0:
                raise ValueError("a cache can only be emptied")
            value.cache_clear()

        return (lambda: tuple(value.cache_info())), clear
    if is_opaque_iterator(value):
        return (lambda: _reduced(value)), None
    return None


def is_opaque_iterator(value: Any) -> bool:
    """An iterator in C: `enumerate`, `zip`, `itertools.count`, …"""
    return hasattr(type(value), "__next__") and not hasattr(value, "__dict__")


def _move(value: Any, position: Any) -> None:
    if position is None or _position(value) is None:
        raise ValueError("an iterator that has ended stays so")
    value.__setstate__(position)


def _position(value: Any) -> Any:
    reduced = value.__reduce__()
    return reduced[2] if len(reduced) > 2 else None


def _frame_of(value: Any) -> Any:
    if value.gi_frame is None:
        return "ended"
    plain = {k: v for k, v in value.gi_frame.f_locals.items() if isinstance(v, int | str | float)}
    # Where it stands may also be on the stack of its frame, which nobody sees: it may have moved.
    return (value.gi_frame.f_lasti, plain, object())


def _reduced(value: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # itertools, from Python 3.12 on
        try:
            return tuple(value.__reduce__()[1:])
        except (TypeError, AttributeError):
            return "in an unknown place"


def same(a: Any, b: Any) -> bool:
    """Equal to the bit for values, the same one for all other objects. No code of theirs is run."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return struct.pack("<d", a) == struct.pack("<d", b)
    if type(a) in _PLAIN:
        return bool(a == b)
    if isinstance(a, Tensor):
        alike = a.dtype == b.dtype and a.shape == b.shape and a.layout is b.layout
        return alike and a.layout is torch.strided and raw_bytes(a) == raw_bytes(b)
    if isinstance(a, np.ndarray):
        return bool(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())
    if isinstance(a, np.generic):
        return bool(a.dtype == b.dtype and a.tobytes() == b.tobytes())
    if type(a) is tuple:
        return len(a) == len(b) and all(map(same, a, b))
    if type(a) is dict:
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return False


class Told(str):
    """A state of another process, as a text already."""


def shown(value: Any) -> str:
    """A state as a short text; what is too long for that by its size and a digest."""
    if isinstance(value, Told):
        return str(value)
    if isinstance(value, float) or type(value) in _PLAIN:
        return reprlib.repr(value)
    if isinstance(value, Tensor | np.ndarray):
        size = int(value.numel() if isinstance(value, Tensor) else value.size)
        if size == 1:
            return repr(value.item())
        raw = raw_bytes(value) if isinstance(value, Tensor) else value.tobytes()
        return f"{list(value.shape)}, digest {xxhash.xxh3_64_hexdigest(raw)[:8]}"
    if isinstance(value, tuple | list | deque) and len(value) <= 4:
        return "(" + ", ".join(map(shown, value)) + ")"
    if type(value) is dict and len(value) <= 4:
        return "{" + ", ".join(f"{k}: {shown(v)}" for k, v in value.items()) + "}"
    if isinstance(value, tuple | dict | list | deque):
        inner = value.values() if isinstance(value, dict) else value
        text = "".join(map(shown, inner)).encode("utf-8", "replace")
        return f"{len(value)} values, digest {xxhash.xxh3_64_hexdigest(text)[:8]}"
    return repr(value) if value is MISSING else f"a {type(value).__name__}"


def process_settings() -> Iterator[Held]:
    """What belongs to the whole process: environment variables and torch's switches."""

    def put_variable(key: str, value: Any) -> None:
        if value is MISSING:
            os.environ.pop(key, None)
        else:
            os.environ[key] = value

    yield named(ENVIRONMENT, None, lambda: dict(os.environ), put_variable, "['{}']")
    switches: Mapping[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
        "default_dtype": (torch.get_default_dtype, torch.set_default_dtype),
        "num_threads": (torch.get_num_threads, torch.set_num_threads),
        "deterministic_algorithms": (
            torch.are_deterministic_algorithms_enabled,
            torch.use_deterministic_algorithms,
        ),
        "float32_matmul_precision": (
            torch.get_float32_matmul_precision,
            torch.set_float32_matmul_precision,
        ),
    }
    yield named(
        "torch",
        None,
        lambda: {name: get() for name, (get, _) in switches.items()},
        lambda key, value: switches[key][1](value),
        ".set_{}",
    )
