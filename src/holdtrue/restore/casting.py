"""What a change of dtype would cost: nothing, precision, or the meaning of the numbers."""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from holdtrue.capture.raw import dtype_named
from holdtrue.findings import Finding, grouped
from holdtrue.formats.view import LazyTensor
from holdtrue.restore.fresh import Fresh, build_tensor

Change = Literal["same", "widened", "narrowed", "changed"]

# name → (bits of significand, bits of exponent)
_FLOATS = {
    "float64": (52, 11), "float32": (23, 8), "float16": (10, 5), "bfloat16": (7, 8),
    "float8_e4m3fn": (3, 4), "float8_e4m3fnuz": (3, 4),
    "float8_e5m2": (2, 5), "float8_e5m2fnuz": (2, 5), "float8_e8m0fnu": (0, 8),
}  # fmt: skip
_COMPLEX = {"complex32": "float16", "complex64": "float32", "complex128": "float64"}
_INTEGERS = {f"{u}int{n}": (n - (u == ""), u == "") for u in ("u", "") for n in (8, 16, 32, 64)}


def change(saved: str, target: str) -> Change:
    """How values of the saved dtype fare in the target's."""
    if saved == target:
        return "same"
    if saved == "bool":
        return "widened" if target in {*_FLOATS, *_COMPLEX, *_INTEGERS} else "changed"
    if saved in _COMPLEX or target in _COMPLEX:
        return _complex(saved, target)
    if saved in _FLOATS and target in _FLOATS:
        (m, e), (tm, te) = _FLOATS[saved], _FLOATS[target]
        return "widened" if tm >= m and te >= e else "narrowed"
    if saved in _INTEGERS and target in _INTEGERS:
        (bits, signed), (target_bits, target_signed) = _INTEGERS[saved], _INTEGERS[target]
        fits = target_bits >= bits and (target_signed or not signed)
        return "widened" if fits else "narrowed"
    if saved in _INTEGERS and target in _FLOATS:
        return "widened" if _FLOATS[target][0] >= _INTEGERS[saved][0] - 1 else "narrowed"
    return "changed"


def _complex(saved: str, target: str) -> Change:
    if target not in _COMPLEX:
        return "changed"  # the imaginary part would be lost
    return change(_COMPLEX.get(saved, saved), _COMPLEX[target]).replace("same", "widened")  # type: ignore[return-value]


def largest_change(lazy: LazyTensor, target: torch.dtype, where: str) -> str:
    """What casting does to the values, in words: "largest change 3.1e-05, 2 overflow to inf"."""
    tensor = build_tensor(lazy, Fresh({}, foreign=True), where)
    wide = torch.complex128 if tensor.is_complex() else torch.float64
    try:
        before = tensor.to(wide)
        after = _cast_and_back(tensor, target).to(wide)
    except RuntimeError as error:
        return f"torch cannot convert it: {error}"
    finite = torch.isfinite(before.abs())
    overflow = int((finite & ~torch.isfinite(after.abs())).sum())
    both = finite & torch.isfinite(after.abs())
    largest = float((after - before).abs()[both].max()) if bool(both.any()) else 0.0
    return f"largest change {largest:.3g}" + (f", {overflow:,} overflow" if overflow else "")


def _keeps_values(lazy: LazyTensor, target: torch.dtype, where: str) -> bool:
    """Whether casting to the target's dtype and back changes nothing."""
    tensor = build_tensor(lazy, Fresh({}, foreign=True), where)
    if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided:
        return False
    try:
        return torch.equal(_cast_and_back(tensor, target).to(tensor.dtype), tensor)
    except RuntimeError:  # torch cannot convert it
        return False


def _cast_and_back(tensor: Tensor, target: torch.dtype) -> Tensor:
    if tensor.is_complex() and not target.is_complex:
        tensor = torch.view_as_real(tensor)[..., 0]
    return tensor.to(target)


def dtype_findings(
    differing: Iterable[tuple[str, LazyTensor, str]], *, measured: bool = True
) -> Iterable[Finding]:
    """One finding for each kind of change; `differing` has (place, saved tensor, target dtype).

    Unless it is to be measured what is lost, no more is read than shows that something is.
    """
    kinds: dict[tuple[Change, str, str], list[tuple[str, LazyTensor]]] = {}
    for place, lazy, target in differing:
        kinds.setdefault((change(lazy.dtype, target), lazy.dtype, target), []).append((place, lazy))
    for (kind, saved, target), found in kinds.items():
        if kind == "widened" and saved in _INTEGERS and target in _FLOATS:
            yield grouped(
                "dtype-widened",
                "warning",
                f"{len(found)} stored as {saved} become {target}: the numbers as they are",
                [place for place, _ in found],
                why="weights are whole numbers where they were quantised: without the scale that "
                "belongs to them they are other weights",
                fix="quantised: multiply them by their scale before they are restored, or save the "
                "weights before they are quantised",
                saved=saved,
                expected=target,
            )
            continue
        if kind == "widened":
            yield grouped(
                "dtype-widened",
                "note",
                f"{len(found)} stored as {saved} become {target}, without loss",
                [place for place, _ in found],
                saved=saved,
                expected=target,
            )
            continue
        dtype = dtype_named(target)
        if dtype and all(_keeps_values(z, dtype, p) for p, z in found):
            yield grouped(
                f"dtype-{kind}",
                "note",
                f"{len(found)} stored as {saved} become {target}; every value stays what it is",
                [place for place, _ in found],
                saved=saved,
                expected=target,
            )
            continue
        places = [place for place, _ in found]
        if measured:
            places = [
                f"{p}: {largest_change(z, dtype, p) if dtype else 'not known here'}"
                for p, z in found
            ]
        yield grouped(
            f"dtype-{kind}",
            "error",
            f"{saved} does not fit into {target}",
            places,
            why="copying would round, overflow or drop values without a word",
            fix=f'build the target as {saved}, or accept it: allow=["dtype-{kind}"]',
            saved=saved,
            expected=target,
        )
