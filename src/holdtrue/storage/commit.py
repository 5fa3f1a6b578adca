"""Publishing a directory: it appears whole under its name, or not at all.

Files are written into a staging directory beside it and fsynced, then the directory itself, then
it is renamed, then its parent is fsynced. A crash at any point leaves a staging directory that the
next save clears away. (The order is torchsnapshot's and orbax's; a `latest` pointer was rejected:
it can be older or newer than what it points at.)
"""

import contextlib
import errno
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from holdtrue.storage.own_names import STAGING
from holdtrue.storage.staging_area import (
    clear_leftovers,
    erase,
    leave,
    put_aside,
    replaced_name,
    retire,
    staged_name,
    within,
)


@contextlib.contextmanager
def publish(target: Path, *, replace: bool = False, aside: Path | None = None) -> Iterator[Path]:
    """Yields an empty staging directory; publishes it as `target` when the block ends well.

    What is there already is replaced, or kept under the name `aside`. Raises FileExistsError when
    it may be neither, and any OSError of the file system; then the target is as it was before, and
    the staging directory is gone. What killed ones left beside it is cleared away, and, when the
    target is there, its own old copies.
    """
    parent = target.absolute().parent
    make_directories(parent)
    if not replace and aside is None and os.path.lexists(target):
        raise FileExistsError(str(target))
    with _staging(target) as staged:
        yield staged
        sync_directory(staged)
        if aside is not None and os.path.lexists(target):
            _exchange(staged, target, aside)
        elif replace and os.path.lexists(target):
            sync_directory(parent)  # the old one is about to be in the area: it must be found there
            _exchange(staged, target, parent / STAGING / replaced_name(target.name))
        else:
            staged.rename(target)
            sync_directory(parent)
        for old in put_aside(target):
            retire(old)


@contextlib.contextmanager
def publish_file(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """`publish` for one file: yields the path to write it at; the block fsyncs what it writes."""
    parent = target.absolute().parent
    make_directories(parent)
    if not replace and os.path.lexists(target):
        raise FileExistsError(str(target))
    with _staging(target) as staged:
        yield staged / target.name
        (staged / target.name).replace(target)
        staged.rmdir()
        sync_directory(parent)


@contextlib.contextmanager
def _staging(target: Path) -> Iterator[Path]:
    """A new directory beside `target`, which the block is to move; removed when the block fails."""
    area = target.absolute().parent / STAGING
    staged = area / staged_name(target.name)
    with contextlib.suppress(OSError):  # what others left is no reason to fail
        clear_leftovers(area.parent)
    try:
        within(area, staged.mkdir)
        yield staged
    except BaseException:
        erase(staged)
        raise
    finally:
        leave(area)


def _exchange(staged: Path, target: Path, aside: Path) -> None:
    """Put `staged` in the place of `target`. Between the renames both are whole."""
    target.rename(aside)
    try:
        staged.rename(target)
    except BaseException:
        aside.rename(target)
        raise
    sync_directory(target.absolute().parent)


def write_synced(path: Path, data: bytes) -> None:
    """A small file, written whole and fsynced."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def require_files(directory: Path, sizes: Mapping[str, int]) -> None:
    """Raises FileNotFoundError where one of the files that were written is no longer there, or is
    another: what was emptied while it was written must not be published."""
    for name, nbytes in sizes.items():
        path = directory / name
        if path.lstat().st_size != nbytes:
            raise FileNotFoundError(errno.ENOENT, "it is not what was written", str(path))


def may_list(path: Path) -> bool:
    """True for what is there and may be looked into. Path.is_dir would raise where it may not."""
    return os.path.lexists(path) and os.access(path, os.R_OK | os.X_OK)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable. Windows has no such call: it journals names."""
    if os.name == "nt":
        return
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_directories(path: Path) -> None:
    """mkdir -p, each new name made durable."""
    missing = []
    while not path.is_dir():
        if os.path.lexists(path) and not path.is_dir():  # it may have been made just now
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
        missing.append(path)
        path = path.parent
    for directory in reversed(missing):
        directory.mkdir(exist_ok=True)
        sync_directory(directory.parent)


def remove(target: Path) -> None:
    """Remove a published directory: it vanishes whole, then its bytes are freed.

    One that another thread or process has removed already is fine. Of a link the link is removed,
    never what it leads to. Deleting file by file in place was rejected: killed half-way, it leaves
    a damaged checkpoint.
    """
    area = target.absolute().parent / STAGING
    doomed = area / staged_name(f"removed-{target.name}")

    def take() -> None:
        with contextlib.suppress(FileNotFoundError):
            target.rename(doomed)
            return
        if os.path.lexists(target):
            raise FileNotFoundError(str(area))

    try:
        within(area, take)
        # Else, after a power cut, the name may be there still, and some of its files not.
        sync_directory(target.parent)
        erase(doomed)
    finally:
        leave(area)
