"""Settings of the code that the file replaces, or that do not go with the machine here."""

from collections.abc import Iterator

from holdtrue.doctor.live_training import EXECUTION, LiveGroup
from holdtrue.doctor.optimizer_classes import same_kind
from holdtrue.doctor.optimizer_match import Matched, alike, matched, plain_settings
from holdtrue.doctor.optimizer_states import scalar
from holdtrue.doctor.subjects import Resuming
from holdtrue.findings import Finding, several

# What schedulers change all the time: a difference is the rule where there is one.
_SCHEDULED = frozenset({"lr", "initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum"})

# What schedulers that go up and down write into the groups, beside a first rate of their own.
_CYCLES = frozenset({"max_lr", "max_momentum", "base_momentum"})


def settings_from_file(resuming: Resuming) -> Iterator[Finding]:
    """Hyper-parameters of the code that load_state_dict replaces by those of the file."""
    for match in matched(resuming.saved, resuming.live):
        if not same_kind(match):
            continue
        scheduled = bool(resuming.saved.schedulers or resuming.live.schedulers)
        rescheduled = scheduled and _rescheduled(resuming)
        places: list[str] = []
        calls: list[str] = []
        for i, (saved, live) in enumerate(_paired(match)):
            for key, new in _overridden(saved, live.settings, scheduled):
                if key == "initial_lr" and rescheduled:
                    continue  # a first rate of the other schedule, not one that the code gave
                places.append(
                    f"{match.live.target}.param_groups[{i}].{key}: "
                    f"saved {saved.get(key)!r}, here {new!r}"
                )
                calls.append(f'{match.live.target}.param_groups[{i}]["{key}"] = {new!r}')
        if places:
            yield Finding(
                code="settings-from-file",
                severity="warning",
                where=places[0],
                places=several(places),
                what="settings of the optimizer differ; those of the file are used",
                why="load_state_dict replaces the groups' settings: what the code says now is lost "
                "without a word",
                fix="to use the code's, set them again after loading",
                command="; ".join(calls),
            )


def _rescheduled(resuming: Resuming) -> bool:
    """Whether schedulers here are of other classes than those of the file, told by their state."""
    saved = [scheduler.state.keys() for scheduler in resuming.saved.schedulers]
    here = [scheduler.given & scheduler.state.keys() for scheduler in resuming.live.schedulers]
    return bool(saved) and any(not any(own <= keys for keys in saved) for own in here)


def _paired(match: Matched) -> Iterator[tuple[dict[str, object], LiveGroup]]:
    """Each group here with the settings that its parameters had: what their groups agree on."""
    saved = match.saved.groups
    names = iter(match.names)
    homes = {
        name: i
        for i, group in enumerate(saved)
        for _, name in zip(group.params, names, strict=False)
    }
    by_place = match.sizes[0] == match.sizes[1] and not match.wrong_shapes
    for i, live in enumerate(match.live.groups):
        own = {p.name for p in live.parameters}
        if None not in match.names and None not in own:
            sources = sorted({homes[name] for name in own if name in homes})
        else:
            sources = [i] if by_place else list(range(len(saved)))
        settings = [saved[j].settings for j in sources]
        first = settings[0] if settings else {}
        agreed = {k: v for k, v in first.items() if all(alike(s.get(k), v) for s in settings[1:])}
        yield agreed, live


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
    if _CYCLES & saved.keys() != _CYCLES & live.keys():
        return  # one of the schedulers sets a first rate of its own: the code's is not known
    # The rate that the code gave: a scheduler moves `lr`, and keeps that one beside it.
    key = "initial_lr" if "initial_lr" in saved else "lr"
    new = live.get("initial_lr", live.get("lr")) if key == "initial_lr" else live.get("lr")
    moved = key == "lr" and scheduled
    if (
        key in saved
        and not moved
        and plain_settings(saved.get(key))
        and not alike(saved.get(key), new)
    ):
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
            places=several(places),
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
