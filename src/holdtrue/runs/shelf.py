"""What stands in a run's directory, as far as this process knows it, and who may write there."""

import contextlib
import logging
import os
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from holdtrue.engine.buffers import padded
from holdtrue.engine.linking import Earlier
from holdtrue.errors import HoldtrueError, SaveError, fail
from holdtrue.formats.checkpoint_directory import read_manifest, read_summary
from holdtrue.formats.source import unreachable
from holdtrue.formats.step_names import step_name
from holdtrue.records.manifest import Manifest, Summary
from holdtrue.runs.choosing import free_name, later, later_steps_there, put_later_aside
from holdtrue.runs.keep import Keep, placed
from holdtrue.runs.pruning import doomed, has_all_files, read_back, remove_steps
from holdtrue.runs.resuming import Resumed
from holdtrue.runs.writing import give_back, is_alone, still_held, take
from holdtrue.saving import Saved
from holdtrue.storage.commit import make_directories
from holdtrue.storage.failures import already_exists, not_written
from holdtrue.storage.locating import steps
from holdtrue.storage.staging_area import clear_leftovers

_log = logging.getLogger("holdtrue")
_SAVED_ONCE = "go on with the next step; to do this one again, move what is there away first"


class Shelf:
    """The checkpoints of one run. `damaged` and `given_up` are steps that are there and count no
    more: those that the last resume passed over, and those after the one that it went back to."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.damaged: frozenset[int] = frozenset()
        self.given_up: tuple[int, ...] = ()
        # Of a thousand checkpoints their manifests would fill the memory; of one, the newest, it is
        # kept whole, for the files that the next save links.
        self._summaries: dict[int, Summary] = {}
        self._newest: tuple[Path, Manifest] | None = None
        self._readable: set[int] = set()  # steps whose whole manifest this process has read
        self._own: set[int] = set()  # what was saved here, by threads perhaps that overtake
        self._link = True  # files of the checkpoint before, where they did not change
        self._proved: dict[tuple[int, int], tuple[int, int]] = {}  # files; see `Earlier`
        self._writer = 0  # the process that is, or was, the writer
        self._told_unlinked = False
        self._release: weakref.finalize[..., Any] | None = None  # while this process is the writer

    def clear_leftovers(self) -> None:
        """Remove what killed saves left; the writer knows of more of them that they are dead.
        Raises OpenError where the directory may not be read."""
        try:
            cleared = clear_leftovers(self.run, alone=is_alone(self.run))
        except OSError as error:
            raise unreachable(str(self.run), error) from None
        for name in cleared:
            _log.info("cleared away %r, left by a save that was killed", name)

    def summaries(self) -> dict[int, Summary | None]:
        """What is said of each step, oldest first; None for one that counts no more."""
        return {step: self._summary(step, path) for step, path in steps(self.run).items()}

    def earlier(self) -> Earlier | None:
        """The newest checkpoint that is there, for its unchanged files."""
        if not self._link:
            return None
        with contextlib.suppress(HoldtrueError):  # a run that cannot be listed has none to offer
            newest = self._read_newest(steps(self.run))
            if newest is not None:
                return Earlier(*newest, self._proved)
        return None

    def place(self, step: int) -> tuple[Path, Path | None]:
        """Where a step goes, and the name that what is there gets. Raises SaveError where it has
        been saved already, or comes before others that are there."""
        target = self.run / step_name(step)
        self._require_none_later(step)
        if not os.path.lexists(target):
            return target, None
        if step in self.damaged:
            aside = free_name(target, "damaged")
            _log.warning("step %d was damaged; what is there becomes %s", step, aside)
            return target, aside
        if step in self.given_up:
            return target, free_name(target, "abandoned")  # it is gone by then
        raise fail(SaveError, str(target), already_exists(target, _SAVED_ONCE))

    def _require_none_later(self, step: int) -> None:
        """Another training's steps would be the latest, and pruning would take this one's for old.

        Keeping the newest save instead of the highest step was rejected: a resume after a crash
        would still go on from the other training.
        """
        gone = {*self.damaged, *self.given_up, *self._own}
        try:
            there = steps(self.run)
        except HoldtrueError:  # may not be listed: then nothing is pruned either
            return
        found = [(s, path) for s, path in there.items() if s > step and s not in gone]
        others = [s for s, path in found if _is_readable(path)]
        if others:
            raise fail(SaveError, str(self.run), later_steps_there(self.run, step, others))

    def resumed(self, found: Resumed, there: dict[int, Path]) -> None:
        """Note which steps count no more after a resume. `there` are those it chose from: what
        another process has published since is not given up by it."""
        self.damaged = found.damaged
        self._forget(found.damaged)
        if found.error is None:
            newer = later(there, found.step)
            # Damaged ones are put aside as that, by a save of the same step.
            self.given_up = tuple(step for step in newer if step not in found.damaged)

    def staging_of(self, step: int) -> int:
        """How much memory the save of a step held the state in, which was 0 where it was waited
        for. Never more than what is there on the disk, whatever the manifest says."""
        path = self.run / step_name(step)
        summary = self._summary(step, path)
        if summary is None or summary.cost is None:
            return 0
        try:
            there = sum(padded(file.stat().st_size) for file in path.iterdir())
        except OSError:  # removed meanwhile
            return 0
        return min(summary.cost.staging, there)

    def leave_behind(self) -> None:
        """The training that was resumed away from ends before the first save of this one.

        Before and not after: killed in between, the next resume must not take the other's latest.
        """
        if self.given_up:
            put_later_aside(self.run, list(self.given_up), steps(self.run))
            self._forget(self.given_up)
            self.given_up = ()

    def published(self, step: int, saved: Saved, keep: Keep, *, verify: bool) -> None:
        """Read a new checkpoint back where asked to, then remove what no rule keeps. Raises
        DamageError; nothing is removed then."""
        self.damaged -= {step}
        self._own.add(step)
        self._forget((step,))  # an earlier one that was deleted by hand
        if saved.not_linked is not None and not self._told_unlinked:
            self._told_unlinked = True
            _log.warning(
                "%s: this file system makes no hard links (%s); files that did not change are "
                "written again each time",
                self.run, saved.not_linked,
            )  # fmt: skip
        if verify:
            self._link = False  # not from what may turn out to be damaged
            try:
                read_back(saved.path)
            except HoldtrueError:
                self.damaged |= {step}
                raise
        self._link = True
        self._prune(keep)

    def become_writer(self, target: Path) -> None:
        """Raises SaveError where another process saves into the run, or the disk refuses."""
        held = self._release is not None and self._release.alive
        if held and self._writer == os.getpid() and still_held(self.run):
            return
        if held:  # a forked child has not inherited the right; and the directory may be another one
            self.free()
        try:
            make_directories(self.run)
            take(self.run)
        except OSError as error:
            raise not_written(target, error, 0) from error
        # Also when the run is dropped without `close`, as in a notebook's next cell.
        self._release = weakref.finalize(self, give_back, self.run)
        self._writer = os.getpid()
        with contextlib.suppress(HoldtrueError):  # no reason not to save
            self.clear_leftovers()

    def free(self) -> None:
        """Let others write."""
        if self._release is not None:
            self._release()
            self._release = None

    def _summary(self, step: int, path: Path) -> Summary | None:
        """None for one that cannot be read, or is damaged: its manifest may well be whole."""
        if step not in self._summaries and step not in self.damaged:
            with contextlib.suppress(HoldtrueError):
                self._summaries[step] = read_summary(path)
        return None if step in self.damaged else self._summaries.get(step)

    def _read_newest(self, found: dict[int, Path]) -> tuple[Path, Manifest] | None:
        """The newest checkpoint that can be read and is not damaged, with its manifest."""
        for step, path in reversed(found.items()):
            if step in self.damaged:
                continue
            if self._newest is not None and self._newest[0] == path:
                return self._newest
            with contextlib.suppress(HoldtrueError):
                self._newest = path, read_manifest(path)
                self._readable.add(step)
                return self._newest
        return None

    def _forget(self, gone: Iterable[int]) -> None:
        for step in gone:
            self._summaries.pop(step, None)
            self._readable.discard(step)
            if self._newest is not None and self._newest[0].name == step_name(step):
                self._newest = None

    def _prune(self, keep: Keep) -> None:
        """A checkpoint that cannot be removed is no reason to fail: the save is done."""
        try:
            here = steps(self.run)
            self._read_newest(here)  # now, behind the training, and not in the next save's way
            if not keep.rules:
                return
            found = {step: (path, self._summary(step, path)) for step, path in here.items()}
            going = doomed(keep, found, self._has_all_files)
            # What cannot be read is never removed, and takes no good one's place; a summary tells
            # of the digest alone. All others are not read: of a thousand that takes seconds.
            while bad := self._not_readable(keep, going, found):
                found.update({step: (here[step], None) for step in bad})
                going = doomed(keep, found, self._has_all_files)
        except Exception as error:  # the save is durable, whatever is wrong with the others
            _log.warning("nothing is removed, the run cannot be listed: %s", error)
            return
        self._forget(remove_steps(keep, going, found))

    def _has_all_files(self, path: Path, _: Summary) -> bool:
        if self._newest is not None and self._newest[0] == path:
            return has_all_files(path, self._newest[1])
        with contextlib.suppress(HoldtrueError):
            return has_all_files(path, read_manifest(path))
        return False

    def _not_readable(
        self, keep: Keep, going: Iterable[int], found: Mapping[int, tuple[Path, Summary | None]]
    ) -> list[int]:
        """Those that are to go, or have a place, although their whole manifest cannot be read."""
        if not going:
            return []
        in_place = placed(keep, [(step, summary) for step, (_, summary) in found.items()])
        bad: list[int] = []
        for step in {*going, *in_place} - self._readable:
            try:
                read_manifest(found[step][0])
                self._readable.add(step)
            except HoldtrueError:
                bad.append(step)
        return bad


def _is_readable(path: Path) -> bool:
    try:
        read_manifest(path)
    except HoldtrueError:
        return False
    return True
