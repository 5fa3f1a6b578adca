"""Publishing a directory: it appears whole under its name, or not at all.

Files are written into a staging directory beside it and fsynced, then the directory itself, then
it is renamed, then its parent is fsynced. A crash at any point leaves a staging directory that the
next save clears away. (The order is torchsnapshot's and orbax's; a `latest` pointer was rejected:
it can be older or newer than what it points at.)
"""

import contextlib
import errno
import glob
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import xxhash

STAGING = ".staging"
_TRIES = 1000  # each is lost only to another save that ended in the same instant
_LONGEST = 120  # bytes of a name that go into a staging name, which file systems end at 255


@contextlib.contextmanager
def publish(target: Path, *, replace: bool = False, aside: Path | None = None) -> Iterator[Path]:
    """Yields an empty staging directory; publishes it as `target` when the block ends well.

    What is there already is replaced, or kept under the name `aside`. Raises FileExistsError when
    it may be neither, and any OSError of the file system; then the target is as it was before, and
    the staging directory is gone.
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
            old = parent / STAGING / f"{_stem(target.name)}.replaced.{uuid4().hex[:8]}"
            _exchange(staged, target, old)
            shutil.rmtree(old, ignore_errors=True)
        else:
            staged.rename(target)
            sync_directory(parent)


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
    staged = area / f"{_stem(target.name)}.{_owner()}.{uuid4().hex[:8]}"
    try:
        _within(area, staged.mkdir)
        yield staged
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    finally:
        _leave(area)


def _within(area: Path, act: Callable[[], object]) -> None:
    """Do something that needs `area`, which another save may remove at any moment."""
    for attempt in range(_TRIES):
        try:
            with contextlib.suppress(FileExistsError):  # Path's exist_ok asks again, too late
                area.mkdir()
            act()
        except FileNotFoundError:
            if attempt == _TRIES - 1 or not area.parent.is_dir():
                raise
        else:
            return


def _leave(area: Path) -> None:
    # Only when empty: another process may be saving beside us.
    with contextlib.suppress(OSError):
        area.rmdir()


def _exchange(staged: Path, target: Path, aside: Path) -> None:
    """Put `staged` in the place of `target`. Between the renames both are whole."""
    target.rename(aside)
    try:
        staged.rename(target)
    except BaseException:
        aside.rename(target)
        raise
    sync_directory(target.absolute().parent)


def _stem(name: str) -> str:
    """A name as staging names begin with it: a long one is cut, and a digest tells it apart."""
    raw = os.fsencode(name)
    if len(raw) <= _LONGEST:
        return name
    return os.fsdecode(raw[:_LONGEST]) + "~" + xxhash.xxh3_64_hexdigest(raw)


def write_synced(path: Path, data: bytes) -> None:
    """A small file, written whole and fsynced."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def leftovers(parent: Path) -> list[str]:
    """What saves that ended early left in `parent`; that of processes that still live is not."""
    try:
        names = sorted(os.listdir(parent / STAGING))
    except OSError:
        return []
    owners = ((name, *_owner_of(name).rpartition("-")[::2]) for name in names)
    return [
        n
        for n, h, pid in owners
        if h != _host() or not pid.isdecimal() or not process_lives(int(pid))
    ]


def clear_leftovers(parent: Path) -> list[str]:
    """Remove what killed saves of this machine left in `parent`; returns the names removed.

    What belongs to a process that still lives, or to another machine, stays, and so does the old
    copy that an interrupted replacement put aside.
    """
    removed: list[str] = []
    area = parent / STAGING
    try:
        names = sorted(os.listdir(area))
    except (FileNotFoundError, NotADirectoryError):
        return removed
    for name in names:
        host, _, pid = _owner_of(name).rpartition("-")
        if host == _host() and pid.isdecimal() and not _at_work(name):
            shutil.rmtree(area / name, ignore_errors=True)
            if not os.path.lexists(area / name):
                removed.append(name)
    _leave(area)
    return removed


def put_aside(target: Path) -> list[Path]:
    """Old copies of `target` left by a replacement that was killed between its two renames."""
    area = target.absolute().parent / STAGING
    names = f"{glob.escape(_stem(target.name))}.replaced.*"
    return sorted(area.glob(names)) if may_list(area) else []


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


def _host() -> str:
    return "".join(c if c.isalnum() else "_" for c in socket.gethostname())[:40]


def _owner() -> str:
    return f"{_host()}-{os.getpid()}"


def _owner_of(staged: str) -> str:
    """The host and process in a staging directory's name: "name.host-pid.random"."""
    parts = staged.rsplit(".", 2)
    return parts[1] if len(parts) == 3 else ""


def _at_work(staged: str) -> bool:
    """Whether the process that a staging directory belongs to is known to live."""
    host, _, pid = _owner_of(staged).rpartition("-")
    return host == _host() and pid.isdecimal() and process_lives(int(pid))


def process_lives(pid: int) -> bool:
    """True while there is a process of this number, whoever owns it."""
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

    One that another thread or process has removed already is fine. Deleting file by file in place
    was rejected: killed half-way, it leaves a damaged checkpoint.
    """
    area = target.parent / STAGING
    doomed = area / f"removed-{_stem(target.name)}.{_owner()}.{uuid4().hex[:8]}"

    def take() -> None:
        with contextlib.suppress(FileNotFoundError):
            target.rename(doomed)
            return
        if os.path.lexists(target):
            raise FileNotFoundError(str(area))

    try:
        _within(area, take)
        # Else, after a power cut, the name may be there still, and some of its files not.
        sync_directory(target.parent)
        shutil.rmtree(doomed, ignore_errors=True)
    finally:
        _leave(area)
