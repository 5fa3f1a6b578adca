"""Where the settings of the code and of the file differ: which are used, and what is said of it."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from holdtrue.findings import Finding, grouped
from holdtrue.records.revival import Revival
from holdtrue.restore.memento import remember
from holdtrue.restore.plan import Plan

# What schedulers of learning rates change in a group, beside the settings they were given.
RATES = frozenset({"lr", "initial_lr", "max_lr", "min_lr", "swa_lr"})
MOMENTA = frozenset({"momentum", "betas", "max_momentum", "base_momentum"})


def same(a: Any, b: Any) -> bool:
    """Equal settings: numbers and tensors by value, whatever else a file holds by identity."""
    if not all(isinstance(v, Tensor | bool | int | float) for v in (a, b)):
        return a is b or (not isinstance(a, Tensor) and not isinstance(b, Tensor) and _equal(a, b))
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return bool(torch.as_tensor(a, device="cpu").equal(torch.as_tensor(b, device="cpu")))
    return bool(a == b)


def _equal(a: Any, b: Any) -> bool:
    try:
        return bool(a == b)
    except (ValueError, RecursionError):  # arrays, whose answer is one too; lists in themselves
        return False


def differing_settings(saved: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """The settings of a group that differ because the code did, not because time has passed."""
    cycled = "max_momentum" in saved or "max_momentum" in here
    moving = RATES | MOMENTA if cycled else RATES
    return [k for k, v in saved.items() if k in here and k not in moving and not same(here[k], v)]


def base_rate(group: Mapping[str, Any]) -> Any:
    """The learning rate that a schedule began from, where there is one; else the one in use."""
    return group.get("initial_lr", group.get("lr"))


def moving_values(group: Mapping[str, Any]) -> dict[str, Any]:
    """What schedulers change in a group, as it is now."""
    found = {k: v for k, v in group.items() if k in RATES | MOMENTA}
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in found.items()}


def steps_done(state: Any) -> int | None:
    """How often a scheduler has stepped, from its state or its attributes."""
    done = state.get("last_epoch")
    if isinstance(done, int) and not isinstance(done, bool):
        return done
    nested = state.get("_schedulers") or ()
    inner = [s if isinstance(s, dict) else vars(s) for s in nested]
    return steps_done(inner[0]) if inner else None


def can_replay(live: Any) -> bool:
    """False for schedules that depend on more than the number of steps."""
    inner = getattr(live, "_schedulers", ())
    return not isinstance(live, ReduceLROnPlateau) and all(map(can_replay, inner))


def plan_replay(
    where: str, revival: Revival, differing: list[str], plan: Plan
) -> Callable[[], Callable[[], None]] | None:
    """How to bring the code's own schedule to the saved step; None where the file's is taken."""
    live: Any = revival.target
    matched = plan.groups.get(id(live.optimizer))
    if not (differing or (matched and matched.base_changed)) or not can_replay(live):
        return None
    done, begun = steps_done(revival.state), steps_done(vars(live))
    if done is None or begun is None or begun > done:
        plan.found(_stepped_already(where, done, begun))
        return None
    groups = live.optimizer.param_groups
    here = matched.here if matched else [moving_values(group) for group in groups]
    return _replay(revival, live, groups, here, done - begun)


def _replay(
    revival: Revival,
    live: LRScheduler,
    groups: list[dict[str, Any]],
    here: list[dict[str, Any]],
    steps: int,
) -> Callable[[], Callable[[], None]]:
    def do() -> Callable[[], None]:
        back, before = remember(revival), [dict(group) for group in groups]

        def undo() -> None:
            back()
            for group, old in zip(groups, before, strict=True):
                group.clear()
                group.update(old)

        try:
            for group, values in zip(groups, here, strict=True):
                group.update(values)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the optimizer has stepped: in the file
                for _ in range(steps):
                    live.step()
        except BaseException:
            undo()
            raise
        return undo

    return do


def from_code(differing: list[str]) -> Finding:
    return grouped(
        "settings-from-code",
        "warning",
        "settings differ; those of the code are used",
        differing,
        why='on_conflict="code": moments and counters are those of the file, and schedules are '
        "brought to the saved step as if they had been these from the beginning",
        fix='to go on with the saved ones: on_conflict="file"',
    )


def _stepped_already(where: str, done: int | None, begun: int | None) -> Finding:
    return Finding(
        code="scheduler-stepped-already",
        severity="error",
        where=where,
        what="the code's schedule cannot be brought to the saved step",
        why="it has gone past that step, or does not count its steps",
        fix='build optimizer and scheduler anew before resuming, or on_conflict="file"',
        saved=f"step {done}",
        expected=f"step {begun}",
    )
