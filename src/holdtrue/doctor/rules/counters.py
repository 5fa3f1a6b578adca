"""How often the optimizer, the scheduler and the training itself say that they stepped."""

from collections.abc import Iterator

from holdtrue.doctor.optimizer_states import SavedOptimizer
from holdtrue.doctor.subjects import Training
from holdtrue.findings import Finding


def counts_differ(training: Training) -> Iterator[Finding]:
    """A scheduler that stepped more often than its optimizer, or not at all."""
    steps = [saved.step for saved in training.saved.optimizers if saved.step is not None]
    epochs = list(training.saved.epochs.values())
    if not steps:
        return
    most = max(steps)
    for scheduler in training.saved.schedulers:
        last = scheduler.last_epoch
        if last is None or scheduler.class_name == "ReduceLROnPlateau":
            continue
        behind = last <= 0 and most > 1 and max(epochs, default=0) > 1
        ahead = last > 1.5 * most + 10
        if behind or ahead:
            yield Finding(
                code="step-counts-differ",
                severity="warning",
                where=f"{training.view.path}: {scheduler.path}/last_epoch",
                what=f"the scheduler made {last:g} steps, the optimizer {most:g}",
                why="it was built anew without its state, or never stepped: its rates start again"
                if behind
                else "it stepped more often than the optimizer, or they are of different trainings",
                fix=f"if it steps with the optimizer, set scheduler.last_epoch = {most:g} after "
                "loading, and the rate that belongs to it",
                confidence="likely",
                saved=f"last_epoch {last:g}",
                expected=f"optimizer step {most:g}"
                + "".join(f", {path} {n:g}" for path, n in training.saved.epochs.items()),
            )


def optimizer_behind(training: Training) -> Iterator[Finding]:
    """Fewer steps than epochs, or more than the training counted."""
    saved = training.saved
    if len(saved.optimizers) != 1 or saved.optimizers[0].step is None:
        return
    optimizer, step = saved.optimizers[0], saved.optimizers[0].step
    epochs = {path: n for path, n in saved.epochs.items() if n > step + 1}
    counted = {
        path: n
        for path, n in saved.counters.items()
        if path.rpartition("/")[2] == "global_step" and step > 1.1 * n + 2
    }
    for path, number in (epochs | counted).items():
        yield Finding(
            code="step-counts-differ",
            severity="note",
            where=f"{training.view.path}: {path}",
            what=f"the optimizer made {step:g} steps, {path} is at {number:g}",
            why="an optimizer that was built anew at a resume, without its state, starts to count "
            "again"
            if path in epochs
            else "the counter and the optimizer are of different moments, or of different runs",
            fix="compare with the logs which of the two is right",
            confidence="hint",
            saved=f"{optimizer.path or 'optimizer'} step {step:g}",
            expected=f"{path} {number:g}",
        )


def state_empty(training: Training) -> Iterator[Finding]:
    """An optimizer that keeps moments, and has none although the training went on."""
    saved = training.saved
    stepped = max((s.last_epoch or 0 for s in saved.schedulers), default=0)
    counted = max(saved.counters.values(), default=0)
    for optimizer in saved.optimizers:
        if optimizer.state or not _keeps_moments(optimizer) or not (stepped or counted):
            continue
        yield Finding(
            code="optimizer-state-empty",
            severity="warning" if stepped > 0 else "note",
            where=f"{training.view.path}: {optimizer.path or 'the top'}/state",
            what=f"the {optimizer.class_name} has settings and no moments: it never stepped",
            why="the optimizer that was saved is not the one that trained, or it was saved before "
            "its first step; a resume starts without momentum",
            fix="save the optimizer that is stepped; from this file start it fresh, with a warm-up",
            confidence="likely" if stepped > 0 else "hint",
        )


def _keeps_moments(optimizer: SavedOptimizer) -> bool:
    plain = optimizer.class_name == "SGD"
    return not plain or any(group.settings.get("momentum") for group in optimizer.groups)
