"""Settings of the code that the file replaces, or that do not go with the machine here."""

from collections.abc import Iterator

from holdtrue.doctor.live_training import EXECUTION
from holdtrue.doctor.optimizer_classes import same_kind
from holdtrue.doctor.optimizer_match import alike, matched, plain_settings
from holdtrue.doctor.optimizer_states import scalar
from holdtrue.doctor.subjects import Resuming
from holdtrue.findings import Finding

# What schedulers change all the time: a difference is the rule where there is one.
_SCHEDULED = frozenset({"lr", "initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum"})


def settings_from_file(resuming: Resuming) -> Iterator[Finding]:
    """Hyper-parameters of the code that load_state_dict replaces by those of the file."""
    for match in matched(resuming.saved, resuming.live):
        if not same_kind(match):
            continue
        scheduled = bool(resuming.saved.schedulers or resuming.live.schedulers)
        places: list[str] = []
        calls: list[str] = []
        pairs = zip(match.saved.groups, match.live.groups, strict=False)
        for i, (saved, live) in enumerate(pairs):
            for key, new in _overridden(saved.settings, live.settings, scheduled):
                places.append(
                    f"{match.live.target}.param_groups[{i}].{key}: "
                    f"saved {saved.settings.get(key)!r}, here {new!r}"
                )
                calls.append(f'{match.live.target}.param_groups[{i}]["{key}"] = {new!r}')
        if places:
            yield Finding(
                code="settings-from-file",
                severity="warning",
                where=places[0],
                places=tuple(places) if len(places) > 1 else (),
                what="settings of the optimizer differ; those of the file are used",
                why="load_state_dict replaces the groups' settings: what the code says now is lost "
                "without a word",
                fix="to use the code's, set them again after loading",
                command="; ".join(calls),
            )


def _overridden(
    saved: dict[str, object], live: dict[str, object], scheduled: bool
) -> Iterator[tuple[str, object]]:
    cycled = "max_momentum" in saved or "max_momentum" in live
    for key, new in live.items():
        if key in EXECUTION or key in _SCHEDULED or key not in saved:
            continue
        if cycled and key in ("momentum", "betas"):
            continue
        if plain_settings(new) and not alike(saved[key], new):
            yield key, new
    if ("max_lr" in saved) != ("max_lr" in live) or (cycled and "initial_lr" not in live):
        return  # one of the two is of a scheduler that makes up its own first rate
    # The rate that the code gave: a scheduler moves `lr`, and keeps that one beside it.
    key = "initial_lr" if "initial_lr" in saved else "lr"
    new = live.get("initial_lr", live.get("lr")) if key == "initial_lr" else live.get("lr")
    moved = key == "lr" and scheduled
    if not moved and plain_settings(saved.get(key)) and not alike(saved.get(key), new):
        yield "lr" if key == "lr" or "initial_lr" not in live else key, new


def rate_moved(resuming: Resuming) -> Iterator[Finding]:
    """An optimizer that has gone on from this file already, and has another rate since."""
    for match in matched(resuming.saved, resuming.live):
        if match.live.step is None or match.live.step != match.saved.step or not match.live.step:
            continue
        pairs = zip(match.saved.groups, match.live.groups, strict=False)
        rates = [(scalar(s.settings.get("lr")), scalar(h.settings.get("lr"))) for s, h in pairs]
        moved = [
            (i, a, b)
            for i, (a, b) in enumerate(rates)
            if a is not None and b is not None and abs(a - b) > 1e-6 * max(abs(a), abs(b))
        ]
        if not moved:
            continue
        places = [
            f"{match.live.target}.param_groups[{i}].lr: saved {a!r}, here {b!r}"
            for i, a, b in moved
        ]
        calls = [f'{match.live.target}.param_groups[{i}]["lr"] = {a!r}' for i, a, _ in moved]
        yield Finding(
            code="learning-rate-differs",
            severity="warning",
            where=places[0],
            places=tuple(places) if len(places) > 1 else (),
            what=f"{match.live.target!r} is at the step of the file, and has another learning rate",
            why="a scheduler that is built after the optimizer was loaded sets the first rate of "
            "its schedule again; its own load_state_dict does not take that back",
            fix="build the scheduler first, then load the optimizer and the scheduler; or set the "
            "rate of the file again",
            command="; ".join(calls),
            confidence="likely",
        )


def execution(resuming: Resuming) -> Iterator[Finding]:
    """Settings of a machine that the parameters here are not on."""
    for match in matched(resuming.saved, resuming.live):
        devices = {p.device for p in match.live.parameters}
        on = [i for i, g in enumerate(match.saved.groups) if g.settings.get("capturable") is True]
        if on and devices == {"cpu"}:
            calls = [f'{match.live.target}.param_groups[{i}]["capturable"] = False' for i in on]
            yield Finding(
                code="optimizer-capturable",
                severity="warning",
                where=f"{resuming.view.path}: {match.saved.path}/param_groups/{on[0]}/capturable",
                what="the saved optimizer was made for CUDA graphs, and the parameters here are on "
                "the CPU",
                why="capturable=True comes with the file, and step() stops: parameters and steps "
                "have to be on an accelerator",
                fix="switch it off after loading",
                command="; ".join(calls),
                saved="capturable=True",
                expected="parameters on cpu",
            )
