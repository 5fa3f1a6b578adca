"""NumPy's pickle constructors as data: arrays become LazyTensors, scalars themselves."""

import re
from typing import Any

from msgspec.structs import replace

from holdtrue.formats.pickle_context import ArgumentsError, Context
from holdtrue.formats.pickle_tensors import shape_of
from holdtrue.formats.view import LazyTensor, Piece, Storage
from holdtrue.on_demand import numpy as np
from holdtrue.records.dtypes import DTYPES, contiguous_stride, product
from holdtrue.records.inert import NamedReference, Record

# Kinds whose elements are plain bytes. Not objects, not structures with fields, no metadata.
_PLAIN = re.compile(
    r"[<>|=]?(b1|[iu][1248]|f2|f4|f8|f12|f16|c8|c16|c24|c32|[SaUV]\d{1,9}|\?"
    r"|[mM]8(\[\d{0,9}(Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as|generic)\])?)"
)

_TORCH = {row.numpy: row.name for row in DTYPES.values() if row.numpy is not None}


def dtype_of(value: Any) -> "np.dtype[Any]":
    """The dtype of a `numpy.dtype` record or name, where its elements are plain bytes."""
    if isinstance(value, Record) and value.class_name == "numpy.dtype" and value.args:
        name, order = value.args[0], ""
        state = value.state
        if isinstance(state, tuple) and len(state) >= 2 and state[1] in ("<", ">", "|", "="):
            order = state[1]
            if len(state) > 4 and (state[2] is not None or state[3] is not None):
                raise ArgumentsError("an array of structures")
            if isinstance(name, str) and name[:1] in "mM" and len(state) > 8:
                name = _dated(name, state[8])
        if isinstance(name, NamedReference):
            name = name.name.rpartition(".")[2]
        if isinstance(name, str) and name[:1] not in "<>|=":
            name = order + name
    else:
        name = value
    if not isinstance(name, str) or not _PLAIN.fullmatch(name):
        raise ArgumentsError("an array of objects or structures")
    try:
        return np.dtype(name.replace("a", "S", 1) if "a" in name[:2] else name)
    except (TypeError, ValueError):  # long doubles of another machine
        raise ArgumentsError("numbers that this machine does not have") from None


def _known_dtype(described: Any) -> "np.dtype[Any] | None":
    """The same, or None for objects and structures: those stay records, whole and inert."""
    try:
        return dtype_of(described)
    except ArgumentsError:
        return None


def _dated(name: str, metadata: Any) -> str:
    """datetime64 keeps its unit beside its name: ({}, (b"ns", 1, 1, 1))."""
    unit = metadata[1] if isinstance(metadata, tuple) and len(metadata) > 1 else None
    if not isinstance(unit, tuple) or len(unit) < 2:
        return name
    letters, count = unit[0], unit[1]
    text = letters.decode("ascii", "replace") if isinstance(letters, bytes) else str(letters)
    return name if text == "generic" else f"{name}[{count if count != 1 else ''}{text[:7]}]"


def raw_bytes(value: Any) -> bytes | bytearray | Storage:
    """Bytes as the pickle spelled them, or the place in the file where long ones stay."""
    if isinstance(value, (bytes, bytearray)):
        return value
    if isinstance(value, str):  # a Python 2 byte string that happened to be UTF-8
        return value.encode("utf-8", "surrogatepass")
    if isinstance(value, LazyTensor) and value.class_name in _BYTES and len(value.pieces) == 1:
        return value.pieces[0].storage
    raise ArgumentsError("array data that is no bytes")


_BYTES = ("builtins.bytes", "builtins.bytearray")


def array(
    context: Context, dtype: "np.dtype[Any]", shape: Any, raw: Any, fortran: bool, name: str | None
) -> LazyTensor:
    """An array over these bytes."""
    sizes = shape_of(shape)
    data = raw_bytes(raw)
    held = data.nbytes if isinstance(data, Storage) else len(data)
    if product(sizes) * dtype.itemsize != held:
        raise ArgumentsError(f"an array of {product(sizes) * dtype.itemsize} bytes from {held}")
    swapped = dtype.byteorder == ">"
    little = dtype.newbyteorder("<")
    unit = _swap_unit(little)
    if isinstance(data, Storage):
        storage = replace(data, big_endian=swapped, itemsize=unit)
    else:
        context.spend_bytes(held)
        storage = Storage(
            key=context.fresh_key(), file="", offset=0, nbytes=held, inline=bytes(data),
            big_endian=swapped, itemsize=unit,
        )  # fmt: skip
    stride = contiguous_stride(sizes)
    if fortran:
        stride = tuple(reversed(contiguous_stride(tuple(reversed(sizes)))))
    piece = Piece(start=(0,) * len(sizes), shape=sizes, storage=storage, offset=0, stride=stride)
    return LazyTensor(
        dtype=_TORCH.get(little.str, little.str),
        shape=sizes,
        stride=stride,
        pieces=(piece,),
        numpy=little.str,
        class_name=name,
    )


def _swap_unit(dtype: "np.dtype[Any]") -> int:
    if dtype.kind == "c":
        return dtype.itemsize // 2
    return 4 if dtype.kind == "U" else dtype.itemsize


def reconstruct(context: Context, args: tuple[Any, ...]) -> Record:
    """`_reconstruct(class, (0,), b"b")`: an array still without its state, which BUILD brings."""
    if len(args) != 3 or not isinstance(args[0], NamedReference):
        raise ArgumentsError("an array with other arguments")
    return Record(class_name=args[0].name, args=args)


def set_array_state(context: Context, record: Record, state: Any) -> LazyTensor | None:
    """BUILD on such an array. None where it stays a record: objects, structures, masked arrays."""
    if isinstance(state, tuple) and len(state) == 5:
        _, shape, dtype, fortran, raw = state
    elif isinstance(state, tuple) and len(state) == 4:
        shape, dtype, fortran, raw = state
    else:
        return None
    name = None if record.class_name == "numpy.ndarray" else record.class_name
    try:
        return array(context, dtype_of(dtype), shape, raw, bool(fortran), name)
    except ArgumentsError:
        return None


def from_buffer(context: Context, args: tuple[Any, ...]) -> Any:
    """`_frombuffer(buffer, dtype, shape, order)`, how protocol 5 spells arrays."""
    if len(args) != 4:
        raise ArgumentsError("an array with other arguments")
    buffer, described, shape, order = args
    dtype = _known_dtype(described)
    if dtype is None:
        return Record(class_name="numpy.ndarray", args=args)
    return array(context, dtype, shape, buffer, order == "F", None)


def scalar(context: Context, args: tuple[Any, ...]) -> Any:
    """`scalar(dtype, bytes)`."""
    if len(args) != 2:
        raise ArgumentsError("a scalar with other arguments")
    dtype = _known_dtype(args[0])
    if dtype is None:
        return Record(class_name="numpy.generic", args=args)
    data = raw_bytes(args[1])
    if isinstance(data, Storage) or len(data) != dtype.itemsize:
        raise ArgumentsError("a scalar whose bytes do not fit")
    if not dtype.itemsize:
        return dtype.type()
    return np.frombuffer(bytes(data), dtype)[0]


def dtype_record(context: Context, args: tuple[Any, ...]) -> Record:
    """A dtype; BUILD brings its byte order."""
    return Record(class_name="numpy.dtype", args=args)
