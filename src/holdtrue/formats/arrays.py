"""The NumPy dtype of a lazy tensor's elements."""

from typing import Any

from holdtrue.errors import OpenError, fail
from holdtrue.findings import Finding
from holdtrue.formats.view import LazyTensor
from holdtrue.on_demand import numpy as np
from holdtrue.records.arrays import dtype_of
from holdtrue.records.dtypes import DTYPES

_ML = frozenset({"bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz",
                 "float8_e8m0fnu"})  # fmt: skip


def numpy_dtype(lazy: LazyTensor, where: str) -> "np.dtype[Any]":
    """Raises OpenError for numbers that NumPy does not have."""
    if lazy.numpy and isinstance(lazy.state, dict) and "descr" in lazy.state:
        return np.lib.format.descr_to_dtype(lazy.state["descr"])  # a structure's fields
    name = lazy.numpy or DTYPES[lazy.dtype].numpy
    if name is not None:
        return dtype_of(name)
    if lazy.dtype in _ML:
        try:
            import ml_dtypes
        except ModuleNotFoundError:
            raise _lacking(lazy, where, "pip install ml_dtypes") from None
        found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, lazy.dtype))
        return found
    raise _lacking(lazy, where, "take it as a torch tensor: .torch()")


def _lacking(lazy: LazyTensor, where: str, fix: str) -> OpenError:
    return fail(
        OpenError,
        where,
        Finding(
            code="dtype-not-in-numpy",
            severity="error",
            where=where,
            what=f"NumPy has no {lazy.dtype}",
            why="its own dtypes end at float16 and float64",
            fix=fix,
        ),
    )
