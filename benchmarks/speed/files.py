"""Files that are measured: made durable, thrown out of the page cache, or read into it."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

_DROP = Path("/proc/sys/vm/drop_caches")
_STEP = 16 << 20


def all_files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def sync_all(folder: Path) -> None:
    """fsync of every file and of every directory: what makes a save durable."""
    for path in [*all_files(folder), *(p for p in folder.rglob("*") if p.is_dir()), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


_gently = False


def only_its_own(choice: bool) -> None:
    """Whether `make_cold` leaves the page cache of everyone else alone, as tests have to."""
    global _gently
    _gently = choice


def how_dropped() -> str:
    """How `make_cold` does it on this machine, for the table."""
    return "drop_caches" if _may_drop() else "posix_fadvise DONTNEED on its files"


def make_cold(folder: Path) -> None:
    """Nothing of these files is in the page cache afterwards."""
    sync_all(folder)
    for path in all_files(folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    if _may_drop():
        _DROP.write_text("3")


def make_warm(folder: Path) -> None:
    """Everything of these files is in the page cache afterwards."""
    buffer = bytearray(_STEP)
    for path in all_files(folder):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def empty(folder: Path) -> None:
    """Remove what is in it; the next contender finds a disk that has nothing left to write."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """The removal of files is on disk. Not `os.sync`, which waits for what others have written."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _may_drop() -> bool:
    return not _gently and _DROP.exists() and os.geteuid() == 0 and os.access(_DROP, os.W_OK)
