"""Thousands of small tensors copied by one call each for many, in C++ and without the GIL."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from holdtrue.capture.tensors import PLAIN, Source

# Whose copy is known to be one of bytes; what is not here is copied as integers, one by one.
_DTYPES = {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.uint8, torch.int8,
           torch.int16, torch.int32, torch.int64}  # fmt: skip
_tensor: Any = Tensor


def copy_together(sources: Sequence[Any], place: memoryview) -> bool:
    """Copy tensors that lie one behind the other in `place`, whose sizes add up to its own.

    False, and nothing is copied, where one is not a plain tensor on the CPU in C order as it is
    now, or has another size than was planned.
    """
    if not set(map(type, sources)) <= {Source}:
        return False
    tensors = [source.tensor for source in sources]
    if not _are_plain(tensors, [source.nbytes for source in sources]):
        return False
    at = 0
    with torch.no_grad():
        for dtype, run in groupby(filter(Tensor.numel, tensors), _tensor.dtype.__get__):
            same = list(run)
            count = sum(map(Tensor.numel, same))
            out = torch.frombuffer(place, dtype=dtype, count=count, offset=at)
            at += count * out.itemsize
            _join(same, out)
    return True


def _join(tensors: list[Tensor], out: Tensor) -> None:
    """One behind the other. A view of each costs more than its copy: none is made of tensors whose
    rows are alike, as those of a stack of equal layers are."""
    rows = {shape[1:] for shape in set(map(_tensor.shape.__get__, tensors))}
    if len(rows) == 1 and all(map(Tensor.dim, tensors)):
        torch.cat(tensors, out=out.view(-1, *rows.pop()))
    else:
        torch.cat([tensor.view(-1) for tensor in tensors], out=out)


def _are_plain(tensors: list[Any], sizes: list[int]) -> bool:
    """Asked of all at once, in C: a call of Python for each costs more than the copy, and is made
    while no other thread can go on."""
    if not set(map(type, tensors)) <= PLAIN:
        return False
    return (
        set(map(_tensor.layout.__get__, tensors)) <= {torch.strided}
        and not any(map(_tensor.is_nested.__get__, tensors))
        and all(map(_tensor.is_cpu.__get__, tensors))
        and set(map(_tensor.dtype.__get__, tensors)) <= _DTYPES
        and list(map(_tensor.nbytes.__get__, tensors)) == sizes
        and all(map(Tensor.is_contiguous, tensors))
        and not any(map(Tensor.is_neg, tensors))
    )
