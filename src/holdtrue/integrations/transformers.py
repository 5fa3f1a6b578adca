"""transformers: a callback that keeps what the Trainer trains as a run, and resumes it."""

import dataclasses
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from holdtrue.integrations import (
    package_missing,
    random_states,
    set_random_states,
    several_processes,
)

try:
    from accelerate.optimizer import AcceleratedOptimizer
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in ("transformers", "accelerate"):
        raise
    raise package_missing((error.name or "").partition(".")[0], "transformers") from None

from holdtrue.checkpoint import open as open_checkpoint
from holdtrue.errors import RestoreError, fail
from holdtrue.findings import Finding
from holdtrue.runs.keep import Keep
from holdtrue.runs.run import Run
from holdtrue.storage.locating import steps
from holdtrue.verification import verify

_STATE = "trainer_state.json"  # where the Trainer looks for its step, before it calls anyone


class HoldtrueCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Saves every `every` optimizer steps, behind the training, and resumes from the newest whole
    checkpoint: `trainer.train(resume_from_checkpoint=callback.resume_point())`.

    Turn the Trainer's own checkpoints off, `save_strategy="no"`: those are pickles. A save that
    falls on a step with a log entry or an evaluation is made after that.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        every: int = 500,
        keep: Keep | None = None,
        busy: Literal["wait", "skip"] = "wait",
        on_error: Literal["raise", "warn"] = "warn",
        allow: Iterable[str] = (),
    ) -> None:
        if every < 1:
            raise ValueError(f"every={every!r}: give a whole number from 1")
        self.path, self.keep, self.busy, self.every = Path(path), keep, busy, every
        self.allow, self.on_error = tuple(allow), on_error
        self.run: Run | None = None
        self._state: dict[str, Any] = {}  # the part `trainer`
        self._metrics: dict[str, float] = {}  # of the last evaluation
        self._last = 0  # the step of the last save, or resume
        self._due = False
        self._random: dict[str, Any] | None = None  # to be set before the next step
        self._point: tempfile.TemporaryDirectory[str] | None = None

    def resume_point(self) -> str | None:
        """A directory as the Trainer wants it, of the newest checkpoint that is whole; None when
        there is nothing to resume from. It holds no state but the step: the rest is restored when
        the training begins."""
        whole = (path for path in reversed(steps(self.path).values()) if verify(path).ok)
        newest = next(whole, None)
        if newest is None:
            return None
        self._point = tempfile.TemporaryDirectory(prefix="holdtrue-resume-")
        place = Path(self._point.name)
        (place / _STATE).write_text(json.dumps(open_checkpoint(newest)["trainer"]))
        for file in newest.glob("model*.safetensors*"):  # without weights it is turned down
            (place / file.name).symlink_to(file.absolute())
        return str(place)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **live: Any
    ) -> None:
        if args.world_size > 1:
            raise several_processes(
                str(self.path), args.world_size, "train in one process, or save by the Trainer"
            )
        self.run = Run(
            self.path, keep=self.keep, busy=self.busy, on_error=self.on_error, **self._parts(live)
        )
        self._random, self._due, self._last = None, False, state.global_step
        if self._point is None:
            if steps(self.path):
                raise fail(RestoreError, str(self.path), _not_resumed(self.path))
            return
        self._point.cleanup()
        self._point = None
        restored = self.run.resume(allow=self.allow)
        if restored != state.global_step:
            raise fail(RestoreError, str(self.path), _another_step(restored, state.global_step))
        self._random = random_states()

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **live: Any
    ) -> None:
        if self._random is not None:  # an epoch's order of batches is drawn after this
            set_random_states(self._random)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **live: Any
    ) -> None:
        if self._random is not None:
            # In mid-epoch, making the loader again has drawn; at its start, that is as it was.
            if state.epoch != int(state.epoch or 0):
                set_random_states(self._random)
            self._random = None

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **live: Any
    ) -> None:
        self._due = state.global_step // self.every > self._last // self.every
        if state.epoch != int(state.epoch or 0):  # else at the end of the epoch
            self._save_unless_more_follows(state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **live: Any
    ) -> None:
        self._save_unless_more_follows(state, control)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **live: Any
    ) -> None:
        if not control.should_evaluate:
            self._save(state)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, Any] | None = None,
        **live: Any,
    ) -> None:
        numbers = {k: v for k, v in (metrics or {}).items() if isinstance(v, int | float)}
        self._metrics = {name: float(value) for name, value in numbers.items()}
        self._save(state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **live: Any
    ) -> None:
        if self.run is not None:
            self.run.close()

    def _parts(self, live: dict[str, Any]) -> dict[str, Any]:
        optimizer, scaler = live["optimizer"], None
        if isinstance(optimizer, AcceleratedOptimizer):
            optimizer, scaler = optimizer.optimizer, optimizer.scaler
        parts = {"model": live["model"], "optimizer": optimizer, "scheduler": live["lr_scheduler"]}
        return {**parts, "trainer": self._state, **({"scaler": scaler} if scaler else {})}

    def _save_unless_more_follows(self, state: TrainerState, control: TrainerControl) -> None:
        if not (control.should_log or control.should_evaluate):
            self._save(state)

    def _save(self, state: TrainerState) -> None:
        if not self._due or self.run is None or state.global_step <= self._last:
            return
        self._state.clear()
        self._state.update(dataclasses.asdict(state))
        saving = self.run.save(state.global_step, metrics=self._metrics)
        if not saving.skipped:
            self._last, self._due = state.global_step, False


def _not_resumed(path: Path) -> Finding:
    return Finding(
        code="run-not-resumed",
        severity="error",
        where=str(path),
        what="this run has checkpoints, and the Trainer begins at step 0",
        why="the Trainer learns its step from a directory, before any callback is asked",
        fix="or give the new training a directory of its own",
        command="trainer.train(resume_from_checkpoint=callback.resume_point())",
    )


def _another_step(restored: int, expected: int) -> Finding:
    return Finding(
        code="run-not-resumed",
        severity="error",
        where="resume_point()",
        what="the run has changed since the resume point was taken",
        why="the Trainer counts from one step, and the newest whole checkpoint is of another",
        saved=f"step {restored}",
        expected=f"step {expected}",
        fix="take it right before the training",
        command="trainer.train(resume_from_checkpoint=callback.resume_point())",
    )
