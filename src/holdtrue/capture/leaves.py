"""Values without parts of their own to value nodes. The counterpart of `records/leaves.py`."""

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
import torch

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


def _tag(kind: str, payload: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: {TAG: kind, "v": payload(value)}


def b64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def generator_node(value: torch.Generator) -> dict[str, Any]:
    state = b64(value.get_state().numpy().tobytes())
    return {TAG: "generator", "v": [str(value.device), state]}


def random_node(value: random.Random) -> dict[str, Any]:
    version, words, gauss = value.getstate()
    packed = struct.pack(f"<{len(words)}I", *words)
    return {TAG: "random", "v": [version, b64(packed), gauss]}


_PATHS = (PosixPath, WindowsPath, PurePosixPath, PureWindowsPath, Path)
LEAVES: dict[type, Callable[[Any], Any]] = {
    str: _str,
    int: _int,
    float: _float,
    complex: _complex,
    bytes: _tag("bytes", b64),
    ZoneInfo: _zone,
    date: _tag("date", date.isoformat),
    timedelta: _tag("timedelta", lambda v: [v.days, v.seconds, v.microseconds]),
    timezone: _timezone,
    Decimal: _tag("decimal", str),
    Fraction: _tag("fraction", lambda v: [hex(v.numerator), hex(v.denominator)]),
    UUID: _tag("uuid", lambda v: v.hex),
    type(...): _tag("ellipsis", lambda _: None),
    torch.dtype: _tag("dtype", lambda v: str(v).removeprefix("torch.")),
    torch.device: _tag("device", str),
    torch.layout: _tag("layout", lambda v: str(v).removeprefix("torch.")),
    torch.memory_format: _tag("memory_format", lambda v: str(v).removeprefix("torch.")),
    **{p: _tag("path", lambda v: [type(v).__name__, _str(str(v))]) for p in _PATHS},
}
