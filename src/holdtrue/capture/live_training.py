"""The live optimizers, schedulers and models as the doctor looks at them: data only."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from holdtrue.capture.module import entries
from holdtrue.capture.optimizer import GROUP_KEYS
from holdtrue.doctor.live_training import (
    EXECUTION,
    LiveGroup,
    LiveModel,
    LiveOptimizer,
    LiveParameter,
    LiveScheduler,
    LiveTraining,
)
from holdtrue.records.trust import class_name

_PROGRESS = frozenset({"last_epoch", "optimizer", "verbose"})
# What a scheduler makes of an argument under another name.
_DERIVED = frozenset({"total_size", "step_ratio", "step_size_up", "step_size_down", "total_steps"})


def live_training(targets: Mapping[str, Any]) -> LiveTraining:
    """The facts of what the caller wants to go on with; nothing of it is changed."""
    models = {name: t for name, t in targets.items() if isinstance(t, nn.Module)}
    optimizers = {name: o for name, t in targets.items() if (o := _optimizer(t)) is not None}
    names = {id(e.tensor): e.name for m in models.values() for e in entries(m) if e.is_parameter}
    schedulers = {name: t for name, t in targets.items() if _is_scheduler(t)}
    scalers = tuple(name for name, t in targets.items() if _is_scaler(t))
    loaders = tuple(name for name, t in targets.items() if _is_loader(t))
    known = {*models, *optimizers, *schedulers, *scalers, *loaders}
    return LiveTraining(
        models=tuple(_model(name, model) for name, model in models.items()),
        optimizers=tuple(_live(name, o, names, optimizers) for name, o in optimizers.items()),
        schedulers=tuple(_scheduler(name, s, optimizers) for name, s in schedulers.items()),
        scalers=scalers,
        loaders=loaders,
        others={n: class_name(type(t)) for n, t in targets.items() if n not in known},
    )


def _optimizer(target: Any) -> Optimizer | None:
    """The optimizer, also where a wrapper (Accelerate, Fabric) holds it."""
    for _ in range(4):
        if isinstance(target, Optimizer) and "optimizer" not in vars(target):
            return target
        inner = getattr(target, "optimizer", None)
        if inner is None or _is_scheduler(target):
            break
        target = inner
    return target if isinstance(target, Optimizer) else None


def _is_scheduler(target: Any) -> bool:
    if isinstance(target, LRScheduler):
        return True
    own = all(hasattr(target, name) for name in ("step", "state_dict", "load_state_dict"))
    return own and hasattr(target, "optimizer") and hasattr(target, "last_epoch")


def _is_scaler(target: Any) -> bool:
    return any("GradScaler" in cls.__name__ for cls in type(target).__mro__)


def _is_loader(target: Any) -> bool:
    return isinstance(target, DataLoader) or "Loader" in type(target).__name__


def _model(target: str, model: nn.Module) -> LiveModel:
    own = [entry for entry in entries(model) if entry.is_parameter]
    first = {id(e.tensor): e for e in reversed(own)}  # tied ones under their first name
    kept = [e for e in own if first[id(e.tensor)] is e]
    return LiveModel(
        target=target,
        shapes={e.name: _shape(e.tensor) for e in kept},
        trainable=frozenset(e.name for e in kept if e.tensor.requires_grad),
    )


def _shape(tensor: Tensor) -> tuple[int, ...] | None:
    return None if nn.parameter.is_lazy(tensor) else tuple(tensor.shape)


def _live(
    target: str, optimizer: Optimizer, names: Mapping[int, str], all_of: Mapping[str, Optimizer]
) -> LiveOptimizer:
    return LiveOptimizer(
        target=target,
        class_name=class_name(type(optimizer)),
        groups=tuple(_group(group, names) for group in optimizer.param_groups),
        defaults=frozenset(map(str, getattr(optimizer, "defaults", {}))),
        call=_call(optimizer),
        step=_step(optimizer),
        shares=tuple(
            name
            for name, other in all_of.items()
            if other is not optimizer and _memory(other) & _memory(optimizer)
        ),
    )


def _group(group: Mapping[str, Any], names: Mapping[int, str]) -> LiveGroup:
    return LiveGroup(
        parameters=tuple(
            LiveParameter(name=names.get(id(p)), shape=_shape(p), device=p.device.type)
            for p in group["params"]
        ),
        settings={str(k): _plain(v) for k, v in group.items() if k not in GROUP_KEYS},
    )


def _plain(value: Any) -> Any:
    """Numbers as they are; a tensor of one element, where it can be read, as its number."""
    if isinstance(value, Tensor) and value.numel() == 1 and value.device.type != "meta":
        return value.detach().item()
    if isinstance(value, tuple | list):
        return type(value)(_plain(v) for v in value) if type(value) in (tuple, list) else value
    return value


def _memory(optimizer: Optimizer) -> set[int]:
    """Where the moments lie: addresses, which only what is shared has in common."""
    return {
        value.data_ptr()
        for state in optimizer.state.values()
        if isinstance(state, dict)
        for value in state.values()
        if isinstance(value, Tensor) and value.numel() and value.device.type != "meta"
    } - {0}


def _step(optimizer: Optimizer) -> float | None:
    """The most steps that a parameter took; None where it does not count them."""
    states = [s for s in optimizer.state.values() if isinstance(s, dict)]
    counts = [_plain(state["step"]) for state in states if "step" in state]
    return max((float(c) for c in counts if isinstance(c, int | float)), default=None)


def _call(optimizer: Optimizer) -> str:
    """A call that makes an optimizer like this one, "{}" in place of the parameters."""
    cls = type(optimizer)
    if getattr(torch.optim, cls.__name__, None) is not cls or len(optimizer.param_groups) != 1:
        return ""
    taken = inspect.signature(cls.__init__).parameters
    group = {k: _plain(v) for k, v in optimizer.param_groups[0].items()}
    group["lr"] = group.get("initial_lr", group.get("lr"))
    settings = [
        f"{name}={group[name]!r}"
        for name in taken
        if name in group
        and name not in EXECUTION
        and isinstance(group[name], bool | int | float | tuple)
        and group[name] != taken[name].default
    ]
    return f"torch.optim.{cls.__name__}({', '.join(['{}', *settings])})"


def _scheduler(target: str, scheduler: Any, optimizers: Mapping[str, Optimizer]) -> LiveScheduler:
    own = _optimizer(getattr(scheduler, "optimizer", None))
    groups = own.param_groups if own is not None else []
    taken = set(inspect.signature(type(scheduler).__init__).parameters) - _PROGRESS | _DERIVED
    state = scheduler.state_dict()
    return LiveScheduler(
        target=target,
        class_name=class_name(type(scheduler)),
        state={str(k): _plain(v) for k, v in state.items()} if isinstance(state, dict) else {},
        given=frozenset(taken),
        groups=len(groups),
        rates=tuple(float(_plain(g["lr"])) for g in groups),
        optimizer=next((name for name, o in optimizers.items() if o is own), None),
    )
