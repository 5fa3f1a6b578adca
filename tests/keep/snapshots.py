"""A deep picture of live training state, to show that a failed restore changed nothing."""

import random
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def bits(tensor: Tensor) -> tuple[Any, ...]:
    """Everything of a tensor that a restore could change, its address and version included."""
    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return (
        id(tensor),
        tensor.data_ptr(),
        tensor._version,
        type(tensor),
        tensor.dtype,
        tuple(tensor.shape),
        tensor.stride(),
        tensor.requires_grad,
        data,
    )


def picture(value: Any) -> Any:
    """A value as nested tuples that compare equal only when nothing was changed."""
    if isinstance(value, Tensor):
        return bits(value)
    if isinstance(value, nn.Module):
        return tuple(
            (
                name,
                id(m),
                m.training,
                tuple((k, picture(t)) for k, t in m._parameters.items()),
                tuple((k, picture(t)) for k, t in m._buffers.items()),
                _attributes(m, _BOOKKEEPING),
            )
            for name, m in value.named_modules(remove_duplicate=False)
        )
    if isinstance(value, torch.optim.Optimizer):
        return (
            id(value),
            id(value.param_groups),
            id(value.state),
            tuple((id(g), picture(g)) for g in value.param_groups),
            tuple((id(p), picture(s)) for p, s in value.state.items()),
            tuple(sorted(vars(value))),
        )
    if isinstance(value, np.ndarray):
        return (id(value), value.dtype.str, value.shape, value.tobytes())
    if isinstance(value, torch.Generator):
        return (id(value), value.get_state().numpy().tobytes())
    if isinstance(value, Mapping):
        return (id(value), tuple((repr(k), picture(v)) for k, v in value.items()))
    if isinstance(value, list | tuple):
        return (type(value), id(value), tuple(picture(v) for v in value))
    if isinstance(value, set | frozenset):
        return (type(value), id(value), frozenset(value))
    if type(value).__module__ in ("builtins", "torch"):
        return repr(value)
    if hasattr(value, "__dict__"):
        return (id(value), _attributes(value, {"optimizer"}))
    return repr(value)


def _attributes(value: Any, without: Collection[str]) -> tuple[Any, ...]:
    return tuple((k, picture(v)) for k, v in vars(value).items() if k not in without)


def first_difference(a: Any, b: Any, path: str = "") -> str:
    """Where two pictures differ, in a few words; empty where they do not."""
    if isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b):
        found = (first_difference(x, y, f"{path}[{i}]") for i, (x, y) in enumerate(zip(a, b)))
        return next((text for text in found if text), "")
    return "" if a == b else f"{path}: {a!r:.200} became {b!r:.200}"


_BOOKKEEPING = frozenset(vars(nn.Module()))


def random_states() -> tuple[Any, ...]:
    numpy = np.random.get_state()
    return (
        random.getstate(),
        torch.get_rng_state().numpy().tobytes(),
        (numpy[0], numpy[1].tobytes(), *numpy[2:]),
    )


def everything(**targets: Any) -> Any:
    """All targets and the global random states."""
    return tuple((name, picture(value)) for name, value in targets.items()), random_states()
