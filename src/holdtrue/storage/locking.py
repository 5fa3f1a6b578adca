"""One writer a run: a lock that says who holds it, and that dies with its process.

The kernel's `flock` is what holds, where the file system has it: it is let go when the process
ends, however it ends. Elsewhere the lock is a file that is made exclusively, with its owner in it;
one whose owner is dead is taken over. The file stays after neither.
"""

import contextlib
import errno
import json
import os
import stat
import sys
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import msgspec

from holdtrue.storage.own_names import LOCK, ObstacleError
from holdtrue.storage.processes import Process, is_gone, this_process

if sys.platform != "win32":
    import fcntl

_TRIES = 100
_WITHOUT = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOLCK, errno.EBADF}
_MOST = 4096  # bytes that are read of a lock file
_BEGINNING = b'{"pid":'  # of what is written into one
# A link is not followed, and a pipe not waited for: others may have put them there.
_SAFELY = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


class Owner(Process, frozen=True, kw_only=True):
    """Who holds a lock."""

    since: str  # UTC, ISO 8601


class Held(Exception):  # noqa: N818 - not an error: the caller says what it means
    """Another process holds the lock."""

    def __init__(self, owner: Owner | None) -> None:
        super().__init__(owner)
        self.owner = owner  # None where the file does not say


class Lock:
    """A lock in a directory, held by this process from `__init__` to `release`.

    `flocked` is False where the file system has no flock. Raises Held, or OSError.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / LOCK
        self.taken_from: Owner | None = None  # a dead one whose lock this was
        self._pid = os.getpid()
        self._fd = self._flock() if sys.platform != "win32" else None
        self.flocked = self._fd is not None
        if self._fd is None:
            self._exclusively()

    @property
    def in_place(self) -> bool:
        """Whether the file that stands there is this lock: someone may have removed the directory,
        and another process have made it again."""
        if self._fd is not None:
            return _is_at(self._fd, self.path)
        owner = owner_of(self.path.parent)
        return owner is not None and owner.pid == self._pid

    def release(self) -> None:
        """Let it go. In a forked child this does nothing: the lock is the parent's."""
        if self._pid != os.getpid():
            return
        with contextlib.suppress(OSError):
            if self.in_place:
                self.path.unlink()
        self._pid = -1
        self.forget()

    def forget(self) -> None:
        """In a forked child: the kernel's lock lasts while anyone has the file open, and it is to
        end with the process that took it."""
        if self._fd is not None:
            with contextlib.suppress(OSError):  # it is closed all the same
                os.close(self._fd)
            self._fd = None

    def _flock(self) -> int | None:
        """The open file that holds the lock; None where the file system does not lock."""
        for _ in range(_TRIES):
            _check_name(self.path)
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | _SAFELY, 0o644)
            try:
                _check_content(fd, self.path)
            except OSError:
                os.close(fd)
                raise
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                before = _read(fd)
                os.close(fd)
                if error.errno in _WITHOUT:
                    with contextlib.suppress(OSError):
                        if before is None:  # empty, or cut off: an owner's would be believed
                            self.path.unlink()
                    return None
                if error.errno == errno.EWOULDBLOCK:
                    raise Held(before) from None
                raise
            try:
                # The one before may have removed the file between the two calls.
                if not _is_at(fd, self.path):
                    os.close(fd)
                    continue
                self.taken_from = _read(fd)
            except OSError:
                os.close(fd)  # else this process itself would keep the run from being taken
                raise
            with contextlib.suppress(OSError):  # a full disk: held all the same, without a name
                os.ftruncate(fd, 0)
                os.write(fd, _encoded())
            return fd
        raise Held(None)

    def _exclusively(self) -> None:
        for _ in range(_TRIES):
            try:
                fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            except FileExistsError:
                _check_name(self.path)
                owner = owner_of(self.path.parent)
                if owner is None or not is_gone(owner):
                    raise Held(owner) from None
                # By renaming: of several that see a dead owner, one wins.
                stale = self.path.with_name(f"{LOCK}.{uuid4().hex[:8]}")
                with contextlib.suppress(FileNotFoundError):
                    self.path.rename(stale)
                    self.taken_from = owner
                    stale.unlink()
                continue
            with os.fdopen(fd, "wb") as file:
                file.write(_encoded())
            return
        raise Held(None)


def owner_of(directory: Path) -> Owner | None:
    """Who a directory's lock file names; None without one, or where it cannot be read."""
    try:
        _check_name(directory / LOCK)
        fd = os.open(directory / LOCK, os.O_RDONLY | _SAFELY)
        try:
            _check_kind(os.fstat(fd), directory / LOCK)
            return _decoded(os.read(fd, _MOST))
        finally:
            os.close(fd)
    except OSError:
        return None


def _check_name(path: Path) -> None:
    """Raises ObstacleError where something else than a file stands there."""
    with contextlib.suppress(FileNotFoundError):
        _check_kind(path.lstat(), path)


def _check_kind(found: os.stat_result, path: Path) -> None:
    """What is written into a link, or a file that has another name too, is written elsewhere."""
    if not stat.S_ISREG(found.st_mode):
        what = "a link" if stat.S_ISLNK(found.st_mode) else "no file"
        raise ObstacleError(path, "not-a-file", f"{what} stands where a run keeps its lock")
    if found.st_nlink > 1:
        what = "a file that has another name too stands where a run keeps its lock"
        raise ObstacleError(path, "already-exists", what)


def _check_content(fd: int, path: Path) -> None:
    """Raises ObstacleError where the file is neither empty nor a lock of ours, whole, or as a power
    cut left it."""
    _check_kind(os.fstat(fd), path)
    raw = os.pread(fd, _MOST, 0)
    if raw.strip(b"\0") and raw[: len(_BEGINNING)] != _BEGINNING[: len(raw)]:
        what = "a file of something else stands where a run keeps its lock"
        raise ObstacleError(path, "already-exists", what)


def _is_at(fd: int, path: Path) -> bool:
    try:
        here, there = os.fstat(fd), path.lstat()
    except FileNotFoundError:
        return False
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def _read(fd: int) -> Owner | None:
    return _decoded(os.pread(fd, _MOST, 0))


def _encoded() -> bytes:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    owner = Owner(since=since, **msgspec.structs.asdict(this_process()))
    return json.dumps(msgspec.to_builtins(owner)).encode() + b"\n"


def _decoded(raw: bytes) -> Owner | None:
    try:
        return msgspec.json.decode(raw, type=Owner)
    except msgspec.MsgspecError:
        return None
