"""Publishing a directory: it appears whole under its name, or not at all.

Files are written into a staging directory beside it and fsynced, then the directory itself, then
it is renamed, then its parent is fsynced. A crash at any point leaves a staging directory that the
next save clears away. (The order is torchsnapshot's and orbax's; a `latest` pointer was rejected:
it can be older or newer than what it points at.)
"""

import contextlib
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

STAGING = ".staging"


@contextlib.contextmanager
def publish(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yields an empty staging directory; publishes it as `target` when the block ends well.

    Raises FileExistsError when the target exists and may not be replaced, and any OSError of the
    file system; then the target is as it was before, and the staging directory is gone.
    """
    parent = target.absolute().parent
    _make_directories(parent)
    if not replace and os.path.lexists(target):
        raise FileExistsError(str(target))
    area = parent / STAGING
    area.mkdir(exist_ok=True)
    staged = area / f"{target.name}.{_owner()}.{uuid4().hex[:8]}"
    staged.mkdir()
    try:
        yield staged
        sync_directory(staged)
        if replace and os.path.lexists(target):
            _exchange(staged, target, area)
        else:
            staged.rename(target)
        sync_directory(parent)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    finally:
        # Only when empty: another process may be saving beside us.
        with contextlib.suppress(OSError):
            area.rmdir()


@contextlib.contextmanager
def publish_file(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """`publish` for one file: yields the path to write it at; the block fsyncs what it writes."""
    parent = target.absolute().parent
    _make_directories(parent)
    if not replace and os.path.lexists(target):
        raise FileExistsError(str(target))
    area = parent / STAGING
    area.mkdir(exist_ok=True)
    staged = area / f"{target.name}.{_owner()}.{uuid4().hex[:8]}"
    try:
        yield staged
        staged.replace(target)
        sync_directory(parent)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise
    finally:
        with contextlib.suppress(OSError):
            area.rmdir()


def _exchange(staged: Path, target: Path, area: Path) -> None:
    """Put `staged` in the place of `target`. Between the renames both are whole, under `area`."""
    aside = area / f"{target.name}.replaced.{uuid4().hex[:8]}"
    target.rename(aside)
    try:
        staged.rename(target)
    except BaseException:
        aside.rename(target)
        raise
    sync_directory(target.absolute().parent)
    shutil.rmtree(aside, ignore_errors=True)


def write_synced(path: Path, data: bytes) -> None:
    """A small file, written whole and fsynced."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def clear_leftovers(parent: Path) -> list[str]:
    """Remove what killed saves of this machine left in `parent`; returns the names removed.

    What belongs to a process that still lives, or to another machine, stays, and so does the old
    copy that an interrupted replacement put aside.
    """
    removed: list[str] = []
    area = parent / STAGING
    for staged in sorted(area.iterdir()) if area.is_dir() else ():
        host, _, pid = _owner_of(staged.name).rpartition("-")
        if host == _host() and pid.isdecimal() and not _lives(int(pid)):
            if staged.is_dir():
                shutil.rmtree(staged, ignore_errors=True)
            else:
                staged.unlink(missing_ok=True)
            removed.append(staged.name)
    with contextlib.suppress(OSError):
        area.rmdir()
    return removed


def put_aside(target: Path) -> list[Path]:
    """Old copies of `target` left by a replacement that was killed between its two renames."""
    area = target.absolute().parent / STAGING
    return sorted(area.glob(f"{target.name}.replaced.*")) if may_list(area) else []


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


def _make_directories(path: Path) -> None:
    """mkdir -p, each new name made durable."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for directory in reversed(missing):
        directory.mkdir(exist_ok=True)
        sync_directory(directory.parent)


def _host() -> str:
    return "".join(c if c.isalnum() else "_" for c in socket.gethostname())[:40]


def _owner() -> str:
    return f"{_host()}-{os.getpid()}"


def _owner_of(staged: str) -> str:
    """The host and process in a staging directory's name: "name.host-pid.random"."""
    parts = staged.rsplit(".", 2)
    return parts[1] if len(parts) == 3 else ""


def _lives(pid: int) -> bool:
    if pid == os.getpid():
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # not ours to signal, so it lives
        return True
    return True


def remove(target: Path) -> None:
    """Remove a published directory: it vanishes whole, then its bytes are freed.

    Deleting file by file in place was rejected: killed half-way, it leaves a damaged checkpoint.
    """
    area = target.parent / STAGING
    area.mkdir(exist_ok=True)
    doomed = area / f"removed-{target.name}.{_owner()}.{uuid4().hex[:8]}"
    target.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)
    with contextlib.suppress(OSError):
        area.rmdir()
