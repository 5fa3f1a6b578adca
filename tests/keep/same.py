"""Exact equality, the reference of these tests: types, bits, order, sharing of containers."""

import argparse
import dataclasses
import random
import struct
from collections import OrderedDict, defaultdict, deque
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

WIDTHS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(tensor: Tensor) -> bytes:
    """The logical elements in C order, without arithmetic: written apart from the product's own."""
    tensor = tensor.detach()
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.resolve_conj().resolve_neg()
    if tensor.numel() == 0:
        return b""
    size = tensor.element_size()
    memory = bytes(tensor.untyped_storage())
    flat = np.frombuffer(memory, f"V{size}")
    index = np.zeros(tuple(tensor.shape), np.int64) + tensor.storage_offset()
    for axis, (length, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        shape = [1] * tensor.dim()
        shape[axis] = length
        index = index + (np.arange(length) * stride).reshape(shape)
    return flat[index].tobytes()


def same_tensor(a: Tensor, b: Tensor) -> bool:
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and a.requires_grad == b.requires_grad
        and isinstance(a, torch.nn.Parameter) == isinstance(b, torch.nn.Parameter)
        and bits(a) == bits(b)
    )


def same(a: Any, b: Any) -> bool:
    """Equal values of equal types, all the way down. `a` was saved, `b` came back."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return struct.pack("<d", a) == struct.pack("<d", b)
    if isinstance(a, complex):
        return same((a.real, a.imag), (b.real, b.imag))
    if isinstance(a, Tensor):
        return same_tensor(a, b)
    if isinstance(a, np.ndarray):
        order = (a.flags.c_contiguous, a.flags.f_contiguous)
        laid = order == (b.flags.c_contiguous, b.flags.f_contiguous) or order == (False, False)
        return laid and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, np.generic):
        return a.dtype == b.dtype and a.tobytes() == b.tobytes()
    if isinstance(a, (list, tuple, deque)):
        extra = not isinstance(a, deque) or a.maxlen == b.maxlen
        return extra and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict):
        if isinstance(a, defaultdict) and a.default_factory is not b.default_factory:
            return False
        if isinstance(a, OrderedDict) and not same(vars(a), vars(b)):
            return False
        return same(list(a), list(b)) and same(list(a.values()), list(b.values()))
    if isinstance(a, random.Random):
        return a.getstate() == b.getstate()
    if isinstance(a, (np.random.Generator, np.random.RandomState, np.random.BitGenerator)):
        return repr(numpy_state(a)) == repr(numpy_state(b))
    if isinstance(a, torch.Generator):
        return a.device == b.device and torch.equal(a.get_state(), b.get_state())
    if dataclasses.is_dataclass(a):
        fields = dataclasses.fields(a)
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields)
    if isinstance(a, slice):
        return same((a.start, a.stop, a.step), (b.start, b.stop, b.step))
    if isinstance(a, (argparse.Namespace, SimpleNamespace)):
        return same(vars(a), vars(b))
    if isinstance(a, Decimal):
        return str(a) == str(b)  # a signalling NaN refuses to be compared
    return bool(a == b or (a != a and b != b))


def numpy_state(value: Any) -> Any:
    if isinstance(value, np.random.RandomState):
        return value.get_state(legacy=False)
    return getattr(value, "bit_generator", value).state
