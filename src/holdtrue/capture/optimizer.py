"""What is kept of an optimizer: groups and state by parameter *name*, never by position.

torch's own `state_dict()` numbers the parameters; an order that changed then puts momentum on the
wrong weights without a word.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from holdtrue.capture.tensors import TensorSet
from holdtrue.capture.values import ValueEncoder
from holdtrue.records.parts import GroupState, OptimizerState

# What a group holds beside its settings: kept by us, or the target's own.
GROUP_KEYS = frozenset({"params", "param_names"})


def parameter_names(optimizer: torch.optim.Optimizer, known: Mapping[int, str]) -> list[list[str]]:
    """Names of the parameters of each group; `known` maps id(tensor) to the key of its part."""
    names: list[list[str]] = []
    position = 0
    for group in optimizer.param_groups:
        names.append([known.get(id(p), f"#{position + i}") for i, p in enumerate(group["params"])])
        position += len(group["params"])
    return names


def capture_groups(
    optimizer: torch.optim.Optimizer, names: list[list[str]], into: TensorSet
) -> list[GroupState]:
    """The settings of the groups, whose parameters have these names."""
    groups: list[GroupState] = []
    for i, (group, group_names) in enumerate(zip(optimizer.param_groups, names, strict=True)):
        settings = {k: v for k, v in group.items() if k not in GROUP_KEYS}
        node = ValueEncoder(into).encode_state(settings, f"groups[{i}]")
        groups.append(GroupState(group_names, node))
    return groups


def capture_optimizer(
    optimizer: torch.optim.Optimizer, known: Mapping[int, str], into: TensorSet
) -> OptimizerState:
    """The state of an optimizer part; its tensors go `into` the set."""
    names = parameter_names(optimizer, known)
    groups = capture_groups(optimizer, names, into)
    kept = OptimizerState(groups)
    by_id: dict[int, str] = {}
    for group, group_names in zip(optimizer.param_groups, names, strict=True):
        for parameter, name in zip(group["params"], group_names, strict=True):
            by_id[id(parameter)] = name
            kept.shapes[name] = list(parameter.shape)
            kept.dtypes[name] = str(parameter.dtype).removeprefix("torch.")
    shared: dict[Any, Any] = {}
    owner: Any
    for owner, value in optimizer.state.items():
        if isinstance(owner, Tensor):
            # A tensor that left its group keeps its state under its key among the parts, if any.
            key = by_id.get(id(owner)) or known.get(id(owner))
            if key is not None:
                kept.state[key] = ValueEncoder(into).encode_state(value, key)
        else:
            shared[owner] = value
    if not shared:
        return kept
    node = ValueEncoder(into).encode_state(shared, "shared")
    return OptimizerState(groups, kept.state, node, kept.shapes, kept.dtypes)
