"""Run: what a training loop holds on to."""

import contextlib
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from msgspec import UNSET, UnsetType

from holdtrue.checkpoint import Checkpoint
from holdtrue.checkpoint import open as open_checkpoint
from holdtrue.errors import DamageError, HoldtrueError, SaveError, fail
from holdtrue.findings import Finding, Report
from holdtrue.formats.checkpoint_directory import read_manifest
from holdtrue.formats.source import unreachable
from holdtrue.records.manifest import NAME, Manifest, Ranking
from holdtrue.runs.keep import Keep, to_remove
from holdtrue.saving import Saved, whole_step, write_checkpoint
from holdtrue.storage.commit import clear_leftovers, may_list, remove
from holdtrue.storage.failures import already_exists
from holdtrue.storage.locating import best_first, is_ours, step_name, steps

_log = logging.getLogger("holdtrue")
# Reasons why bytes cannot be read that say nothing of the bytes. Going back to an older checkpoint
# for these would lose work that is there.
_NO_DAMAGE = frozenset({"permission-denied", "read-failed"})
_SAVED_ONCE = "go on with the next step; to do this one again, move what is there away first"


class Run:
    """A directory of checkpoints of one training.

    The parts given here are what every save keeps and a resume restores. Nothing is written before
    the first save; what a killed save left behind is cleared away here.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        /,
        *,
        keep: Keep | None = None,
        probe: Any = None,
        **parts: Any,
    ) -> None:
        if keep is not None and not isinstance(keep, Keep):
            raise fail(HoldtrueError, str(path), _no_rules(keep))
        self.path = Path(path).absolute()  # the same run wherever the process goes
        self.keep = keep or Keep()
        self.parts = parts
        self.probe = probe  # inputs for `save`, see there
        self.report: Report | None = None  # of the last resume
        self._manifests: dict[int, Manifest] = {}
        self._damaged: set[int] = set()  # what the last resume passed over
        try:
            cleared = clear_leftovers(self.path)
        except OSError as error:
            raise unreachable(str(self.path), error) from None
        for name in cleared:
            _log.info("cleared away %s, left by a save that was killed", name)

    def __repr__(self) -> str:
        return f"<run {self.path}: {len(self.steps())} checkpoints>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def steps(self) -> list[int]:
        """The steps of the published checkpoints, oldest first."""
        return list(steps(self.path))

    def save(self, step: int, metrics: Mapping[str, Any] | None = None) -> Saved:
        """Keep the state as the checkpoint of `step`, durable when this returns; then prune.

        `step` is the number of steps done, which is what `resume` returns. Raises SaveError and
        leaves everything as it was when the state cannot be kept or written. A damaged checkpoint
        of this step that `resume` passed over is put aside, as damaged-step-…
        """
        step = whole_step(str(self.path), step)
        target, aside = self.path / step_name(step), None
        if os.path.lexists(target):
            if step not in self._damaged:
                raise fail(SaveError, str(target), already_exists(target, _SAVED_ONCE))
            aside = _free_name(target)
        saved = write_checkpoint(
            target, self.parts, step, metrics, self.keep.ranking, aside=aside, probe=self.probe
        )
        if aside is not None:
            _log.warning("step %d was damaged; what was there is now %s", step, aside)
        self._damaged.discard(step)
        self._prune()
        return saved

    def resume(self, *, allow: Iterable[str] = ()) -> int:
        """Restore every part, and the random states, from the newest checkpoint that is whole.

        Returns the next step: 0 when there is nothing to resume from. A damaged checkpoint is
        passed over, which is logged and in `.report`. Raises RestoreError when the parts do not
        fit, OpenError when a checkpoint may not be read or needs a newer holdtrue, and DamageError
        when no checkpoint is whole; nothing has been changed then. `allow` accepts differences by
        their finding codes, as in `Checkpoint.restore`.
        """
        accepted = tuple(allow)
        passed: list[HoldtrueError] = []
        self._damaged = set()
        for step, path in reversed(steps(self.path).items()):
            try:
                if _half_there(path):
                    raise fail(DamageError, str(path), _not_whole(path))
                self.report = open_checkpoint(path).restore(rng=True, allow=accepted, **self.parts)
            except DamageError as error:
                if any(f.code in _NO_DAMAGE for f in error.report.findings):
                    raise
                _log.warning("step %d is passed over, it is damaged:%s", step, error)
                passed.append(error)
                self._damaged.add(step)
                self._manifests.pop(step, None)
                continue
            if passed:
                found = [*_passed_over(passed), *self.report.findings]
                self.report = Report(subject=self.report.subject, findings=tuple(found))
            return step
        if passed:
            raise passed[0]
        return 0

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint; None when there is none yet."""
        found = steps(self.path)
        return open_checkpoint(found[max(found)]) if found else None

    def best(
        self, by: str | None = None, mode: Literal["min", "max"] | UnsetType = UNSET
    ) -> Checkpoint | None:
        """The best checkpoint on disk by a metric, as `keep` says unless told otherwise.

        None when no checkpoint has the metric. Ties go to the later one.
        """
        name = by or self.keep.by
        if not name:
            raise ValueError('say which metric: run.best("val_loss"), or Keep(by="val_loss")')
        if mode is not UNSET and mode not in ("min", "max"):
            raise ValueError(f'run.best(mode={mode!r}): give "min" or "max"')
        ranking = Ranking(by=name, mode=self.keep.mode if mode is UNSET else mode)
        order = best_first(
            [(s, m) for s, m in self._read_manifests().items() if m is not None], ranking
        )
        return open_checkpoint(self.path / step_name(order[0])) if order else None

    def flush(self) -> None:
        """Returns when the last save is durable; saves are synchronous, so it is."""

    def close(self) -> None:
        """End the run. Nothing is pending, since saves are synchronous."""

    def _read_manifests(self) -> dict[int, Manifest | None]:
        found: dict[int, Manifest | None] = {}
        for step, path in steps(self.path).items():
            if step in self._damaged:  # its manifest may well be whole
                found[step] = None
                continue
            manifest = self._manifests.get(step)
            if manifest is None:
                with contextlib.suppress(HoldtrueError):
                    manifest = self._manifests[step] = read_manifest(path)
            found[step] = manifest
        return found

    def _prune(self) -> None:
        """A checkpoint that cannot be removed is no reason to fail: the save is done."""
        try:
            doomed = to_remove(self.keep, list(self._read_manifests().items()))
        except HoldtrueError as error:
            _log.warning("nothing is removed, the run cannot be listed:%s", error)
            return
        for step in doomed:
            try:
                remove(self.path / step_name(step))
            except OSError as error:
                _log.warning("step %d is no longer kept, but cannot be removed: %s", step, error)
                continue
            self._manifests.pop(step, None)
            _log.info("removed step %d: no rule of %r keeps it", step, self.keep)


def _half_there(path: Path) -> bool:
    """True for a step without a manifest. What may not be looked into is not known to lack it."""
    return not path.is_dir() or (may_list(path) and not is_ours(path))


def _free_name(target: Path) -> Path:
    """Beside the target: damaged-step-000000003, and -2, -3, … where that is taken."""
    names = (f"damaged-{target.name}{n}" for n in ("", *(f"-{i}" for i in range(2, 10**6))))
    return next(p for name in names if not os.path.lexists(p := target.parent / name))


def _passed_over(errors: list[HoldtrueError]) -> list[Finding]:
    return [
        Finding(
            code="checkpoint-passed-over",
            severity="warning",
            where=error.report.subject,
            what="a newer checkpoint is damaged; an older one was restored",
            why="; ".join(f.what for f in error.report.findings),
            fix=f"holdtrue verify {error.report.subject}",
        )
        for error in errors
    ]


def _not_whole(path: Path) -> Finding:
    return Finding(
        code="manifest-missing",
        severity="error",
        where=str(path),
        what=f"a step without its {NAME}",
        why="it was copied or deleted in part; a save of holdtrue appears whole or not at all",
        fix="copy the whole directory again, or use another checkpoint",
    )


def _no_rules(keep: Any) -> Finding:
    return Finding(
        code="keep-invalid",
        severity="error",
        where=f"keep={keep!r}"[:100],
        what="keep= takes a holdtrue.Keep",
        why="which number is meant, the last or the best ones, has to be said",
        fix="Run(…, keep=holdtrue.Keep(last=3))",
    )
