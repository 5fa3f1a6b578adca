"""Value nodes without parts of their own: numbers, texts, bytes, paths, moments, dtypes."""

import base64
import struct
from collections.abc import Callable
from datetime import date, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from functools import partial
from pathlib import Path, PosixPath, PurePath, PurePosixPath, PureWindowsPath, WindowsPath
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from holdtrue.on_demand import numpy as np
from holdtrue.records.arrays import dtype_of
from holdtrue.records.inert import Record


def _float(text: str) -> float:
    if text.startswith("nan:"):  # the payload is kept: nan:7ff8000000000001
        return float(struct.unpack(">d", bytes.fromhex(text[4:]))[0])
    return float(text)


def _path(payload: list[Any]) -> PurePath:
    kind, node = payload
    text = node if isinstance(node, str) else _str(node["v"])
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
    dtype, raw = dtype_of(payload[0]), base64.b64decode(payload[1], validate=True)
    if not dtype.itemsize and not raw:
        return np.zeros((), dtype)[()]
    # A copy, since a structured scalar can be written to.
    return np.frombuffer(raw, dtype).reshape(()).copy()[()]


def _str(text: str) -> str:
    return bytes.fromhex(text).decode("utf-8", "surrogatepass")


def _number(text: str) -> int:
    return int(text, 16)


LEAVES: dict[str, Callable[[Any], Any]] = {
    "int": _number,
    "float": _float,
    "complex": _complex,
    "str": _str,
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
    "np.str": lambda v: np.str_(_str(v)),
    "np.bytes": lambda v: np.bytes_(base64.b64decode(v, validate=True)),
    "np.dtype": dtype_of,
}

# Kinds that only torch can build; without it they stay records.
TORCH = {
    "dtype": "dtype",
    "device": "device",
    "size": "Size",
    "layout": "layout",
    "memory_format": "memory_format",
    "generator": "Generator",
}
