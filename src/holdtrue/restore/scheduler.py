"""Fits the saved state of a learning rate scheduler to the optimizer that it drives here.

A scheduler keeps lists with one value for each parameter group, in the order of the saved groups.
torch's `load_state_dict` takes them by position, and would put one group's rates on another.
"""

import inspect
import types
from collections.abc import Callable
from typing import Any

from msgspec.structs import replace
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from holdtrue.doctor.amounts import counted
from holdtrue.findings import Finding, grouped
from holdtrue.records.revival import Revival
from holdtrue.restore.conflicts import from_code, plan_replay
from holdtrue.restore.plan import Plan

_PER_GROUP = ("lrs", "_last_lr", "momentums", "lr_lambdas")  # how the names of such lists end
# Arguments that move on with every step, and settings that go by another name than their argument.
_PROGRESS = frozenset({"last_epoch", "optimizer"})
_DERIVED = frozenset({"total_size", "step_ratio"})


Action = Callable[[], Callable[[], None]]


def fit_scheduler(where: str, revival: Revival, plan: Plan) -> Revival | Action:
    """The revival with its state in the order of the groups here; other objects' as they are.

    Where the settings of the code win, an action that brings its own schedule to the saved step.
    """
    live, state = revival.target, revival.state
    if not isinstance(live, LRScheduler) or revival.via != "state_dict":
        return revival
    groups = getattr(live, "optimizer", None) and live.optimizer.param_groups
    if not isinstance(state, dict) or not groups:
        return revival
    settings, functions = _compare(where, state, live)
    if plan.choice.code_wins:
        replay = plan_replay(where, revival, settings, plan)
        if settings:
            plan.found(from_code(settings))
        if replay is not None:
            return replay
        state = _with_settings(state, live)
    state = _arrange(where, state, live, _order(live, state, plan), plan)
    settings, functions = _compare(where, state, live)
    if settings:
        plan.found(_settings(settings))
    if functions:
        plan.found(_functions(functions))
    _compare_rates(where, state, live, plan)
    return replace(revival, state=state)


def _order(live: Any, state: dict[str, Any], plan: Plan) -> list[int] | None:
    """For each group here, the saved group that it is; None where there is no such order."""
    here = len(live.optimizer.param_groups)
    matched = plan.groups.get(id(live.optimizer))
    if matched is None:  # the optimizer is no target: nothing is known but how many groups it has
        counts = {len(v) for k, v in state.items() if _per_group(k, v)}
        return list(range(here)) if counts <= {here} else None
    order = [sources[0] for sources in matched.sources if len(sources) == 1]
    return order if sorted(order) == list(range(matched.saved)) and len(order) == here else None


def _per_group(key: Any, value: Any) -> bool:
    return isinstance(key, str) and key.endswith(_PER_GROUP) and isinstance(value, list)


def _has_groups(state: Any) -> bool:
    return isinstance(state, dict) and (
        any(_per_group(k, v) for k, v in state.items()) or any(map(_has_groups, _nested(state)))
    )


def _nested(state: dict[str, Any]) -> list[Any]:
    nested = state.get("_schedulers")
    return nested if isinstance(nested, list) else []


def _arrange(
    where: str, state: dict[str, Any], live: Any, order: list[int] | None, plan: Plan
) -> dict[str, Any]:
    """The state with each per-group list in order; without an order, with the lists from here."""
    if order is None and _has_groups(state):
        plan.found(_groups_changed(where, live))
    return _arranged(state, live, live.state_dict(), order)


def _arranged(
    state: dict[str, Any], live: Any, here: dict[str, Any], order: list[int] | None
) -> dict[str, Any]:
    made = dict(state)
    for key, value in state.items():
        if _per_group(key, value):
            if order is None:
                made[key] = here.get(key, value)
            elif len(value) == len(order):
                made[key] = [value[i] for i in order]
    inner = getattr(live, "_schedulers", None)
    nested = _nested(state)
    if isinstance(inner, list | tuple) and nested:
        made["_schedulers"] = [
            _arranged(s, i, i.state_dict(), order)
            if isinstance(s, dict) and isinstance(i, LRScheduler) and i.optimizer is live.optimizer
            else s
            for s, i in zip(nested, inner, strict=False)
        ] + nested[len(inner) :]
    return made


def _compare(where: str, state: dict[str, Any], live: Any) -> tuple[list[str], list[str]]:
    """Settings that differ, and functions that are not in the file, nested schedulers' as well."""
    settings, functions = [], []
    names = set(inspect.signature(type(live).__init__).parameters) - _PROGRESS | _DERIVED
    for key, saved in state.items():
        here = vars(live).get(key)
        name = key.lstrip("_")
        given = name in names or (_per_group(key, saved) and name.removesuffix("s") in names)
        if key == "lr_lambdas" and isinstance(saved, list) and isinstance(here, list):
            functions += [
                f"{where}.{key}[{i}]"
                for i, (s, h) in enumerate(zip(saved, here, strict=False))
                if s is None and isinstance(h, types.FunctionType)
            ]
        elif given and key in vars(live) and not _alike(saved, here):
            settings.append(f"{where}.{name}: saved {saved!r}, here {here!r}")
    pairs = zip(_nested(state), getattr(live, "_schedulers", ()), strict=False)
    for i, (inner, scheduler) in enumerate(pairs):
        if isinstance(inner, dict) and isinstance(scheduler, LRScheduler):
            more = _compare(f"{where}._schedulers[{i}]", inner, scheduler)
            settings += more[0]
            functions += more[1]
    return settings, functions


def _with_settings(state: dict[str, Any], live: Any) -> dict[str, Any]:
    """The state of a schedule that goes by metrics, with the settings of the code."""
    names = set(inspect.signature(type(live).__init__).parameters) - _PROGRESS
    here = vars(live)
    return {k: here[k] if k in names and k in here else v for k, v in state.items()}


def _alike(saved: Any, here: Any) -> bool:
    plain = (bool, int, float, str, type(None), list, tuple, dict)
    if not isinstance(saved, plain) or not isinstance(here, plain):
        return True  # objects and functions are not settings that could be shown side by side
    if isinstance(saved, list | tuple) and isinstance(here, list | tuple):
        return len(saved) == len(here) and all(map(_alike, saved, here))
    return bool(saved == here)


def _compare_rates(where: str, state: dict[str, Any], live: Any, plan: Plan) -> None:
    """The rates the scheduler goes on from, beside those its optimizer will have."""
    rates, matched = state.get("_last_lr"), plan.groups.get(id(live.optimizer))
    groups = live.optimizer.param_groups
    if not isinstance(rates, list) or len(rates) != len(groups):
        return
    if not all(
        isinstance(r, int | float) or (isinstance(r, Tensor) and r.numel() == 1) for r in rates
    ):
        return
    # Rates that come from the same file differ only if they did when it was saved.
    settled = matched.settled if matched else [False] * len(groups)
    differing = [
        f"{where}._last_lr[{i}]: saved {float(rate)!r}, here {float(group['lr'])!r}"
        for i, (rate, group, known) in enumerate(zip(rates, groups, settled, strict=True))
        if not known and float(rate) != float(group["lr"])
    ]
    if differing:
        plan.found(
            grouped(
                "learning-rate-differs",
                "warning",
                "the scheduler goes on from other learning rates than its optimizer has",
                differing,
                why="the optimizer keeps the rates it has here, and many schedulers compute the "
                "next rate from the last",
                fix="restore the optimizer in the same restore()",
            )
        )


def _groups_changed(where: str, live: Any) -> Finding:
    return Finding(
        code="scheduler-groups-changed",
        severity="error",
        where=where,
        what="the parameter groups were split, merged or added since; this scheduler has one value "
        "for each saved group",
        why="no order of the saved values fits the groups here, and by position one group would "
        "get the rates of another",
        fix="build the groups as they were saved, or keep the values the scheduler has here: "
        'allow=["scheduler-groups-changed"]',
        expected=counted(len(live.optimizer.param_groups), "group"),
    )


def _settings(differing: list[str]) -> Finding:
    return grouped(
        "scheduler-settings-from-file",
        "warning",
        "settings of the scheduler differ; those of the file are used",
        differing,
        why="the code was changed since the save; a resume goes on as it was",
        fix='to use the code\'s: on_conflict="code"',
    )


def _functions(places: list[str]) -> Finding:
    return grouped(
        "scheduler-functions",
        "note",
        "functions of the scheduler are not in the file; those of the code are used",
        places,
        why="torch keeps the attributes of callable objects, and nothing of plain functions",
    )
