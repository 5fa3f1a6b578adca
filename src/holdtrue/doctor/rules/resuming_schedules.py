"""Saved schedulers and scalers beside the live ones that are to go on from them."""

from collections.abc import Iterator
from typing import Any

from holdtrue.doctor.amounts import counted
from holdtrue.doctor.live_training import LiveScheduler
from holdtrue.doctor.optimizer_match import alike, pair, plain_settings
from holdtrue.doctor.subjects import Resuming
from holdtrue.doctor.training_state import SavedScheduler, scheduler_class
from holdtrue.findings import Finding, several

_SINCE = frozenset({"verbose", "_is_initial", "_get_lr_called_within_step", "_step_count"})
_PROGRESS = frozenset({
    "last_epoch", "_step_count", "_last_lr", "best", "num_bad_epochs", "cooldown_counter", "T_cur",
    "T_i", "base_lrs", "mode_worse", "_scale_fn_custom",
})  # fmt: skip


def _pairs(resuming: Resuming) -> list[tuple[LiveScheduler, SavedScheduler]]:
    saved, live = resuming.saved.schedulers, resuming.live.schedulers
    places = pair([s.target for s in live], [s.path for s in saved])
    return [(s, saved[places[s.target]]) for s in live if s.target in places]


def scheduler_absent(resuming: Resuming) -> Iterator[Finding]:
    """A live scheduler, or scaler, for which the file has no state."""
    found = {live.target for live, _ in _pairs(resuming)}
    for live in resuming.live.schedulers:
        if live.target not in found:
            step = max((o.step or 0 for o in resuming.saved.optimizers), default=0)
            yield Finding(
                code="part-missing",
                severity="warning",
                where=live.target,
                what=f"the file holds no scheduler state for {live.target!r}",
                why="it was not saved: the schedule starts again from its first rate",
                fix=f"set it forward by hand; the optimizer made {step:g} steps"
                if step
                else "set it forward by hand to the epoch or step of the save",
                saved="no scheduler state",
                expected=f"state of a {live.class_name.rpartition('.')[2]}",
            )
    for target in resuming.live.scalers:
        if not resuming.saved.scalers:
            yield Finding(
                code="part-missing",
                severity="warning",
                where=target,
                what=f"the file holds no loss scale for {target!r}",
                why="the GradScaler was not saved, or was disabled; an empty state is refused by "
                "its load_state_dict",
                fix="leave it as it is: it starts at its initial scale, and skips a few steps "
                "until it has found the right one",
                saved="no GradScaler state",
                expected="scale, growth_factor, backoff_factor, growth_interval",
            )


def not_asked_for(resuming: Resuming) -> Iterator[Finding]:
    """What the file has for a resume and no live object was given for."""
    live = resuming.live
    if not (live.optimizers or live.schedulers):
        return
    left = []
    if not live.schedulers:
        left += [f"{s.path}: {s.class_name}" for s in resuming.saved.schedulers]
    if not live.optimizers:
        left += [f"{o.path}: {o.class_name}" for o in resuming.saved.optimizers]
    if not live.scalers:
        left += [f"{path}: GradScaler" for path in resuming.saved.scalers]
    if left:
        yield Finding(
            code="parts-left",
            severity="note",
            where=f"{resuming.view.path}: {left[0]}",
            places=several(left),
            what="parts of the file were not asked for",
            why="the file keeps them, and what is not loaded starts again",
            fix="give these objects as well, if the code has them",
        )


def other_class(resuming: Resuming) -> Iterator[Finding]:
    """State of another class of scheduler: load_state_dict takes any."""
    for live, saved in _pairs(resuming):
        if _same_class(live, saved):
            continue
        here = live.class_name.rpartition(".")[2]
        yield Finding(
            code="class-changed",
            severity="error",
            where=f"{resuming.view.path}: {saved.path or 'the top'}",
            what=f"{live.target!r} is of another class than the saved scheduler",
            why="load_state_dict only copies attributes: it neither stops nor makes one of the "
            "other, and the rates that follow are those of neither",
            fix=f"build the scheduler that was saved, a {saved.class_name}, or set this one "
            "forward by hand without loading",
            saved=saved.class_name,
            expected=here,
        )


def _same_class(live: LiveScheduler, saved: SavedScheduler) -> bool:
    here = scheduler_class(live.state)
    if here != saved.class_name:
        return False
    return here != "an unknown class" or live.state.keys() - _SINCE <= saved.state.keys()


def settings_from_file(resuming: Resuming) -> Iterator[Finding]:
    """T_max, milestones, total_steps and the like: those of the file win."""
    for live, saved in _pairs(resuming):
        if not _same_class(live, saved):
            continue
        places, calls = [], []
        for path, key, old, new in _differing(live.target, live.state, saved.state, live.given):
            places.append(f"{path}.{key}: saved {old!r}, here {new!r}")
            calls.append(f"{path}.{key} = {new!r}")
        if places:
            yield Finding(
                code="scheduler-settings-from-file",
                severity="warning",
                where=places[0],
                places=several(places),
                what="settings of the scheduler differ; those of the file are used",
                why="load_state_dict takes all of them: a longer or other schedule in the code has "
                "no effect",
                fix="to use the code's, set them again after loading",
                command="; ".join(calls) if all("milestones" not in c for c in calls) else "",
            )


def _differing(
    at: str, here: dict[str, Any], saved: dict[str, Any], given: frozenset[str] | None
) -> Iterator[tuple[str, str, Any, Any]]:
    for key, new in here.items():
        old = saved.get(key)
        name = key.lstrip("_")
        own = given is None or name in given or name.removesuffix("s") in given
        if key in saved and own and key not in _PROGRESS and not key.startswith("_schedulers"):
            if isinstance(new, dict) and isinstance(old, dict) and name == "milestones":
                if sorted(map(str, old.items())) != sorted(map(str, new.items())):
                    yield at, key, sorted(old), sorted(new)
            elif plain_settings(new) and plain_settings(old) and not alike(old, new):
                yield at, key, old, new
    inner, theirs = here.get("_schedulers"), saved.get("_schedulers")
    if isinstance(inner, list | tuple) and isinstance(theirs, list | tuple):
        for i, (a, b) in enumerate(zip(inner, theirs, strict=False)):
            if isinstance(a, dict) and isinstance(b, dict):
                yield from _differing(f"{at}._schedulers[{i}]", a, b, None)


def base_rates(resuming: Resuming) -> Iterator[Finding]:
    """The rates that the schedule starts from: those of the file win as well."""
    for live, saved in _pairs(resuming):
        here, theirs = live.state.get("base_lrs"), saved.state.get("base_lrs")
        if (
            not isinstance(here, list)
            or not isinstance(theirs, list)
            or not _same_class(live, saved)
        ):
            continue
        if len(theirs) != live.groups and live.groups:
            yield Finding(
                code="scheduler-groups-changed",
                severity="error",
                where=f"{resuming.view.path}: {saved.path}/base_lrs",
                what=f"the scheduler was saved with {counted(len(theirs), 'parameter group')}, its "
                f"optimizer has {live.groups} here",
                why="it has one value for each saved group; the next step stops, or gives one "
                "group the rate of another",
                fix="build the groups as they were saved",
                saved=counted(len(theirs), "group"),
                expected=counted(live.groups, "group"),
            )
        elif not resuming.live.optimizers and not alike(theirs, here):
            yield Finding(
                code="scheduler-settings-from-file",
                severity="warning",
                where=f"{live.target}.base_lrs",
                what="the schedule starts from other rates in the file; those are used",
                why="load_state_dict takes them: a new learning rate in the code has no effect",
                fix="to use the code's, set them again after loading",
                command=f"{live.target}.base_lrs = {here!r}",
                saved=str(theirs)[:80],
                expected=str(here)[:80],
            )


def rates_after_loading(resuming: Resuming) -> Iterator[Finding]:
    """A scheduler that goes on from a rate which its optimizer will not have."""
    given = {optimizer.target for optimizer in resuming.live.optimizers}
    for live, saved in _pairs(resuming):
        kept = resuming.saved.optimizers and live.optimizer in given
        if kept or saved.rates is None or len(saved.rates) != len(live.rates):
            continue
        places = [
            f"{live.target}: saved {a!r}, optimizer here {b!r}"
            for a, b in zip(saved.rates, live.rates, strict=True)
            if abs(a - b) > 1e-6 * max(abs(a), abs(b))
        ]
        if places:
            calls = [
                f'{live.target}.optimizer.param_groups[{i}]["lr"] = {rate!r}'
                for i, rate in enumerate(saved.rates)
            ]
            yield Finding(
                code="learning-rate-differs",
                severity="warning",
                where=places[0],
                places=several(places),
                what="the scheduler goes on from other learning rates than its optimizer has",
                why="a scheduler's load_state_dict does not touch the optimizer, and many compute "
                "the next rate from the one there",
                fix="load the optimizer's state as well, or set its rates after loading",
                command="; ".join(calls),
            )
