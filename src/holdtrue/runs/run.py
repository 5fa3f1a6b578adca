"""Run: what a training loop holds on to."""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from holdtrue.capture.pinned import pin, stage
from holdtrue.checkpoint import Checkpoint
from holdtrue.checkpoint import open as open_checkpoint
from holdtrue.doctor.amounts import counted
from holdtrue.engine.linking import Earlier
from holdtrue.engine.signing import signer
from holdtrue.engine.staging import Places, Staging
from holdtrue.engine.telling import Tell
from holdtrue.errors import OpenError
from holdtrue.findings import Report
from holdtrue.formats.source import reading
from holdtrue.formats.step_names import step_name
from holdtrue.runs.asking import check_settings, ranking_by
from holdtrue.runs.background import Background
from holdtrue.runs.choosing import (
    At,
    candidates,
    steps_given_up,
)
from holdtrue.runs.failing import FAILURES, ends_training
from holdtrue.runs.handle import Saving
from holdtrue.runs.keep import Keep
from holdtrue.runs.overlap import Deferred, StepGate
from holdtrue.runs.preemption import Preemption
from holdtrue.runs.resuming import restore_parts, resume_first_whole
from holdtrue.runs.shelf import Shelf
from holdtrue.saving import Before, Prepared, prepare, whole_step, write
from holdtrue.storage.failures import not_written
from holdtrue.storage.locating import best_first, first_readable, steps

_log = logging.getLogger("holdtrue")
# What can go wrong with a save that no line of the training is wrong for.


class Run:
    """A directory of checkpoints of one training.

    The parts given here are what every save keeps and a resume restores. Nothing is written before
    the first save; what a killed save left behind is cleared away here.

    A save goes on behind the training. A save that comes while the one before is in progress waits
    for it; with `busy="skip"` it is skipped, unless it has `wait=True`. With `verify="after"` each
    new checkpoint is read back from the disk before older ones are removed. `gradients=True` keeps
    the gradients too, for saves in the middle of an accumulation. With `overlap=True` the copy of
    parameters and optimizer state goes on beside the next forward and backward pass; each
    `optimizer.step()` waits for it. With `preemption=True`, SIGTERM and SIGUSR1 let the step in
    progress end; then the state is saved and the process exits, see `stop_if_asked`. `progress` is
    told how far a save or a resume is: bytes done and bytes in all, from any thread;
    `holdtrue.ProgressBar()` shows long ones. `seal` seals each checkpoint, as in `holdtrue.save`.
    A save that fails does not end the training: it is logged and said in its handle,
    `saving.error`. Until one has succeeded, what will not mend itself is raised all the same: a
    value that cannot be stored, a directory that may not be written to; always, a step that is no
    whole number, and what is no failure of a save, a TypeError, say. With `on_error="raise"`, each
    is raised, by that save or, where it failed behind, by the next one, `flush` or `close`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        /,
        *,
        keep: Keep | None = None,
        probe: Any = None,
        busy: Literal["wait", "skip"] = "wait",
        verify: Literal["after"] | None = None,
        gradients: bool = False,
        overlap: bool = False,
        preemption: bool = False,
        progress: Tell | None = None,
        seal: Any = False,
        on_error: Literal["raise", "warn"] = "warn",
        **parts: Any,
    ) -> None:
        self.path = Path(path).absolute()  # the same run wherever the process goes
        check_settings(self.path, keep, busy=busy, verify=verify, on_error=on_error)
        self.keep = keep or Keep()
        self.parts = parts
        self.probe = probe  # inputs for `save`, see there
        self.busy = busy
        self.verify = verify
        self.on_error = on_error
        self.gradients = gradients  # kept as well, for a save between `backward` and `step`
        self.report: Report | None = None  # of the last resume
        self._shelf = Shelf(self.path)
        self.progress = progress
        self._signer = signer(seal)
        self._staging = Staging()
        self._before: Before | None = None  # what the last save found out, see `saving.prepare`
        self._behind = Background()
        self._saves = threading.RLock()  # several threads may save into one run
        self._at_rest = False  # see `rest`
        self._kept_one = False  # whether a save has succeeded
        try:
            self._shelf.clear_leftovers()
        except OpenError as error:
            if ends_training(error, on_error, kept_one=False):
                raise
            _log.warning("what killed saves may have left is not cleared away: %s", error)
        self._gate = StepGate(parts) if overlap else None
        self._preemption = Preemption() if preemption else None

    def __repr__(self) -> str:
        return f"<run {self.path}: {counted(len(steps(self.path)), 'checkpoint')}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:  # a save that failed was logged when it did; what ended the block says more
            self._behind.wait()
            self._let_go()

    def steps(self) -> list[int]:
        """The steps of the published checkpoints, oldest first. Waits for a save in progress."""
        self._behind.wait()
        return list(steps(self.path))

    def save(
        self, step: int, metrics: Mapping[str, Any] | None = None, *, wait: bool = False
    ) -> Saving:
        """Keep the state as the checkpoint of `step`; then prune.

        Returns when the state has been copied: what is changed from then on is not in the
        checkpoint, which is written behind. `wait=True` returns when it is durable, and needs no
        memory for a copy. `step` is the number of steps done, which is what `resume` returns.

        A save that fails is logged, in `saving.error`, or raised as SaveError: see `on_error`;
        everything is then as it was. A damaged checkpoint of this step that `resume` passed over is
        put aside, as damaged-step-…
        """
        step = whole_step(str(self.path), step)
        target = self.path / step_name(step)
        if self._at_rest:
            return Saving(step, target, skipped=True)
        if self.stop_asked:
            self.stop_if_asked(step, metrics)
        if self.busy == "skip" and not wait and self._behind.busy:
            _log.warning("step %d is not saved: the save before is still in progress", step)
            return Saving(step, target, skipped=True)
        # In an atexit handler nobody waits for a thread any more.
        exiting = not threading.main_thread().is_alive()
        with self._saves:
            return self._attempt(step, target, metrics, wait or exiting)

    def _attempt(
        self, step: int, target: Path, metrics: Mapping[str, Any] | None, wait: bool
    ) -> Saving:
        """`_save`; where failures are not to be raised, they are logged and in the handle."""
        try:
            return self._save(step, target, metrics, wait)
        except FAILURES as error:
            given: BaseException = error
            if isinstance(error, OSError):  # of what stands around the files that are written
                given = not_written(target, error, 0)
            if ends_training(given, self.on_error, kept_one=self._kept_one):
                raise given from (error if given is not error else error.__cause__)
            _log.error("step %d was not saved: %s", step, given)
            failed = Saving(step, target)
            failed.end(None, given)
            return failed

    def _save(
        self, step: int, target: Path, metrics: Mapping[str, Any] | None, wait: bool
    ) -> Saving:
        began = time.perf_counter()
        self.flush()
        self._shelf.become_writer(target)
        target, aside = self._shelf.place(step)
        prepared = prepare(
            target,
            self.parts,
            step,
            metrics,
            self.keep.ranking,
            aside=aside,
            probe=self.probe,
            gradients=self.gradients,
            began=began,
            before=self._before,
            remember_it=True,
            by=self._signer,
        )
        self._before = prepared.before
        self._shelf.leave_behind()
        saving = Saving(step, target, prepared.nbytes)
        earlier = self._shelf.earlier()
        if wait:
            saved = write(
                prepared, prepared.sources, earlier=earlier, waited=True, progress=self.progress
            )
            self._shelf.published(step, saved, self.keep, verify=self.verify is not None)
            saving.stall = time.perf_counter() - began
            saving.end(replace(saved, stall=saving.stall))
            self._kept_one = True
            return saving
        places = self._staging.reserve(prepared.files)
        pin(self._staging, prepared.sources)
        deferred = None
        if self._gate is None:
            stage(prepared.files, prepared.sources, places)
        else:
            given = (prepared.files, prepared.sources, places)
            deferred = Deferred(*given, self._gate.optimizers)
            deferred.copy_the_rest()
            self._gate.shut(deferred)
        saving.staging = self._staging.nbytes
        saving.stall = time.perf_counter() - began
        self._behind.start(
            f"holdtrue-save-{step}",
            lambda: self._write(saving, prepared, places, earlier, deferred),
        )
        return saving

    @contextlib.contextmanager
    def rest(self) -> Iterator[None]:
        """Inside the block nothing is saved: for steps that are not part of the training."""
        self.flush()
        before, self._at_rest = self._at_rest, True
        try:
            yield
        finally:
            self._at_rest = before

    @property
    def stop_asked(self) -> bool:
        """True when a signal has asked the training to stop (`preemption=True`)."""
        return self._preemption is not None and self._preemption.asked is not None

    def stop_if_asked(self, step: int, metrics: Mapping[str, Any] | None = None) -> None:
        """Call it after every step: where a signal has asked for it, saves and exits.

        The exit code is 128 and the number of the signal: 143 for SIGTERM, 138 for SIGUSR1. `save`
        does the same. A second signal does at once what it would have done without a Run.
        """
        if self._preemption is None or self._preemption.asked is None or self._at_rest:
            return
        step = whole_step(str(self.path), step)
        with self._saves:
            self.flush()
            target, kept = self.path / step_name(step), True
            if step in self._shelf.damaged or not os.path.lexists(target):
                kept = self._attempt(step, target, metrics, wait=True).error is None
        said = "saved" if kept else "not saved"
        _log.warning("stopped by signal %d; step %d is %s", self._preemption.asked, step, said)
        code = self._preemption.exit_code
        self.close()
        raise SystemExit(code)

    def resume(
        self,
        at: At = "latest",
        *,
        on_conflict: Literal["file", "code"] = "file",
        allow: str | Iterable[str] = (),
        verify: Literal["first", "while"] = "first",
    ) -> int:
        """Restore every part, and the random states, and return the next step.

        `at` says from where: the newest checkpoint, the best one by what `keep` says, or that of a
        step. Returns 0 when there is no checkpoint yet. A damaged one is passed over for the next
        newest, or next best, which is logged and in `.report`; a step that was named is not.

        Where settings differ, learning rates, weight decay, a schedule, batch sizes, those of the
        file are used, or with `on_conflict="code"` those of the code; the report says which.
        `allow` accepts other differences by their finding codes, and `verify="while"` reads every
        byte once only, both as in `Checkpoint.restore`. What a damaged checkpoint has overwritten
        then is filled from the one before it; where there is none, the error is `target-unusable`.

        Raises RestoreError when the parts do not fit, OpenError when there is no such step, or one
        may not be read or needs a newer holdtrue, and DamageError when none that was asked for is
        whole; nothing has been changed then. After going back, the next save renames the steps
        after that one to abandoned-step-…
        """
        self._behind.wait()
        with reading(str(self.path)):
            return self._resume(at, on_conflict, allow, verify)

    def _resume(
        self,
        at: At,
        on_conflict: Literal["file", "code"],
        allow: str | Iterable[str],
        verify: Literal["first", "while"],
    ) -> int:
        manifests = self._shelf.summaries() if at == "best" else {}
        found = steps(self.path)
        asked = candidates(self.path, at, found, manifests, self.keep.ranking)
        codes = (allow,) if isinstance(allow, str) else tuple(allow)
        restore = restore_parts(
            self.parts,
            codes,
            on_conflict,
            self.progress,
            gradients=self.gradients,
            verify=verify,
        )
        self._shelf.damaged = frozenset()
        resumed = resume_first_whole(asked, restore)
        self._shelf.resumed(resumed, found)
        if resumed.error is not None:
            raise resumed.error
        self.report = resumed.report
        given_up = self._shelf.given_up
        if given_up and self.report is not None and resumed.step is not None:
            said = steps_given_up(self.path, resumed.step, list(given_up))
            _log.warning("%s: %s", self.path, said.what)
            self.report = replace(self.report, findings=(said, *self.report.findings))
        if resumed.step is not None:  # as the run was saved before it will be again: behind
            self._staging.expect(self._shelf.staging_of(resumed.step))
        return resumed.step or 0

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint; None when there is none yet. Waits for a save in progress."""
        self._behind.wait()
        found = steps(self.path)
        return open_checkpoint(found[max(found)]) if found else None

    def best(
        self, by: str | None = None, mode: Literal["min", "max"] | UnsetType = UNSET
    ) -> Checkpoint | None:
        """The best checkpoint on disk by a metric, as `keep` says unless told otherwise.

        None when no checkpoint has the metric. Ties go to the later one. Waits for a save in
        progress.
        """
        ranking = ranking_by(self.keep, by, mode)
        self._behind.wait()
        known = [(s, m) for s, m in self._shelf.summaries().items() if m is not None]
        places = {step: self.path / step_name(step) for step, _ in known}
        step = first_readable(best_first(known, ranking), places)
        return None if step is None else open_checkpoint(places[step])

    def latest_state(self, part: str = "model") -> Any:
        """A part's state from the newest checkpoint on disk; None when there is none yet.

        The tensors are new ones: training on never changes them. See `Checkpoint.__getitem__`.
        """
        found = self.latest()
        return None if found is None else found[part]

    def best_state(
        self,
        part: str = "model",
        by: str | None = None,
        mode: Literal["min", "max"] | UnsetType = UNSET,
    ) -> Any:
        """A part's state from the best checkpoint on disk, as `best` finds it; else None.

        The tensors are new ones: training on never changes them.
        """
        found = self.best(by, mode)
        return None if found is None else found[part]

    def flush(self) -> None:
        """Returns when the last save is durable. Where failures are raised, raises its own, once;
        else that was logged, and the handle has it."""
        self._behind.wait()
        try:
            self._behind.raise_error()
        except FAILURES as error:
            if ends_training(error, self.on_error, kept_one=self._kept_one):
                raise

    def close(self) -> None:
        """End the run: `flush`, and give back the memory for copies, hooks and signals."""
        try:
            self.flush()
        finally:
            self._staging.free()
            self._before = None
            self._let_go()

    def _let_go(self) -> None:
        """Nothing of the process outside is held any more."""
        if self._gate is not None:
            self._gate.remove()
            self._gate = None
        if self._preemption is not None:
            self._preemption.end()
        self._shelf.free()

    def _write(
        self,
        saving: Saving,
        prepared: Prepared,
        places: Places,
        earlier: Earlier | None,
        deferred: Deferred | None,
    ) -> None:
        """Behind the training: copy what was left to copy, write, publish, prune."""
        gate = self._gate
        try:
            if deferred is not None:
                deferred.copy(str(prepared.target))
                if gate is not None:
                    gate.open()
            saved = write(
                prepared,
                places.copies(prepared.files),
                images=places.images(prepared.files),
                earlier=earlier,
                stall=saving.stall,
                staging=saving.staging,
                confirm=None if deferred is None else deferred.confirm,
                progress=self.progress,
            )
            self._shelf.published(saving.step, saved, self.keep, verify=self.verify is not None)
        except BaseException as error:
            _log.error("step %d was not saved: %s", saving.step, error)
            saving.end(None, error)
            raise
        finally:
            if gate is not None:
                gate.open()
        saving.end(saved)
        self._kept_one = True
