"""Adds up the values of a tensor block by block; `doctor/statistics.py` says what for."""

from typing import Any, TypeAlias

import xxhash
from msgspec import Struct, field

from holdtrue.doctor.zero_runs import ZeroRuns
from holdtrue.on_demand import npt
from holdtrue.on_demand import numpy as np

_Array: TypeAlias = "npt.NDArray[Any]"


class Tally(Struct):
    """What has been seen of a tensor so far."""

    shape: tuple[int, ...]
    normal: float  # the smallest normal number of its dtype; 0 where none is known
    columns: int  # of a matrix whose rows are looked at; 0 otherwise
    runs: ZeroRuns | None
    at: int = 0
    nan: int = 0
    plus: int = 0
    minus: int = 0
    zeros: int = 0
    denormals: int = 0
    negative: int = 0
    low: Any = None
    high: Any = None
    total: float = 0.0
    squares: float = 0.0
    first_bad: int = -1
    zero_rows: int = 0
    first_row: int = -1
    last_row: int = -1
    repeated: int = 0
    row_before: "_Array | None" = None
    digest: xxhash.xxh3_128 = field(default_factory=xxhash.xxh3_128)


def add(tally: Tally, values: _Array) -> None:
    """The next block of values, in C order."""
    if values.dtype.kind == "c":
        _add_complex(tally, values)
        return
    if values.dtype.kind == "b":
        values = values.view(np.uint8)
    elif values.dtype == np.float16:
        values = _single(values)
    elif values.dtype.kind == "f" and not values.dtype.isnative:
        values = values.astype(values.dtype.newbyteorder("="))
    flags = values == 0
    zeros = int(np.count_nonzero(flags))
    if tally.columns:
        _add_rows(tally, values, zeros)
    if tally.runs is not None:
        tally.runs.add(tally.at, flags, zeros)
    if values.dtype.kind == "f":
        _add_floats(tally, values, zeros)
    else:
        _widen(tally, values.min().item(), values.max().item())
        _add_sums(tally, values.astype(np.float64))
        if values.dtype.kind == "i":
            tally.negative += int(np.count_nonzero(values < 0))
    tally.zeros += zeros
    tally.at += len(values)


def _single(half: _Array) -> "npt.NDArray[np.float32]":
    """Half precision as single, several times quicker than NumPy's own conversion."""
    bits = half.astype("<f2", copy=False).view("<u2").astype(np.uint32)
    sign = (bits & 0x8000) << 16
    wide = ((bits & 0x7FFF) << 13).view(np.float32)
    wide *= np.float32(2.0**112)  # the exponents' offsets differ by 112; this mends denormals too
    if wide.max() >= 2.0**16:  # the largest exponent is no number, but NaN or infinity
        wide.view(np.uint32)[wide >= 2.0**16] |= 0x7F800000
    wide.view(np.uint32)[:] |= sign
    return wide


def _add_floats(tally: Tally, values: _Array, zeros: int) -> None:
    # A NaN or an infinity shows in the extremes, which are quicker to have than flags.
    low, high = float(values.min()), float(values.max())
    if not (low > -np.inf and high < np.inf):
        values = _without_bad(tally, values)
        if not len(values):
            return
        low, high = float(values.min()), float(values.max())
    _widen(tally, low, high)
    if low < 0:
        tally.negative += int(np.count_nonzero(values < 0))
    if tally.normal and zeros < len(values):
        tally.denormals += int(np.count_nonzero(np.abs(values) < tally.normal)) - zeros
    _add_sums(tally, values)


def _without_bad(tally: Tally, values: _Array) -> _Array:
    good = np.isfinite(values)
    if tally.first_bad < 0:
        tally.first_bad = tally.at + int(np.argmin(good))
    tally.nan += int(np.count_nonzero(np.isnan(values)))
    tally.plus += int(np.count_nonzero(values == np.inf))
    tally.minus += int(np.count_nonzero(values == -np.inf))
    return values[good]


def _add_complex(tally: Tally, values: _Array) -> None:
    nan = np.isnan(values)
    infinite = np.isinf(values) & ~nan
    good = ~(nan | infinite)
    if tally.first_bad < 0 and not good.all():
        tally.first_bad = tally.at + int(np.argmin(good))
    tally.nan += int(np.count_nonzero(nan))
    tally.plus += int(np.count_nonzero(infinite))
    tally.zeros += int(np.count_nonzero(values == 0))
    tally.at += len(values)
    finite = values[good]
    if len(finite):
        parts = finite.view(finite.real.dtype)
        _widen(tally, float(parts.min()), float(parts.max()))
        tally.total += float(finite.real.sum(dtype=np.float64))
        tally.squares += float(np.square(parts.astype(np.float64)).sum())


def _widen(tally: Tally, low: Any, high: Any) -> None:
    tally.low = low if tally.low is None else min(tally.low, low)
    tally.high = high if tally.high is None else max(tally.high, high)


def _add_sums(tally: Tally, values: _Array) -> None:
    total, squares = float(values.sum()), float(np.einsum("i,i->", values, values))
    if not (np.isfinite(total) and np.isfinite(squares)):  # too large for squares in single
        wide = values.astype(np.float64)
        total, squares = float(wide.sum()), float(np.einsum("i,i->", wide, wide))
    tally.total += total
    tally.squares += squares


def _add_rows(tally: Tally, values: _Array, zeros: int) -> None:
    if len(values) % tally.columns:
        return
    rows = values.reshape(-1, tally.columns)
    before = tally.row_before
    after = rows[1:] if before is None else rows
    previous = rows[:-1] if before is None else np.concatenate([before[None], rows[:-1]])
    alike = np.flatnonzero((after[:, 0] == previous[:, 0]) & (after[:, -1] == previous[:, -1]))
    if len(alike):
        same = (after[alike] == previous[alike]).all(axis=1) & after[alike].any(axis=1)
        tally.repeated += int(np.count_nonzero(same))
    tally.row_before = rows[-1].copy()
    if zeros >= tally.columns:
        empty = np.flatnonzero(~rows.any(axis=1))
        if len(empty):
            start = tally.at // tally.columns
            tally.zero_rows += len(empty)
            tally.first_row = start + int(empty[0]) if tally.first_row < 0 else tally.first_row
            tally.last_row = start + int(empty[-1])
