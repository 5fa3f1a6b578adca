"""A folder that is diagnosed: what lies in it, and which file of it is meant."""

import os
from collections.abc import Iterable
from pathlib import Path

from holdtrue.checkpoint import Checkpoint
from holdtrue.checkpoint import open as open_checkpoint
from holdtrue.doctor.subjects import Folder
from holdtrue.doctor.training_folder import training_folder
from holdtrue.errors import HoldtrueError
from holdtrue.findings import Finding
from holdtrue.formats.directories import is_unpacked, recognise
from holdtrue.records.trust import Trust
from holdtrue.storage.locating import is_ours


def find_folder(place: Path, deep: bool) -> Folder | None:
    """What lies in a folder that is no checkpoint of holdtrue's itself; None for all else."""
    try:
        if not place.is_dir() or is_ours(place):
            return None
        found = recognise(str(place))
        if found is not None and found.kind != "holdtrue-run":
            return None
        if is_unpacked(str(place)):
            return None
        from holdtrue.doctor.folders import gather  # not needed to look into one file

        return gather(str(place), deep=deep)
    except (HoldtrueError, OSError):  # what cannot be listed is told by opening it
        return None


def open_meant(path: str | os.PathLike[str], folder: Folder | None) -> Checkpoint:
    """The checkpoint at the path, also where it is several files of a trainer's, or the one file
    with weights in a folder. Raises OpenError or DamageError."""
    try:
        return open_checkpoint(path)
    except HoldtrueError as error:
        if not is_folder(error.report.findings):
            raise
        meant = _meant(folder)
        if meant is not None:
            return open_checkpoint(meant)
        view = training_folder(str(path))
        if view is None:
            raise
        return Checkpoint(Path(path), view, Trust(), None)


def is_folder(findings: Iterable[Finding]) -> bool:
    """Whether opening failed only because the path is a folder of checkpoints."""
    return {f.code for f in findings} <= {"directory-unknown", "run-not-checkpoint"}


def _meant(folder: Folder | None) -> str | None:
    if folder is None or folder.run:
        return None
    from holdtrue.doctor.folders import main_file

    return main_file(folder)
