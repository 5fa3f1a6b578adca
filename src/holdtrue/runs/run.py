"""Run: what a training loop holds on to."""

import contextlib
import logging
import os
import threading
import time
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from msgspec import UNSET, UnsetType

from holdtrue.checkpoint import Checkpoint
from holdtrue.checkpoint import open as open_checkpoint
from holdtrue.engine.linking import Earlier
from holdtrue.engine.staging import Staged, Staging, copy_in
from holdtrue.engine.telling import Tell
from holdtrue.errors import HoldtrueError, SaveError, fail
from holdtrue.findings import Finding, Report
from holdtrue.formats.checkpoint_directory import read_manifest
from holdtrue.formats.source import unreachable
from holdtrue.records.manifest import Manifest, Ranking
from holdtrue.runs.background import Background
from holdtrue.runs.handle import Saving
from holdtrue.runs.keep import Keep
from holdtrue.runs.pruning import doomed, has_all_files, read_back, remove_steps
from holdtrue.runs.resuming import restore_parts, resume_first_whole
from holdtrue.runs.writing import give_back, take
from holdtrue.saving import Prepared, Saved, prepare, whole_step, write
from holdtrue.storage.commit import clear_leftovers, make_directories
from holdtrue.storage.failures import already_exists, not_written
from holdtrue.storage.locating import best_first, step_name, steps

_log = logging.getLogger("holdtrue")
_SAVED_ONCE = "go on with the next step; to do this one again, move what is there away first"


class Run:
    """A directory of checkpoints of one training.

    The parts given here are what every save keeps and a resume restores. Nothing is written before
    the first save; what a killed save left behind is cleared away here.

    A save goes on behind the training. A save that comes while the one before is in progress waits
    for it, or is skipped with `busy="skip"`. With `verify="after"` each new checkpoint is read back
    from the disk before older ones are removed. `progress` is told how far a save or a resume is:
    bytes done and bytes in all, from any thread; `holdtrue.ProgressBar()` shows long ones.
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
        progress: Tell | None = None,
        **parts: Any,
    ) -> None:
        if keep is not None and not isinstance(keep, Keep):
            raise fail(HoldtrueError, str(path), _no_rules(keep))
        if busy not in ("wait", "skip"):
            raise ValueError(f'Run(busy={busy!r}): give "wait" or "skip"')
        if verify not in (None, "after"):
            raise ValueError(f'Run(verify={verify!r}): give "after", or None')
        self.path = Path(path).absolute()  # the same run wherever the process goes
        self.keep = keep or Keep()
        self.parts = parts
        self.probe = probe  # inputs for `save`, see there
        self.busy = busy
        self.verify = verify
        self.progress = progress
        self.report: Report | None = None  # of the last resume
        self._manifests: dict[int, Manifest] = {}
        self._damaged: frozenset[int] = frozenset()  # what the last resume passed over
        self._link = True  # files of the checkpoint before, where they did not change
        self._told_unlinked = False
        self._staging = Staging()
        self._behind = Background()
        self._saves = threading.RLock()  # several threads may save into one run
        self._release: weakref.finalize[..., Any] | None = None  # while this process is the writer
        try:
            cleared = clear_leftovers(self.path)
        except OSError as error:
            raise unreachable(str(self.path), error) from None
        for name in cleared:
            _log.info("cleared away %s, left by a save that was killed", name)

    def __repr__(self) -> str:
        return f"<run {self.path}: {len(steps(self.path))} checkpoints>"

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

        Raises SaveError when the state cannot be kept, and what the save before ended with if that
        has not been raised yet; everything is then as it was. A damaged checkpoint of this step
        that `resume` passed over is put aside, as damaged-step-…
        """
        step = whole_step(str(self.path), step)
        target = self.path / step_name(step)
        if self.busy == "skip" and self._behind.busy:
            _log.warning("step %d is not saved: the save before is still in progress", step)
            return Saving(step, target, skipped=True)
        with self._saves:
            return self._save(step, target, metrics, wait)

    def _save(
        self, step: int, target: Path, metrics: Mapping[str, Any] | None, wait: bool
    ) -> Saving:
        began = time.perf_counter()
        self.flush()
        self._become_writer(target)
        prepared = self._prepare(step, target, metrics)
        saving = Saving(step, target, prepared.nbytes)
        earlier = self._earlier()
        if wait:
            saved = write(
                prepared, prepared.sources, earlier=earlier, stall=0.0, progress=self.progress
            )
            saving.stall = saved.seconds
            self._published(step, saved)
            saving.end(saved)
            return saving
        places = self._staging.reserve(prepared.files)
        copy_in(prepared.files, prepared.sources, places)
        saving.staging = self._staging.nbytes
        saving.stall = time.perf_counter() - began
        copies = {key: Staged(place) for key, place in places.items()}
        self._behind.start(
            f"holdtrue-save-{step}", lambda: self._write(saving, prepared, copies, earlier)
        )
        return saving

    def resume(self, *, allow: Iterable[str] = ()) -> int:
        """Restore every part, and the random states, from the newest checkpoint that is whole.

        Returns the next step: 0 when there is nothing to resume from. A damaged checkpoint is
        passed over, which is logged and in `.report`. Raises RestoreError when the parts do not
        fit, OpenError when a checkpoint may not be read or needs a newer holdtrue, and DamageError
        when no checkpoint is whole; nothing has been changed then. `allow` accepts differences by
        their finding codes, as in `Checkpoint.restore`.
        """
        self._behind.wait()
        restore = restore_parts(self.parts, tuple(allow), self.progress)
        self._damaged = frozenset()
        resumed = resume_first_whole(reversed(steps(self.path).items()), restore)
        self._damaged = resumed.damaged
        for step in resumed.damaged:
            self._manifests.pop(step, None)
        if resumed.error is not None:
            raise resumed.error
        self.report = resumed.report
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
        name = by or self.keep.by
        if not name:
            raise ValueError('say which metric: run.best("val_loss"), or Keep(by="val_loss")')
        if mode is not UNSET and mode not in ("min", "max"):
            raise ValueError(f'run.best(mode={mode!r}): give "min" or "max"')
        self._behind.wait()
        ranking = Ranking(by=name, mode=self.keep.mode if mode is UNSET else mode)
        order = best_first(
            [(s, m) for s, m in self._read_manifests().items() if m is not None], ranking
        )
        return open_checkpoint(self.path / step_name(order[0])) if order else None

    def flush(self) -> None:
        """Returns when the last save is durable. Raises what it failed with, once."""
        self._behind.wait()
        self._behind.raise_error()

    def close(self) -> None:
        """End the run: `flush`, and give the memory for copies back."""
        try:
            self.flush()
        finally:
            self._staging = Staging()
            if self._release is not None:
                self._release()
                self._release = None

    def _become_writer(self, target: Path) -> None:
        if self._release is not None and self._release.alive:
            return
        try:
            make_directories(self.path)
            take(self.path)
        except OSError as error:
            raise not_written(target, error, 0) from error
        # Also when the run is dropped without `close`, as in a notebook's next cell.
        self._release = weakref.finalize(self, give_back, self.path)

    def _prepare(self, step: int, target: Path, metrics: Mapping[str, Any] | None) -> Prepared:
        aside = None
        if os.path.lexists(target):
            if step not in self._damaged:
                raise fail(SaveError, str(target), already_exists(target, _SAVED_ONCE))
            aside = _free_name(target)
            _log.warning("step %d was damaged; what is there becomes %s", step, aside)
        return prepare(
            target, self.parts, step, metrics, self.keep.ranking, aside=aside, probe=self.probe
        )

    def _write(
        self,
        saving: Saving,
        prepared: Prepared,
        copies: Mapping[str, Staged],
        earlier: Earlier | None,
    ) -> None:
        """Behind the training: write, publish, prune."""
        try:
            saved = write(
                prepared,
                copies,
                earlier=earlier,
                stall=saving.stall,
                staging=saving.staging,
                progress=self.progress,
            )
            self._published(saving.step, saved)
        except BaseException as error:
            _log.error("step %d was not saved: %s", saving.step, error)
            saving.end(None, error)
            raise
        saving.end(saved)

    def _published(self, step: int, saved: Saved) -> None:
        self._damaged -= {step}
        if saved.not_linked is not None and not self._told_unlinked:
            self._told_unlinked = True
            _log.warning(
                "%s: this file system makes no hard links (%s); files that did not change are "
                "written again each time",
                self.path, saved.not_linked,
            )  # fmt: skip
        if self.verify:
            self._link = False  # not from what may turn out to be damaged
            try:
                read_back(saved.path)
            except HoldtrueError:
                self._damaged |= {step}
                raise
        self._link = True
        self._prune()

    def _earlier(self) -> Earlier | None:
        """The newest checkpoint that is there, for its unchanged files."""
        if not self._link:
            return None
        with contextlib.suppress(HoldtrueError):  # a run that cannot be listed has none to offer
            for step, path in reversed(steps(self.path).items()):
                manifest = self._manifest(step, path)
                if manifest is not None:
                    return Earlier(path, manifest)
        return None

    def _read_manifests(self) -> dict[int, Manifest | None]:
        return {step: self._manifest(step, path) for step, path in steps(self.path).items()}

    def _manifest(self, step: int, path: Path) -> Manifest | None:
        """None for one that cannot be read, or is damaged: its manifest may well be whole."""
        if step not in self._manifests and step not in self._damaged:
            with contextlib.suppress(HoldtrueError):
                self._manifests[step] = read_manifest(path)
        return None if step in self._damaged else self._manifests.get(step)

    def _prune(self) -> None:
        """A checkpoint that cannot be removed is no reason to fail: the save is done."""
        try:
            found = {s: (p, self._manifest(s, p)) for s, p in steps(self.path).items()}
            going = doomed(self.keep, found, has_all_files)
        except HoldtrueError as error:
            _log.warning("nothing is removed, the run cannot be listed:%s", error)
            return
        for step in remove_steps(self.keep, going, found):
            self._manifests.pop(step, None)


def _free_name(target: Path) -> Path:
    """Beside the target: damaged-step-000000003, and -2, -3, … where that is taken."""
    names = (f"damaged-{target.name}{n}" for n in ("", *(f"-{i}" for i in range(2, 10**6))))
    return next(p for name in names if not os.path.lexists(p := target.parent / name))


def _no_rules(keep: Any) -> Finding:
    return Finding(
        code="keep-invalid",
        severity="error",
        where=f"keep={keep!r}"[:100],
        what="keep= takes a holdtrue.Keep",
        why="which number is meant, the last or the best ones, has to be said",
        fix="Run(…, keep=holdtrue.Keep(last=3))",
    )
