"""Run: what a training loop holds on to."""

import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from msgspec import UNSET, UnsetType

from holdtrue.checkpoint import Checkpoint
from holdtrue.checkpoint import open as open_checkpoint
from holdtrue.errors import DamageError, HoldtrueError, OpenError, SaveError, fail
from holdtrue.findings import Finding, Report
from holdtrue.formats.checkpoint_directory import read_manifest
from holdtrue.records.manifest import Manifest, Ranking
from holdtrue.runs.keep import Keep, to_remove
from holdtrue.saving import Saved, write_checkpoint
from holdtrue.storage.commit import clear_leftovers, remove
from holdtrue.storage.locating import best_first, step_name, steps

_log = logging.getLogger("holdtrue")


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
        self.path = Path(path)
        self.keep = keep or Keep()
        self.parts = parts
        self.probe = probe  # inputs for `save`, see there
        self.report: Report | None = None  # of the last resume
        self._manifests: dict[int, Manifest] = {}
        for name in clear_leftovers(self.path):
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
        leaves everything as it was when the state cannot be kept or written.
        """
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise fail(SaveError, str(self.path), _bad_step(step))
        target = self.path / step_name(step)
        saved = write_checkpoint(
            target, self.parts, step, metrics, self.keep.ranking, probe=self.probe
        )
        self._prune()
        return saved

    def resume(self, *, allow: Iterable[str] = ()) -> int:
        """Restore every part, and the random states, from the newest checkpoint that is whole.

        Returns the next step: 0 when there is nothing to resume from. A damaged checkpoint is
        passed over, which is logged and in `.report`. Raises RestoreError when the parts do not
        fit, and DamageError when no checkpoint is whole; nothing has been changed then. `allow`
        accepts differences by their finding codes, as in `Checkpoint.restore`.
        """
        accepted = tuple(allow)
        passed: list[HoldtrueError] = []
        for step, path in reversed(steps(self.path).items()):
            try:
                self.report = open_checkpoint(path).restore(rng=True, allow=accepted, **self.parts)
            except (DamageError, OpenError) as error:
                _log.warning("step %d is passed over, it is damaged:%s", step, error)
                passed.append(error)
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
            if step not in self._manifests:
                try:
                    self._manifests[step] = read_manifest(path)
                except HoldtrueError:
                    found[step] = None
                    continue
            found[step] = self._manifests[step]
        return found

    def _prune(self) -> None:
        manifests = self._read_manifests()
        for step in to_remove(self.keep, list(manifests.items())):
            remove(self.path / step_name(step))
            self._manifests.pop(step, None)
            _log.info("removed step %d: no rule of %r keeps it", step, self.keep)


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


def _bad_step(step: Any) -> Finding:
    return Finding(
        code="step-invalid",
        severity="error",
        where=f"save({step!r})",
        what="a step is a whole number from 0",
        why="checkpoints of a run are named and ordered by it",
        fix="run.save(step + 1, metrics={…})",
    )
