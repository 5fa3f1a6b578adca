"""Plain values of Python and NumPy to value nodes. The counterpart of `leaves`."""

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

from holdtrue.on_demand import numpy as np
from holdtrue.records.arrays import describe_dtype
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


def scalar_node(value: "np.generic[Any]") -> Any:
    """A NumPy scalar. Texts have their own kinds: their dtype would cut trailing zeros."""
    if type(value) is np.str_:
        return {TAG: "np.str", "v": value.encode("utf-8", "surrogatepass").hex()}
    if type(value) is np.bytes_:
        return {TAG: "np.bytes", "v": b64(value)}
    return {TAG: "scalar", "v": [describe_dtype(value.dtype), b64(value.tobytes())]}


def tagged(kind: str, payload: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """An encoder of one kind of node, by what stands in its `v`."""
    return lambda value: {TAG: kind, "v": payload(value)}


def b64(value: bytes) -> str:
    """Bytes as JSON can hold them."""
    return base64.b64encode(value).decode()


def random_node(value: random.Random) -> dict[str, Any]:
    """The state of a generator of Python's."""
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
    ZoneInfo: _zone,
    date: tagged("date", date.isoformat),
    timedelta: tagged("timedelta", lambda v: [v.days, v.seconds, v.microseconds]),
    timezone: _timezone,
    Decimal: tagged("decimal", str),
    Fraction: tagged("fraction", lambda v: [hex(v.numerator), hex(v.denominator)]),
    UUID: tagged("uuid", lambda v: v.hex),
    type(...): tagged("ellipsis", lambda _: None),
    **{p: tagged("path", lambda v: [type(v).__name__, _str(str(v))]) for p in _PATHS},
}
