"""Everything that a training goes on from, and which of it the file has."""

from collections.abc import Iterator

from holdtrue.doctor.amounts import counted
from holdtrue.doctor.optimizer_states import SavedOptimizer
from holdtrue.doctor.subjects import Folder, Training
from holdtrue.doctor.training_state import SavedTraining
from holdtrue.findings import Finding

# Transformers' Trainer and Accelerate write them beside the weights, under these names.
_BESIDE_WEIGHTS = frozenset({
    "optimizer.bin", "optimizer.pt", "rng_state.pth", "scheduler.bin", "scheduler.pt",
    "trainer_state.json",
})  # fmt: skip


def resume_completeness(training: Training) -> Iterator[Finding]:
    """One table of what a resume from this file has, and what starts again."""
    saved = training.saved
    if not saved.is_training:
        return
    rows, lacking = _completeness(saved)
    yield Finding(
        code="resume-completeness",
        severity="note",
        where=training.view.path,
        places=tuple(rows),
        what="a resume from this file has all that training depends on"
        if not lacking
        else "a resume from this file is without " + ", ".join(lacking),
        why="what is not in the file starts again: the run goes on, and is another one",
        fix="holdtrue.Run keeps all of these; else add the state_dict() of each to the file"
        if lacking
        else "",
        confidence="likely",
    )


def weights_absent(folder: Folder) -> Iterator[Finding]:
    """What a trainer keeps beside the weights, and no weights."""
    beside = [name for name in folder.names if name in _BESIDE_WEIGHTS]
    others = [one for one in folder.kept if one.name not in beside]
    if len(beside) < 2 or any(one.fingerprint_of or one.findings for one in others):
        return
    yield Finding(
        code="weights-absent",
        severity="error",
        where=folder.path,
        what="the folder has a trainer's state, and not the model's weights",
        why=f"it holds {', '.join(beside)}; a trainer writes model.safetensors or "
        "pytorch_model.bin beside them: that save did not finish, or the file was not copied",
        saved=", ".join(beside),
        expected="these, and the model's weights",
        fix="copy the weights too, or go back to the checkpoint before",
    )


def _completeness(saved: SavedTraining) -> tuple[list[str], list[str]]:
    """The rows of the table, and the names of what is not there."""
    rows: list[str] = []
    lacking: list[str] = []

    def row(name: str, found: list[str], without: str) -> None:
        if found:
            rows.extend(f"{name}: {text}" for text in found)
        else:
            rows.append(f"{name}: – ({without})")
            lacking.append(name)

    row("model", [_at(m.path, counted(len(m.names), "tensor")) for m in saved.models], "no weights")
    optimizers = [_at(o.path, _optimizer(o)) for o in saved.optimizers]
    optimizers += [_at(path, f"{name}, pickled whole") for path, name in saved.pickled.items()]
    row("optimizer", optimizers, "moments and steps start again")
    schedulers = [
        _at(s.path, s.class_name + ("" if s.last_epoch is None else f", at {s.last_epoch:g}"))
        for s in saved.schedulers
    ]
    row("scheduler", schedulers, "the rate starts again, if there was one")
    scales = [_at(p, f"scale {s.get('scale')}" if isinstance(s, dict) else "") for p, s in
              saved.scalers.items()]  # fmt: skip
    row("scaler", scales, "the loss scale starts again, if there was one")
    whose = sorted(set(saved.random.values()))
    row("random states", [", ".join(whose)] if whose else [], "dropout and shuffling differ")
    row("data position", list(saved.loaders), "samples are replayed or skipped mid-epoch")
    counters = [", ".join(f"{p} {n:g}" for p, n in list(saved.counters.items())[:4])]
    row("counters", counters if saved.counters else [], "nobody knows where it stopped")
    return rows, lacking


def _at(path: str, text: str) -> str:
    return f"{path}, {text}" if path else text


def _optimizer(saved: SavedOptimizer) -> str:
    """As a row of the table: class, parameters, groups, steps."""
    parts = [saved.class_name, counted(len(saved.params), "parameter")]
    if len(saved.groups) > 1:
        parts.append(f"{len(saved.groups)} groups")
    without = len(saved.params) - len(saved.state)
    if saved.state and without > 0:
        parts.append(f"{without} of them without state")
    if saved.step is not None:
        parts.append(f"step {saved.step:g}")
    return ", ".join(parts)
