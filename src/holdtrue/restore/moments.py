"""Places the state of one parameter: which device and dtype each tensor of it gets."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from holdtrue.capture.raw import dtype_name, dtype_named
from holdtrue.formats.view import LazyTensor
from holdtrue.records.parts import OptimizerState
from holdtrue.records.values import TAG
from holdtrue.restore.fresh import Fresh
from holdtrue.restore.plan import Copy, Plan
from holdtrue.restore.value import decode_into


class Place:
    """Where a parameter's state is to live: its device and dtype rules."""

    def __init__(
        self,
        parameter: Tensor,
        group: Mapping[str, Any],
        saved_dtype: str | None,
        plan: Plan,
        tensors: Fresh,
        differing: list[tuple[str, LazyTensor, str]],
    ) -> None:
        self.parameter, self.group, self.plan, self.tensors = parameter, group, plan, tensors
        self.saved_dtype, self.differing = saved_dtype, differing

    def tensor(self, key: str, name: str, live: Any) -> Any:
        """The tensor to hold a stored one: the live one if it fits, else a new one."""
        lazy = self.tensors.tensors[key]
        if lazy.layout != "strided" or lazy.class_name or lazy.numpy:
            made = self.tensors(key)
            return made.to(self.parameter.device) if isinstance(made, Tensor) else made
        dtype, device = self._dtype(lazy, name), self._device(lazy, name)
        if dtype is not None and dtype_name(dtype) != lazy.dtype:
            self.differing.append((key, lazy, dtype_name(dtype)))
        fits = (
            isinstance(live, Tensor)
            and type(live) is Tensor
            and tuple(live.shape) == lazy.shape
            and live.dtype == dtype
            and live.device == device
            and live.stride() == lazy.stride
        )
        if not fits:
            live = torch.empty_strided(lazy.shape, lazy.stride, dtype=dtype, device=device)
        self.plan.copies.append(Copy(lazy, live, cast=dtype_name(live.dtype) != lazy.dtype))
        return live

    def _dtype(self, lazy: LazyTensor, name: str) -> torch.dtype | None:
        # A count rounded to bfloat16 would stand still; torch never casts it either.
        if name == "step":
            return dtype_named(lazy.dtype)
        # State in the parameter's own dtype follows the parameter; state in another (float32
        # moments of bfloat16 weights) is kept as it is. torch would cast both.
        if lazy.dtype == self.saved_dtype and self.parameter.is_floating_point():
            return self.parameter.dtype
        return dtype_named(lazy.dtype)

    def _device(self, lazy: LazyTensor, name: str) -> torch.device:
        # As torch.optim.Optimizer._process_value_according_to_param_policy
        if name == "step" and not (self.group.get("capturable") or self.group.get("fused")):
            return torch.device("cpu")
        return self.parameter.device


def without_values(state: OptimizerState, tensors: Mapping[str, LazyTensor]) -> list[str]:
    """The tensors of an optimizer that the file has the shape of and no numbers."""
    found: dict[str, None] = {}
    pending: list[Any] = [state.state, state.shared, *(group.settings for group in state.groups)]
    while pending:
        node = pending.pop()
        if isinstance(node, dict) and node.get(TAG) == "tensor":
            lazy = tensors.get(str(node.get("v")))
            if lazy is not None and lazy.layout == "meta":
                found[str(node["v"])] = None
        elif isinstance(node, dict):
            pending += node.values()
        elif isinstance(node, list):
            pending += node
    return sorted(found)


def decode_state(node: Any, live: Any, name: str, at: Place) -> Any:
    if not isinstance(node, dict) or TAG in node:
        return decode_into(node, at.tensors, live, name, at.plan)
    state: dict[Any, Any] = {}
    for key, item in node.items():
        peer = live.get(key) if isinstance(live, dict) else None
        if isinstance(item, dict) and item.get(TAG) == "tensor":
            state[key] = at.tensor(item["v"], key, peer)
        else:
            value = decode_into(item, at.tensors, peer, f"{name}/{key}", at.plan)
            state[key] = _to_device(value, at.parameter.device)
    return state


def _to_device(value: Any, device: torch.device, above: frozenset[int] = frozenset()) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if type(value) in (list, tuple) and id(value) not in above:  # a list may contain itself
        inside = above | {id(value)}
        return type(value)(_to_device(v, device, inside) for v in value)
    return value
