"""Plain values of Python and NumPy to their nodes; the counterpart of the leaves in `values`."""

import base64
import math
import random
import struct
from collections.abc import Callable
from datetime import date, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PosixPath, PurePosixPath, PureWindowsPath, WindowsPath
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import numpy as np

from holdtrue.records.values import TAG

_EXACT_INT = 1 << 53  # above it, JSON readers of other languages lose digits


def _int(value: int) -> Any:
    return value if -_EXACT_INT <= value <= _EXACT_INT else {TAG: "int", "v": hex(value)}


def _float(value: float) -> Any:
    return value if math.isfinite(value) else {TAG: "float", "v": _special(value)}


def _special(value: float) -> str:
    return f"nan:{struct.pack('>d', value).hex()}" if math.isnan(value) else repr(value)


def _complex(value: complex) -> Any:
    parts = [v if math.isfinite(v) else _special(v) for v in (value.real, value.imag)]
    return {TAG: "complex", "v": parts}


def is_unicode(text: str) -> bool:
    """Whether a text has UTF-8: a lone surrogate has none."""
    return text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text)


def _str(value: str) -> Any:
    # A lone surrogate (from os.fsdecode, say) has no UTF-8 of its own.
    if is_unicode(value):
        return value
    return {TAG: "str", "v": value.encode("utf-8", "surrogatepass").hex()}


def _timezone(value: timezone) -> Any:
    arguments = value.__getinitargs__()  # type: ignore[attr-defined]
    offset, name = (*arguments, None)[:2]
    return {TAG: "timezone", "v": [[offset.days, offset.seconds, offset.microseconds], name]}


def _zone(value: ZoneInfo) -> Any:
    return {TAG: "zoneinfo", "v": value.key}


def dtype_name(dtype: "np.dtype[Any]") -> Any:
    """A dtype as its string, or the list of its fields."""
    return dtype.str if dtype.names is None else [list(field) for field in dtype.descr]


def tagged(kind: str, payload: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """An encoder of one kind of node, by what stands in its `v`."""
    return lambda value: {TAG: kind, "v": payload(value)}


def b64(value: bytes) -> str:
    """Bytes as JSON can hold them."""
    return base64.b64encode(value).decode()


def _random(value: random.Random) -> Any:
    version, words, gauss = value.getstate()
    packed = struct.pack(f"<{len(words)}I", *words)
    return {TAG: "random", "v": [version, b64(packed), gauss]}


_PATHS = (PosixPath, WindowsPath, PurePosixPath, PureWindowsPath, Path)
LEAVES: dict[type, Callable[[Any], Any]] = {
    str: _str,
    int: _int,
    float: _float,
    complex: _complex,
    bytes: tagged("bytes", b64),
    bytearray: tagged("bytearray", b64),
    ZoneInfo: _zone,
    date: tagged("date", date.isoformat),
    timedelta: tagged("timedelta", lambda v: [v.days, v.seconds, v.microseconds]),
    timezone: _timezone,
    Decimal: tagged("decimal", str),
    Fraction: tagged("fraction", lambda v: [hex(v.numerator), hex(v.denominator)]),
    UUID: tagged("uuid", lambda v: v.hex),
    type(...): tagged("ellipsis", lambda _: None),
    random.Random: _random,
    **{p: tagged("path", lambda v: [type(v).__name__, str(v)]) for p in _PATHS},
}
