"""The bytes of tensors as numbers that NumPy can reckon with, without torch or ml_dtypes."""

from collections.abc import Callable
from functools import cache
from typing import Any, Literal, TypeAlias

from holdtrue.formats.tensor_bytes import Bytes
from holdtrue.formats.view import LazyTensor
from holdtrue.on_demand import npt
from holdtrue.on_demand import numpy as np
from holdtrue.records.dtypes import DTYPES

Decoder: TypeAlias = "Callable[[Bytes], npt.NDArray[Any]]"

# Eight-bit floats: mantissa bits, exponent bias, and which codes are no finite numbers.
_FLOAT8: dict[str, tuple[int, int, Literal["ieee", "fn", "fnuz"]]] = {
    "float8_e4m3fn": (3, 7, "fn"),
    "float8_e4m3fnuz": (3, 8, "fnuz"),
    "float8_e5m2": (2, 15, "ieee"),
    "float8_e5m2fnuz": (2, 16, "fnuz"),
}
_QUANTIZED = {"quint8": "|u1", "qint8": "|i1", "qint32": "<i4"}


def element_type(tensor: LazyTensor) -> str:
    """One name for equal elements, whether a tensor or an array holds them."""
    return tensor.numpy or DTYPES[tensor.dtype].numpy or tensor.dtype


def decoder(tensor: LazyTensor) -> "Decoder | None":
    """From a tensor's bytes to an array of numbers; None for elements that are no numbers."""
    name = element_type(tensor)
    if name in DTYPES:
        return _torch_decoder(name)
    dtype = np.dtype(name)
    return (lambda data: data.view(dtype)) if dtype.kind in "biufc" else None


def _torch_decoder(name: str) -> "Decoder | None":
    if name in _QUANTIZED:
        return lambda data: data.view(_QUANTIZED[name])
    if name == "bfloat16":
        return _bfloat16
    if name == "complex32":
        return _complex32
    if name in _FLOAT8 or name == "float8_e8m0fnu":
        values = _float8_values(name)
        return lambda data: values[data]
    return None


def _bfloat16(data: Bytes) -> "npt.NDArray[np.float32]":
    return (data.view("<u2").astype("<u4") << 16).view("<f4")


def _complex32(data: Bytes) -> "npt.NDArray[np.complex64]":
    return data.view("<f2").astype("<f4").view("<c8")


@cache
def _float8_values(name: str) -> "npt.NDArray[np.float32]":
    """What each of the 256 codes means."""
    if name == "float8_e8m0fnu":
        values = np.array([2.0 ** (code - 127) for code in range(256)])
        values[255] = np.nan
        return values.astype(np.float32)
    bits, bias, kind = _FLOAT8[name]
    return np.array([_float8(code, bits, bias, kind) for code in range(256)], np.float32)


def _float8(code: int, bits: int, bias: int, kind: str) -> float:
    exponent, mantissa = (code & 0x7F) >> bits, code & ((1 << bits) - 1)
    highest = (1 << (7 - bits)) - 1
    if kind == "fnuz" and code == 0x80:
        return float("nan")
    if kind == "fn" and code & 0x7F == 0x7F:
        return float("nan")
    if kind == "ieee" and exponent == highest:
        return float("nan") if mantissa else float("-inf" if code & 0x80 else "inf")
    sign = -1.0 if code & 0x80 else 1.0
    if exponent == 0:
        return sign * float(mantissa) * 2.0 ** (1 - bias - bits)
    return sign * (1 + float(mantissa) / (1 << bits)) * 2.0 ** (exponent - bias)
