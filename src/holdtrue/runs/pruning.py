"""Removing the checkpoints that no rule keeps, and never the last one that is whole."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from holdtrue.errors import DamageError, HoldtrueError, fail
from holdtrue.findings import Finding
from holdtrue.formats.checkpoint_directory import to_view
from holdtrue.records.manifest import Manifest, Summary
from holdtrue.runs.keep import Keep, to_remove
from holdtrue.storage.commit import remove
from holdtrue.verification import verify

_UNREADABLE = "read-failed"
_log = logging.getLogger("holdtrue")
_About = TypeVar("_About", Manifest, Summary)
Checkpoints = Mapping[int, tuple[Path, _About | None]]  # by step; None: cannot be read


def doomed(
    keep: Keep, checkpoints: Checkpoints[_About], is_whole: Callable[[Path, _About], bool]
) -> list[int]:
    """The steps to remove. The newest that is whole is not among them, whatever the rules say."""
    found = to_remove(keep, [(step, m) for step, (_, m) in checkpoints.items()])
    if not found:
        return []
    for step, (path, manifest) in sorted(checkpoints.items(), reverse=True):
        if manifest is not None and is_whole(path, manifest):
            if step in found:
                _log.warning("step %d stays: no newer checkpoint is whole", step)
            return [other for other in found if other != step]
    return []  # nothing is whole: nothing goes


def remove_steps(keep: Keep, steps: Sequence[int], checkpoints: Checkpoints[_About]) -> list[int]:
    """Remove them, each logged; returns those that are gone. One that stays stops nothing."""
    gone: list[int] = []
    for step in steps:
        try:
            remove(checkpoints[step][0])
        except OSError as error:
            _log.warning("step %d is no longer kept, but cannot be removed: %s", step, error)
            continue
        gone.append(step)
        _log.info("removed step %d: no rule of %r keeps it", step, keep)
    return gone


def has_all_files(path: Path, manifest: Manifest) -> bool:
    """Whether every file is there in its full size, with the header that it was written with."""
    try:
        to_view(path, manifest)
    except HoldtrueError:
        return False
    return True


def verifies(path: Path, _: object) -> bool:
    """Whether every byte is as it was written."""
    try:
        return verify(path).ok
    except HoldtrueError:
        return False


def read_back(path: Path) -> None:
    """Read a new checkpoint from the disk and compare every byte. Raises DamageError."""
    _forget_cached(path.glob("*"))
    report = verify(path)
    differing = [f for f in report.errors if f.code != _UNREADABLE]
    if differing:
        raise fail(DamageError, str(path), _not_as_written(path), *report.errors)
    if not report.ok:  # no byte is known to be wrong: memory may have run out, say
        raise fail(DamageError, str(path), *report.errors)


def _forget_cached(files: Iterable[Path]) -> None:
    """What the page cache holds proves nothing about the disk. Only where the system can."""
    if not hasattr(os, "posix_fadvise"):
        return
    for file in files:
        with contextlib.suppress(OSError):
            fd = os.open(file, os.O_RDONLY)
            try:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)


def _not_as_written(path: Path) -> Finding:
    return Finding(
        code="read-back-differs",
        severity="error",
        where=str(path),
        what="the checkpoint that was just written reads back differently",
        why="the disk, its cable or the memory of this machine changed bytes on the way",
        fix="nothing older was removed; save again, and have the machine's disk and memory tested",
    )
