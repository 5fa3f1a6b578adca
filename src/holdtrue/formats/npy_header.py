"""The header of a .npy file: a Python literal, read by a parser of its own.

Not `ast.literal_eval`: its documentation warns that a short text can crash the interpreter.
"""

import re
import struct
from typing import Any

from msgspec import Struct

from holdtrue.errors import DamageError, fail
from holdtrue.findings import Finding
from holdtrue.formats.view import LazyTensor, Piece, Storage
from holdtrue.limits import MIB, limits
from holdtrue.on_demand import numpy as np
from holdtrue.records.dtypes import DTYPES, contiguous_stride, product

PREFIX = 12  # bytes that hold magic, version and length in every version
_MOST = 1 * MIB
_DEPTH = 32
_TOKEN = re.compile(
    r"""\s*(?:(?P<str>[ub]?(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"))|(?P<int>-?\d{1,19})[lL]?\b"""
    r"""|(?P<name>True|False|None)\b|(?P<mark>[()\[\]{},:]))"""
)
_CLOSING = {"(": ")", "[": "]", "{": "}"}
_NAMES = {"True": True, "False": False, "None": None}
_TORCH = {row.numpy: name for name, row in DTYPES.items() if row.numpy is not None}


class NpyHeader(Struct, frozen=True):
    dtype: "np.dtype[Any]"
    fortran: bool
    shape: tuple[int, ...]
    length: int  # bytes before the data
    version: str

    @property
    def nbytes(self) -> int:
        """Of the data; objects take what their pickle takes."""
        return product(self.shape) * self.dtype.itemsize


def header_bytes(prefix: bytes, where: str) -> int:
    """Bytes before the data, from the first `PREFIX` bytes of the file. Raises DamageError."""
    if len(prefix) < PREFIX or not prefix.startswith(b"\x93NUMPY"):
        raise damaged(where, f"the file ends, or breaks off, within its first {PREFIX} bytes")
    if prefix[6] == 1:
        length = 10 + int(struct.unpack("<H", prefix[8:10])[0])
    elif prefix[6] in (2, 3):
        length = 12 + int(struct.unpack("<I", prefix[8:12])[0])
    else:
        raise damaged(where, f"format version {prefix[6]}.{prefix[7]} is not known; 1 to 3 are")
    if length > min(_MOST, limits().header_bytes):
        raise damaged(where, f"the header claims {length:,} bytes; {_MOST:,} are allowed")
    return length


def parse_npy_header(raw: bytes, where: str) -> NpyHeader:
    """The checked header; `raw` holds all bytes before the data. Raises DamageError."""
    length = header_bytes(raw[:PREFIX], where)
    if len(raw) < length:
        raise damaged(where, f"the header takes {length:,} bytes, the file has {len(raw):,}")
    try:
        text = raw[10 if raw[6] == 1 else 12 : length]
        body = _Literal(text.decode("utf-8" if raw[6] == 3 else "latin-1")).whole()
        if not isinstance(body, dict) or set(body) != {"descr", "fortran_order", "shape"}:
            raise ValueError("it needs exactly descr, fortran_order and shape")
        shape, fortran = body["shape"], body["fortran_order"]
        if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError("its shape is not a tuple of sizes")
        if len(shape) > limits().dimensions:
            raise ValueError(f"it has {len(shape)} dimensions")
        if not isinstance(fortran, bool):
            raise ValueError("fortran_order is not a truth value")
        dtype = _dtype(body["descr"])
        header = NpyHeader(dtype, fortran, shape, length, f"{raw[6]}.{raw[7]}")
        if header.nbytes >= 1 << 63:
            raise ValueError(f"shape {shape} takes more bytes than any file has")
    except ValueError as error:
        raise damaged(where, f"the header is not valid: {error}") from None
    return header


def array_tensor(header: NpyHeader, storage: Storage) -> LazyTensor:
    """The array as a lazy tensor, `storage` being its data. Not for arrays of objects."""
    stride = contiguous_stride(header.shape)
    if header.fortran:
        stride = tuple(reversed(contiguous_stride(tuple(reversed(header.shape)))))
    piece = Piece(
        start=(0,) * len(header.shape), shape=header.shape, storage=storage, offset=0, stride=stride
    )
    plain = header.dtype.newbyteorder("<") if header.dtype.names is None else header.dtype
    return LazyTensor(
        dtype=_TORCH.get(plain.str, plain.str),
        shape=header.shape,
        stride=stride,
        pieces=(piece,),
        numpy=plain.str,  # a structured dtype's fields are in `state`
        state=None if header.dtype.names is None else {"descr": header.dtype.descr},
    )


def swap_unit(dtype: "np.dtype[Any]") -> int:
    """Bytes that are swapped together if the array is big-endian; 1 if nothing is to be swapped."""
    if dtype.names is not None or dtype.subdtype is not None or dtype.byteorder != ">":
        return 1
    return {"c": dtype.itemsize // 2, "U": 4}.get(dtype.kind, dtype.itemsize)


def _dtype(descr: Any) -> "np.dtype[Any]":
    try:
        dtype = np.lib.format.descr_to_dtype(descr)
    except Exception as error:  # NumPy raises whatever its parsing of a hostile text runs into
        raise ValueError(f"the dtype {str(descr)[:80]!r} is not NumPy's ({error})"[:200]) from None
    if dtype.subdtype is not None:
        raise ValueError("its dtype is an array in itself")
    if dtype.hasobject and dtype.names is not None:
        raise ValueError("its dtype has fields that are objects")
    return dtype


class _Literal:
    """A recursive-descent parser for the literals that NumPy writes."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._depth = 0

    def whole(self) -> Any:
        value = self._value(*self._next())
        if self._text[self._at :].strip():
            raise ValueError("something follows the header's dict")
        return value

    def _next(self) -> tuple[str, str]:
        found = _TOKEN.match(self._text, self._at)
        if found is None or found.lastgroup is None:
            raise ValueError(f"unexpected text at {self._at}")
        self._at = found.end()
        return found.lastgroup, found[found.lastgroup]

    def _value(self, kind: str, text: str) -> Any:
        if kind == "str":
            return _unquoted(text.lstrip("ub"))
        if kind == "int":
            return int(text)
        if kind == "name":
            return _NAMES[text]
        if text not in _CLOSING:
            raise ValueError(f"unexpected {text!r}")
        self._depth += 1
        if self._depth > _DEPTH:
            raise ValueError("it is nested too deeply")
        value = self._dict() if text == "{" else self._sequence(_CLOSING[text])
        self._depth -= 1
        return value

    def _sequence(self, closing: str) -> Any:
        values: list[Any] = []
        comma = False
        while (token := self._next()) != ("mark", closing):
            values.append(self._value(*token))
            token = self._next()
            comma = comma or token == ("mark", ",")
            if token == ("mark", closing):
                break
            if token != ("mark", ","):
                raise ValueError("a comma is missing")
        if closing == "]":
            return values
        return tuple(values) if comma or not values else values[0]

    def _dict(self) -> dict[Any, Any]:
        values: dict[Any, Any] = {}
        while (token := self._next()) != ("mark", "}"):
            if token[0] != "str":
                raise ValueError("a key is not a string")
            key = self._value(*token)
            if self._next() != ("mark", ":") or key in values:
                raise ValueError("a colon is missing, or a key stands twice")
            values[key] = self._value(*self._next())
            token = self._next()
            if token == ("mark", "}"):
                break
            if token != ("mark", ","):
                raise ValueError("a comma is missing")
        return values


def _unquoted(text: str) -> str:
    simple = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", "'": "'", '"': '"'}

    def spelled(found: re.Match[str]) -> str:
        if found[1] is not None:
            return chr(int(found[1][1:], 16))
        return simple.get(found[2], found[0])

    return re.sub(r"\\(?:(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4})|(.))", spelled, text[1:-1])


def damaged(where: str, why: str) -> DamageError:
    return fail(
        DamageError,
        where,
        Finding(
            code="npy-damaged",
            severity="error",
            where=where,
            what="this is not a whole NumPy file",
            why=why,
            fix="fetch or save the file again",
        ),
    )
