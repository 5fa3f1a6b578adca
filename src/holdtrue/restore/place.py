"""Plans how one stored tensor gets into one live tensor, keeping the live one's identity."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from holdtrue.capture.module import Entry
from holdtrue.capture.raw import dtype_name, dtype_named
from holdtrue.findings import Finding
from holdtrue.formats.view import LazyTensor
from holdtrue.records.dtypes import DTYPES
from holdtrue.records.trust import class_name
from holdtrue.restore.fresh import Fresh, build_tensor
from holdtrue.restore.plan import Action, Copy, Plan

Undo = Callable[[], None]


def plan_tensor(where: str, key: str, entry: Entry, plan: Plan, tensors: Fresh) -> None:
    """Fill the entry's tensor in place; where a layout cannot be, exchange what it holds."""
    lazy, tensor = tensors.tensors[key], entry.tensor
    if torch.nn.parameter.is_lazy(tensor):
        plan.actions.append(Action(where, _materialize(tensor, lazy)))
        plan.copies.append(Copy(lazy, tensor))
        return
    if lazy.layout == "subclass" or hasattr(tensor, "__tensor_flatten__"):
        _plan_wrapper(where, lazy, tensor, plan)
        return
    plain = lazy.layout == "strided" and tensor.layout is torch.strided and not tensor.is_quantized
    if plain:
        plan.copies.append(Copy(lazy, tensor, cast=dtype_name(tensor.dtype) != lazy.dtype))
        return
    # Sparse and quantised tensors hold more than numbers (indices, scales): they are exchanged.
    made = build_tensor(lazy, tensors.agreed, where)
    if made.layout is not tensor.layout or made.is_quantized != tensor.is_quantized:
        plan.found(_other_layout(where, lazy, tensor))
        return
    plan.actions.append(Action(where, _exchange(entry, made.to(tensor.device))))


def _plan_wrapper(where: str, lazy: LazyTensor, tensor: Any, plan: Plan) -> None:
    names, _ = tensor.__tensor_flatten__() if hasattr(tensor, "__tensor_flatten__") else ([], None)
    cls = class_name(type(tensor))
    if lazy.layout != "subclass" or cls != lazy.class_name or set(names) != set(lazy.components):
        plan.found(_other_layout(where, lazy, tensor))
        return
    for name in names:
        inner, saved = getattr(tensor, name), lazy.components[name]
        if tuple(inner.shape) != saved.shape or dtype_name(inner.dtype) != saved.dtype:
            plan.found(_other_layout(f"{where}#{name}", saved, inner))
        elif saved.layout == "subclass":
            _plan_wrapper(f"{where}#{name}", saved, inner, plan)
        else:
            plan.copies.append(Copy(saved, inner))


def _materialize(tensor: Any, lazy: LazyTensor) -> Callable[[], Undo]:
    def do() -> Undo:
        cls, data, grad = type(tensor), tensor.data, tensor.requires_grad
        tensor.materialize(lazy.shape, dtype=dtype_named(lazy.dtype))
        tensor.requires_grad_(grad)

        def undo() -> None:
            tensor.data = data
            tensor.__class__ = cls

        return undo

    return do


def _exchange(entry: Entry, made: Tensor) -> Callable[[], Undo]:
    def do() -> Undo:
        if entry.is_parameter:
            before = entry.tensor.data
            entry.tensor.data = made.detach()

            def undo() -> None:
                entry.tensor.data = before
        else:
            entry.owner._buffers[entry.attribute] = made

            def undo() -> None:
                entry.owner._buffers[entry.attribute] = entry.tensor

        return undo

    return do


def _other_layout(where: str, lazy: LazyTensor, tensor: Tensor) -> Finding:
    kind = lazy.class_name or lazy.layout
    here = "quantized" if tensor.is_quantized else str(tensor.layout).removeprefix("torch.")
    if type(tensor) not in (Tensor, torch.nn.Parameter, torch.nn.Buffer):
        here = class_name(type(tensor))
    known = lazy.dtype in DTYPES
    return Finding(
        code="layout-mismatch",
        severity="error",
        where=where,
        what="the tensor is laid out another way here",
        why="the model was quantised, sparsified or wrapped before one of the two, not the other"
        if known
        else "its dtype is not known here",
        fix="prepare the target in the same way before restoring",
        saved=f"{kind}, {lazy.dtype} {list(lazy.shape)}",
        expected=f"{here}, {dtype_name(tensor.dtype)} {list(tensor.shape)}",
    )
