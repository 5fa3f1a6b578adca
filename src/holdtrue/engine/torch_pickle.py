"""The one pickle that is ever written: a state dict, as the opcodes torch.load knows as data.

No module of Python's is used for it, so nothing in the product can be made to pickle, let alone
unpickle, anything else. `docs/decisions/` says why it is written at all.
"""

import struct
from collections.abc import Iterable, Mapping
from typing import Any

from msgspec import Struct

from holdtrue.records.dtypes import DTYPES

# torch's typed storages; a dtype without one lies in an untyped storage.
STORAGES = {
    "float64": "DoubleStorage", "float32": "FloatStorage", "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage", "int64": "LongStorage", "int32": "IntStorage",
    "int16": "ShortStorage", "int8": "CharStorage", "uint8": "ByteStorage",
    "bool": "BoolStorage", "complex64": "ComplexFloatStorage",
    "complex128": "ComplexDoubleStorage", "quint8": "QUInt8Storage", "qint8": "QInt8Storage",
    "qint32": "QInt32Storage",
}  # fmt: skip


class Global(Struct, frozen=True):
    """A name that the reader looks up, "package.module.Name"."""

    module: str
    name: str


class Call(Struct, frozen=True):
    """What a function of the reader gives for these arguments."""

    function: Global
    arguments: tuple[Any, ...]


class StorageReference(Struct, frozen=True):
    """A record of the archive: its number, dtype and elements."""

    number: int
    dtype: str
    nbytes: int


_NO_HOOKS = Call(Global("collections", "OrderedDict"), ())


def tensor_call(
    storage: StorageReference,
    offset: int,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    requires_grad: bool,
) -> Call:
    """A strided tensor over a storage; `offset` in elements."""
    place = (storage, offset, shape, stride, requires_grad, _NO_HOOKS)
    if storage.dtype in STORAGES:
        return Call(Global("torch._utils", "_rebuild_tensor_v2"), place)
    return Call(
        Global("torch._utils", "_rebuild_tensor_v3"), (*place, Global("torch", storage.dtype))
    )


def quantized_call(
    storage: StorageReference,
    offset: int,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    quantizer: tuple[Any, ...],
) -> Call:
    """A quantised tensor; `quantizer` is its scheme, then what the scheme needs."""
    scheme, *rest = quantizer
    arguments = (storage, offset, shape, stride, (Global("torch", scheme), *rest), False, _NO_HOOKS)
    return Call(Global("torch._utils", "_rebuild_qtensor"), arguments)


def sparse_call(layout: str, data: tuple[Any, ...]) -> Call:
    """A sparse tensor of its components, shape and, for COO, whether it is coalesced."""
    named = Call(Global("torch.serialization", "_get_layout"), (f"torch.{layout}",))
    return Call(Global("torch._utils", "_rebuild_sparse_tensor"), (named, data))


def pickle_state_dict(tensors: Mapping[str, Call], attributes: Mapping[str, Any]) -> bytes:
    """An OrderedDict of these tensors. `attributes` are those of the dict: `_metadata`."""
    out = [b"\x80\x02"]
    _ordered(out, tensors)
    if attributes:
        _value(out, dict(attributes))
        out.append(b"b")
    out.append(b".")
    return b"".join(out)


def _ordered(out: list[bytes], items: Mapping[str, Any]) -> None:
    _value(out, _NO_HOOKS)
    _items(out, items)


def _items(out: list[bytes], items: Mapping[Any, Any]) -> None:
    if items:
        out.append(b"(")
        for key, value in items.items():
            _value(out, key)
            _value(out, value)
        out.append(b"u")


def _value(out: list[bytes], value: Any) -> None:
    if value is None:
        out.append(b"N")
    elif isinstance(value, bool):
        out.append(b"\x88" if value else b"\x89")
    elif isinstance(value, int):
        out.append(_int(value))
    elif isinstance(value, float):
        out.append(b"G" + struct.pack(">d", value))
    elif isinstance(value, str):
        raw = value.encode("utf-8", "surrogatepass")
        out.append(b"X" + struct.pack("<I", len(raw)) + raw)
    elif isinstance(value, Global):
        out.append(f"c{value.module}\n{value.name}\n".encode())
    elif isinstance(value, Call):
        _value(out, value.function)
        _tuple(out, value.arguments)
        out.append(b"R")
    elif isinstance(value, StorageReference):
        _storage(out, value)
    elif isinstance(value, tuple):
        _tuple(out, value)
    else:
        out.append(b"}")
        _items(out, value)


def _tuple(out: list[bytes], items: Iterable[Any]) -> None:
    out.append(b"(")
    for item in items:
        _value(out, item)
    out.append(b"t")


def _int(value: int) -> bytes:
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def _storage(out: list[bytes], storage: StorageReference) -> None:
    typed = STORAGES.get(storage.dtype)
    kind = Global("torch", typed) if typed else Global("torch.storage", "UntypedStorage")
    count = storage.nbytes // (DTYPES[storage.dtype].itemsize if typed else 1)
    # On the CPU whatever device it was on, so that it loads where there is no such device.
    _tuple(out, ("storage", kind, str(storage.number), "cpu", count))
    out.append(b"Q")
