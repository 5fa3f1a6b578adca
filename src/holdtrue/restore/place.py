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
from holdtrue.restore.value import decode_into, equal, short

_COMPRESSED = (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)
Undo = Callable[[], None]


def plan_tensor(where: str, key: str, entry: Entry, plan: Plan, tensors: Fresh) -> None:
    """Fill the entry's tensor in place; where a layout cannot be, exchange what it holds."""
    lazy, tensor = tensors.tensors[key], entry.tensor
    if torch.nn.parameter.is_lazy(tensor):
        plan.actions.append(Action(where, _materialize(tensor, lazy)))
        plan.copies.append(Copy(lazy, tensor))
        return
    if lazy.layout == "subclass" or hasattr(tensor, "__tensor_flatten__"):
        _plan_wrapper(where, lazy, tensor, plan, tensors)
        return
    _plan_attributes(where, lazy, tensor, plan, tensors)
    plain = lazy.layout == "strided" and tensor.layout is torch.strided and not tensor.is_quantized
    if plain and _repeats(tensor) - {i for i, step in enumerate(lazy.stride) if step == 0}:
        plan.found(_memory_shared(where, lazy, tensor))
        return
    if plain:
        plan.copies.append(Copy(lazy, tensor, cast=dtype_name(tensor.dtype) != lazy.dtype))
        return
    # Sparse and quantised tensors hold more than numbers (indices, scales): they are exchanged.
    made = build_tensor(lazy, tensors, where)
    if made.layout is not tensor.layout or made.is_quantized != tensor.is_quantized:
        plan.found(_other_layout(where, lazy, tensor))
        return
    plan.actions.append(Action(where, _exchange(entry, made.to(tensor.device))))


def _repeats(tensor: Tensor) -> set[int]:
    """The dimensions along which every element is the same memory."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return {i for i, (size, step) in enumerate(sizes) if size > 1 and step == 0}


def _plan_attributes(where: str, lazy: LazyTensor, tensor: Any, plan: Plan, tensors: Fresh) -> None:
    """What a plain subclass has beside its numbers."""
    here = class_name(type(tensor))
    if lazy.class_name is not None and lazy.class_name != here:
        plan.found(_other_class(where, lazy.class_name, here))
    elif lazy.state is not None:
        state = decode_into(lazy.state, tensors, dict(vars(tensor)), where, plan)
        plan.actions.append(Action(where, _set_attributes(tensor, state)))


def _set_attributes(tensor: Any, state: dict[str, Any]) -> Callable[[], Undo]:
    def do() -> Undo:
        before = dict(vars(tensor))

        def undo() -> None:
            vars(tensor).clear()
            vars(tensor).update(before)

        vars(tensor).update(state)
        return undo

    return do


def _plan_wrapper(where: str, lazy: LazyTensor, tensor: Any, plan: Plan, tensors: Fresh) -> None:
    flattens = hasattr(tensor, "__tensor_flatten__")
    names, context = tensor.__tensor_flatten__() if flattens else ([], None)
    cls = class_name(type(tensor))
    if lazy.layout != "subclass" or cls != lazy.class_name or set(names) != set(lazy.components):
        plan.found(_other_layout(where, lazy, tensor))
        return
    saved_context = decode_into(lazy.state, tensors, context, where, plan)
    if not equal(saved_context, context):
        plan.found(_other_context(where, saved_context, context))
        return
    for name in names:
        inner, saved = getattr(tensor, name), lazy.components[name]
        if tuple(inner.shape) != saved.shape or dtype_name(inner.dtype) != saved.dtype:
            plan.found(_other_layout(f"{where}#{name}", saved, inner))
        elif saved.layout == "subclass":
            _plan_wrapper(f"{where}#{name}", saved, inner, plan, tensors)
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
        if entry.is_parameter and made.layout in _COMPRESSED:
            # Assigning to .data leaves a compressed tensor's values as they are, without a word.
            other = torch.nn.Parameter(made.detach(), entry.tensor.requires_grad)
            swap: Callable[[Tensor, Tensor], None] = torch.utils.swap_tensors
            swap(entry.tensor, other)
            return lambda: swap(entry.tensor, other)
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


def _memory_shared(where: str, lazy: LazyTensor, tensor: Tensor) -> Finding:
    return Finding(
        code="layout-mismatch",
        severity="error",
        where=where,
        what="elements that were stored apart share one place in memory here",
        why="the target was made by expand(), so it can hold one value where the file has several",
        fix="give the target memory of its own: tensor.expand(…).clone()",
        saved=f"{lazy.dtype} {list(lazy.shape)}, strides {list(lazy.stride)}",
        expected=f"strides {list(tensor.stride())}",
    )


def _other_class(where: str, saved: str, here: str) -> Finding:
    return Finding(
        code="tensor-class-changed",
        severity="warning",
        where=where,
        what="the tensor is of another class here; its numbers are restored, nothing else",
        why="attributes of the saved class have no meaning for this one",
        saved=saved,
        expected=here,
    )


def _other_context(where: str, saved: Any, here: Any) -> Finding:
    return Finding(
        code="layout-mismatch",
        severity="error",
        where=where,
        what="what the tensor subclass holds beside its tensors differs",
        why="it says how the inner tensors are to be read",
        fix="prepare the target in the same way before restoring",
        saved=short(saved),
        expected=short(here),
    )


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
