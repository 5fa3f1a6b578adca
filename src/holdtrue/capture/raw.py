"""Tensors as raw bytes, whatever their dtype, without touching a single bit.

Arithmetic copies may change NaN payloads or are missing for some dtypes (sub-byte integers,
quantised ones), so bytes are reached through an integer tensor over the same storage.
"""

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

_PLAIN = {torch.Tensor, torch.nn.Parameter}
# NumPy has these too, and gives the very memory.
_NUMBERS = {torch.float64, torch.float32, torch.float16, torch.uint8, torch.int8, torch.int16,
            torch.int32, torch.int64, torch.bool}  # fmt: skip
_BY_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def dtype_named(name: str) -> torch.dtype | None:
    """None where this torch has no such dtype."""
    found = getattr(torch, name, None)
    return found if isinstance(found, torch.dtype) else None


def raw_view(tensor: Tensor) -> Tensor:
    """An integer tensor of the same shape over the same memory; complex128 gains a last dim of 2.

    Quantised sub-byte tensors come as their packed bytes, one-dimensional.
    """
    tensor = tensor.detach().as_subclass(Tensor)
    storage = tensor.untyped_storage()
    size, stride, offset = tensor.size(), tensor.stride(), tensor.storage_offset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # deprecations of quantised dtypes
        if tensor.dtype in (torch.quint4x2, torch.quint2x4):
            return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
        if tensor.itemsize == 16:
            pairs = torch.empty(0, dtype=torch.int64, device=tensor.device)
            return pairs.set_(storage, 2 * offset, (*size, 2), (*(2 * s for s in stride), 1))
        view = torch.empty(0, dtype=_BY_SIZE[tensor.itemsize], device=tensor.device)
        return view.set_(storage, offset, size, stride)


def raw_bytes(tensor: Tensor) -> memoryview:
    """The bytes in C order; without a copy where the tensor is on the CPU and C-contiguous."""
    common = type(tensor) in _PLAIN and tensor.dtype in _NUMBERS and tensor.is_cpu
    strided = common and tensor.layout is torch.strided and not tensor.is_nested
    if strided and tensor.is_contiguous() and not tensor.is_neg():
        array: np.ndarray[Any, Any] = tensor.detach().numpy()  # the memory itself
        return array.reshape(-1).view(np.uint8).data
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.resolve_conj().resolve_neg()
    view = raw_view(tensor)
    if view.device.type != "cpu":
        view = view.cpu()
    flat = np.ascontiguousarray(view.numpy()).reshape(-1).view(np.uint8)
    return flat.data


def stored_bytes(tensor: Tensor) -> int:
    """How many bytes `raw_bytes` has, without reading any."""
    if tensor.dtype in (torch.quint4x2, torch.quint2x4):
        return tensor.untyped_storage().nbytes()
    return tensor.numel() * tensor.itemsize
