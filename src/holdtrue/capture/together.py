"""Thousands of small tensors copied by one call each for many, in C++ and without the GIL."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from holdtrue.capture.tensors import Source, is_common

# Whose copy is known to be one of bytes; what is not here is copied as integers, one by one.
_DTYPES = {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.uint8, torch.int8,
           torch.int16, torch.int32, torch.int64}  # fmt: skip


def copy_together(sources: Sequence[Any], place: memoryview) -> bool:
    """Copy tensors that lie one behind the other in `place`, whose sizes add up to its own.

    False, and nothing is copied, where one is not a plain tensor on the CPU in C order as it is
    now, or has another size than was planned.
    """
    runs: list[list[Tensor]] = []
    dtype = None
    for source in sources:
        tensor = source.tensor if type(source) is Source else None
        if tensor is None or not _is_plain(tensor, source.nbytes):
            return False
        if not source.nbytes:
            continue
        if tensor.dtype is not dtype:
            dtype = tensor.dtype
            runs.append([])
        runs[-1].append(tensor)
    at = 0
    with torch.no_grad():
        for run in runs:
            flat = [tensor if tensor.dim() == 1 else tensor.view(-1) for tensor in run]
            count = sum(tensor.numel() for tensor in flat)
            out = torch.frombuffer(place, dtype=run[0].dtype, count=count, offset=at)
            if len(flat) == 1:
                out.copy_(flat[0])
            else:
                torch.cat(flat, out=out)
            at += count * out.itemsize
    return True


def _is_plain(tensor: Tensor, nbytes: int) -> bool:
    return (
        is_common(tensor)
        and tensor.is_cpu
        and tensor.dtype in _DTYPES
        and tensor.nbytes == nbytes
        and tensor.is_contiguous()
        and not tensor.is_neg()
    )
