"""How far two tensors of one shape lie apart, read in chunks side by side.

Tensors of one dtype differ where their bits differ: another NaN payload, or -0.0 for 0.0, is a
difference. Those of two dtypes differ where their values do, as float64 or complex128.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash
from msgspec import Struct

from holdtrue.doctor.elements import decoder, element_type
from holdtrue.doctor.side_by_side import Progress, chunks, in_memory_order, known_digest, pairs
from holdtrue.formats.tensor_bytes import Bytes, element_bytes
from holdtrue.formats.view import LazyTensor
from holdtrue.limits import limits
from holdtrue.records.dtypes import product

_Array = npt.NDArray[Any]
_Flags = npt.NDArray[np.bool_]

_TINY = 1e-280  # squares below this have lost digits, and a cosine of them would be made up


class Numbers(Struct, frozen=True, kw_only=True):
    """The distance of two tensors. Elements that are NaN on a side count in `differing` and the NaN
    counts only; what cannot be computed is None."""

    elements: int
    differing: int
    max_abs: float | None = None
    mean_abs: float | None = None
    max_rel: float | None = None  # |a - b| / max(|a|, |b|)
    mean_rel: float | None = None
    cosine: float | None = None
    nan_a: int = 0
    nan_b: int = 0


class _Tally(Struct):
    elements: int = 0
    differing: int = 0
    comparable: int = 0
    nan_a: int = 0
    nan_b: int = 0
    max_abs: float = 0.0
    max_rel: float = 0.0
    sum_abs: float = 0.0
    sum_rel: float = 0.0
    dot: float = 0.0
    square_a: float = 0.0
    square_b: float = 0.0


def content_digest(tensor: LazyTensor, progress: Progress | None = None) -> str:
    """The xxh3-128 of a tensor's bytes in C order."""
    known = known_digest(tensor)
    if known is not None:
        return known
    digest = xxhash.xxh3_128()
    for chunk in chunks(tensor, progress):
        digest.update(chunk.data)
    return digest.hexdigest()


def same_bytes(a: LazyTensor, b: LazyTensor, progress: Progress | None = None) -> bool:
    """Whether two tensors of one shape and dtype are bit-equal. Stops at the first difference."""
    if a is b or (known_digest(a) is not None and known_digest(a) == known_digest(b)):
        return True
    a, b = in_memory_order(a, b)
    return all(np.array_equal(x, y) for x, y in pairs(chunks(a, progress), chunks(b, progress)))


def measure(a: LazyTensor, b: LazyTensor, progress: Progress | None = None) -> Numbers:
    """The distance of two tensors of one shape."""
    same_type = element_type(a) == element_type(b)
    decode_a, decode_b = decoder(a), decoder(b)
    width_a, width_b = element_bytes(a), element_bytes(b)
    tally = _Tally()
    if not width_a or not width_b:  # text of no letters, say, beside numbers
        return Numbers(elements=product(a.shape), differing=product(a.shape))
    # float64 copies are up to eight times the size of what was read, and several live at a time.
    step = max(1, min(1 << 16, limits().chunk_bytes // 16))
    a, b = in_memory_order(a, b)
    for x, y in pairs(chunks(a, progress), chunks(b, progress), width_a, width_b):
        for at in range(0, len(x) // width_a, step):
            raw_a = x[at * width_a : (at + step) * width_a]
            raw_b = y[at * width_b : (at + step) * width_b]
            unequal = _unequal_bits(raw_a, raw_b, width_a) if same_type else None
            if decode_a is None or decode_b is None:
                count = len(raw_a) // width_a
                tally.elements += count
                tally.differing += count if unequal is None else int(np.count_nonzero(unequal))
            else:
                _add(tally, decode_a(raw_a), decode_b(raw_b), unequal)
    return _numbers(tally, decode_a is not None and decode_b is not None)


def _numbers(tally: _Tally, numeric: bool) -> Numbers:
    if not numeric:
        return Numbers(elements=tally.elements, differing=tally.differing)
    some = tally.comparable > 0
    return Numbers(
        elements=tally.elements,
        differing=tally.differing,
        max_abs=tally.max_abs if some else None,
        mean_abs=tally.sum_abs / tally.comparable if some else None,
        max_rel=tally.max_rel if some else None,
        mean_rel=tally.sum_rel / tally.comparable if some else None,
        cosine=_cosine(tally),
        nan_a=tally.nan_a,
        nan_b=tally.nan_b,
    )


def _cosine(tally: _Tally) -> float | None:
    """None where a side is all zero, infinite, or beyond what float64 can square."""
    squares = (tally.square_a, tally.square_b)
    if not all(_TINY < s < math.inf for s in squares) or not math.isfinite(tally.dot):
        return None
    return max(-1.0, min(1.0, tally.dot / (math.sqrt(squares[0]) * math.sqrt(squares[1]))))


def _add(tally: _Tally, x: _Array, y: _Array, unequal: _Flags | None) -> None:
    with np.errstate(all="ignore"):  # infinities and overflow have a meaning here
        _add_known(tally, x, y, unequal)


def _add_known(tally: _Tally, x: _Array, y: _Array, unequal: _Flags | None) -> None:
    nan_x, nan_y = _is_nan(x), _is_nan(y)
    known = ~(nan_x | nan_y)
    if unequal is None:
        unequal = ~_equal_values(x, y) & ~(nan_x & nan_y)
    wide = np.complex128 if "c" in (x.dtype.kind, y.dtype.kind) else np.float64
    fx = np.where(known, x.astype(wide), 0)
    fy = np.where(known, y.astype(wide), 0)
    apart = _distance(x, y, fx, fy)
    size = np.maximum(np.abs(fx), np.abs(fy))
    relative = np.where(apart > 0, apart / size, 0.0)
    overflown = np.isinf(apart) & np.isfinite(size)
    relative = np.where(overflown, np.abs(fx / size - fy / size), relative)
    relative = np.where(np.isinf(size) & (apart > 0), np.inf, relative)
    tally.elements += len(x)
    tally.differing += int(np.count_nonzero(unequal))
    tally.comparable += int(np.count_nonzero(known))
    tally.nan_a += int(np.count_nonzero(nan_x))
    tally.nan_b += int(np.count_nonzero(nan_y))
    apart, relative = np.where(known, apart, 0.0), np.where(known, relative, 0.0)
    tally.max_abs = max(tally.max_abs, float(apart.max()))
    tally.max_rel = max(tally.max_rel, float(relative.max()))
    tally.sum_abs += float(apart.sum())
    tally.sum_rel += float(relative.sum())
    tally.dot += float((fx * fy.conj()).real.sum())
    tally.square_a += float((np.abs(fx) ** 2).sum())
    tally.square_b += float((np.abs(fy) ** 2).sum())


def _distance(x: _Array, y: _Array, fx: _Array, fy: _Array) -> npt.NDArray[np.float64]:
    """|x - y|; of integers without the rounding of float64 above 2**53."""
    if x.dtype.kind in "iu" and y.dtype.kind in "iu" and _signs_agree(x, y):
        more, less = np.maximum(x, y), np.minimum(x, y)
        # Modulo 2**64, which is exact: the distance of two int64 fits a uint64.
        return (more.astype(np.uint64) - less.astype(np.uint64)).astype(np.float64)
    apart = np.abs(fx - fy)
    apart = np.where(fx == fy, 0.0, apart)  # also of infinities
    return np.where(np.isnan(apart), np.inf, apart)


def _signs_agree(x: _Array, y: _Array) -> bool:
    return np.uint64 not in (x.dtype, y.dtype) or x.dtype == y.dtype


def _is_nan(x: _Array) -> _Flags:
    return np.isnan(x) if x.dtype.kind in "fc" else np.zeros(len(x), np.bool_)


def _equal_values(x: _Array, y: _Array) -> _Flags:
    """x == y, exactly: a 64-bit integer is not rounded to fit a float."""
    if x.dtype.kind in "iu" and y.dtype.kind == "f":
        x, y = y, x
    if x.dtype.kind != "f" or y.dtype.kind not in "iu":
        plain: _Flags = np.equal(x, y)
        return plain
    wide, held = x.astype(np.float64), np.iinfo(y.dtype)
    inside = (wide >= float(held.min)) & (wide < float(held.max) + (held.bits < 64))
    whole = np.where(inside, wide, 0.0)
    same: _Flags = inside & (wide == np.trunc(wide)) & (whole.astype(y.dtype) == y)
    return same


def _unequal_bits(x: Bytes, y: Bytes, width: int) -> _Flags:
    if width in (1, 2, 4, 8):
        plain: _Flags = np.not_equal(x.view(f"u{width}"), y.view(f"u{width}"))
        return plain
    found: _Flags = (x.reshape(-1, width) != y.reshape(-1, width)).any(axis=1)
    return found
