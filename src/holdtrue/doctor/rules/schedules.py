"""Learning rate schedules beside the optimizer and the counters of the same file."""

from collections.abc import Iterator

from holdtrue.doctor.optimizer_states import SavedOptimizer, scalar
from holdtrue.doctor.state_dicts import StateDict
from holdtrue.doctor.subjects import Training
from holdtrue.doctor.training_state import SavedScheduler
from holdtrue.findings import Finding, several


def rates_differ(training: Training) -> Iterator[Finding]:
    """An optimizer whose rates are those of none of the schedulers beside it."""
    optimizers, schedulers = training.saved.optimizers, training.saved.schedulers
    known = [s for s in schedulers if s.rates]
    for i, saved in enumerate(optimizers):
        rates = _saved_rates(saved)
        near = [s for s in known if rates is not None and len(s.rates or ()) == len(rates)]
        if len(optimizers) == len(known) > 1:
            near = [s for s in near if s is known[i]]
        if rates is None or not near or any(_equal(rates, s.rates or ()) for s in near):
            continue
        theirs = near[-1]
        yield Finding(
            code="learning-rate-differs",
            severity="warning",
            where=f"{training.view.path}: {saved.path}/param_groups/0/lr",
            places=tuple(
                f"{saved.path}/param_groups/{j}/lr: {a!r}, {theirs.path}/_last_lr: {b!r}"
                for j, (a, b) in enumerate(zip(rates, theirs.rates or (), strict=True))
                if not _equal((a,), (b,))
            ),
            what="the optimizer and the scheduler of this file have different learning rates",
            why="many schedulers compute the next rate from the one in the optimizer; the two were "
            "saved at different times, or the rate was set by hand",
            fix="set the rate that is right after loading both: "
            'optimizer.param_groups[i]["lr"] = …',
            confidence="likely",
            saved=", ".join(f"{r:g}" for r in rates[:4]),
            expected=", ".join(f"{r:g}" for r in (theirs.rates or ())[:4]),
        )


def _saved_rates(saved: SavedOptimizer) -> tuple[float, ...] | None:
    rates = [scalar(group.settings.get("lr")) for group in saved.groups]
    return None if None in rates else tuple(r for r in rates if r is not None)


def _equal(some: tuple[float, ...], others: tuple[float, ...]) -> bool:
    return len(some) == len(others) and all(
        abs(a - b) <= 1e-6 * max(abs(a), abs(b)) for a, b in zip(some, others, strict=True)
    )


def groups_differ(training: Training) -> Iterator[Finding]:
    """A scheduler with rates for another number of groups than any optimizer has."""
    counts = {len(saved.groups) for saved in training.saved.optimizers}
    for scheduler in training.saved.schedulers:
        base = scheduler.state.get("base_lrs")
        held = len(base) if isinstance(base, list) else len(scheduler.rates or ())
        if counts and held and held not in counts:
            yield Finding(
                code="scheduler-groups-changed",
                severity="warning",
                where=f"{training.view.path}: {scheduler.path}",
                what=f"the scheduler has rates for {held} parameter groups, the optimizer has "
                + " or ".join(map(str, sorted(counts))),
                why="a group was added after the scheduler was built, or the two are of different "
                "trainings; the next step of the scheduler stops or leaves groups out",
                fix="build the scheduler after the last add_param_group, and set its last_epoch",
                confidence="likely",
            )


def functions_lost(training: Training) -> Iterator[Finding]:
    """Lambdas are not in a state dict."""
    places = [
        f"{scheduler.path}/lr_lambdas"
        for top in training.saved.schedulers
        for scheduler in _each(top)
        if isinstance(fs := scheduler.state.get("lr_lambdas"), list) and None in fs
    ]
    if places:
        yield Finding(
            code="scheduler-functions",
            severity="note",
            where=f"{training.view.path}: {places[0]}",
            places=several(places),
            what="functions of the scheduler are not in the file; those of the code are used",
            why="torch keeps the attributes of callable objects, and nothing of plain functions",
            fix="build the scheduler with the same functions as before; nothing can check them",
        )


def _each(scheduler: SavedScheduler) -> Iterator[SavedScheduler]:
    yield scheduler
    inner = scheduler.state.get("_schedulers")
    for i, state in enumerate(inner if isinstance(inner, list) else []):
        if isinstance(state, dict):
            own = SavedScheduler(
                path=f"{scheduler.path}/_schedulers/{i}", class_name="", state=state, rates=None
            )
            yield own


def scaler_missing(training: Training) -> Iterator[Finding]:
    """Half weights in training, and no loss scale beside them."""
    saved = training.saved
    half = next((m for m in saved.models if saved.optimizers and _is_half(m)), None)
    if half is not None and not saved.scalers:
        yield Finding(
            code="scaler-missing",
            severity="warning",
            where=f"{training.view.path}: {half.path or 'the top'}",
            what="the weights are float16, an optimizer is beside them, and no GradScaler is",
            why="float16 gradients need a loss scale; without the saved one it starts again at "
            "65536, and the first steps overflow or are skipped",
            fix='save it with the rest: {"scaler": scaler.state_dict()}; a resume from this file '
            "starts with a new one: torch.amp.GradScaler(init_scale=…)",
            confidence="likely",
        )


def _is_half(model: StateDict) -> bool:
    matrices = [t.dtype for t in model.names.values() if len(t.shape) > 1]
    return bool(matrices) and 2 * matrices.count("float16") > len(matrices)
