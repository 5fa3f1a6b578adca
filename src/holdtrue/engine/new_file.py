"""A new file of a known size, written by several threads, past the page cache where that works.

Behind a training loop buffered writes cost several times what direct ones do: the cache they fill
is memory and work that the training wants. (`O_SYNC` was rejected: it waits at every write.)
"""

import contextlib
import ctypes
import errno
import functools
import os
import threading
from pathlib import Path
from typing import Any

from holdtrue.engine.buffers import PAGE, padded
from holdtrue.limits import limits

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_NOT_SUPPORTED = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


class NewFile:
    """Made empty and given its size at once, so that a disk that is too small says so first.

    `refused` says why writes go through the page cache, where direct ones were asked for.
    """

    def __init__(self, path: Path, nbytes: int, *, direct: bool = False) -> None:
        self.path, self.nbytes = path, nbytes
        self.refused: str | None = None
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        self._fd = os.open(path, flags, 0o666)
        self._moving = threading.Lock()  # of the file's position, where there is no pwrite
        try:
            self.direct = direct and self._go_direct()
            if self.direct:  # buffered writes to blocks that are reserved take several times longer
                _reserve(self._fd, padded(nbytes))
            else:
                os.truncate(self._fd, nbytes)
        except BaseException:
            os.close(self._fd)
            raise

    def write(self, data: memoryview, offset: int) -> None:
        """All of `data` at `offset`, in however many calls that takes. A direct write takes whole
        pages in page-aligned memory, and may reach past the end, which `sync` cuts off."""
        done, step = 0, limits().chunk_bytes
        while done < len(data):
            direct = self.direct  # another thread may find out meanwhile that it cannot be
            try:
                done += self._write_once(data[done : done + step], offset + done)
            except OSError as error:
                if error.errno != errno.EINVAL or not direct:
                    raise
                self._give_up_direct(error)  # a file system that wants larger or other blocks
                continue
            if direct and done < len(data) and done % PAGE:
                done -= done % PAGE  # a write that ended early: the next begins on a page again
                if not done:
                    self._give_up_direct(OSError(errno.EINVAL, "writes end within a block"))

    def sync(self) -> None:
        """Make what was written durable, and the file as long as it was planned."""
        if os.fstat(self._fd).st_size != self.nbytes:
            os.truncate(self._fd, self.nbytes)
        os.fsync(self._fd)
        if self.refused is not None and hasattr(os, "posix_fadvise"):
            # What direct writes would not have left behind either.
            with contextlib.suppress(OSError):
                os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        os.close(self._fd)

    def _write_once(self, data: memoryview, offset: int) -> int:
        if hasattr(os, "pwrite"):
            return os.pwrite(self._fd, data, offset)
        with self._moving:
            os.lseek(self._fd, offset, os.SEEK_SET)
            return os.write(self._fd, data)

    def _go_direct(self) -> bool:
        # Set afterwards: an open with O_DIRECT that is refused may leave an empty file behind.
        if fcntl is None or not hasattr(os, "O_DIRECT"):
            self.refused = "this system has no direct writes"
            return False
        try:
            flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
            fcntl.fcntl(self._fd, fcntl.F_SETFL, flags | os.O_DIRECT)
        except OSError as error:
            self.refused = f"the file system has no direct writes: {error.strerror}"
            return False
        return True

    def _give_up_direct(self, error: OSError) -> None:
        flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
        fcntl.fcntl(self._fd, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        self.direct = False
        self.refused = f"the file system refused a direct write: {error.strerror}"


def _reserve(fd: int, nbytes: int) -> None:
    """Give the file its size, and its blocks on the disk where the file system can say so.

    Not `os.posix_fallocate`: where a file system has no such call, that writes to every block.
    """
    allocate = _fallocate()
    while allocate is not None and nbytes:
        if allocate(fd, 0, 0, nbytes) == 0:
            return
        number = ctypes.get_errno()
        if number in _NOT_SUPPORTED:
            break
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))
    os.truncate(fd, nbytes)


@functools.cache
def _fallocate() -> Any:
    """The C library's `fallocate(fd, mode, offset, length)`; None where it has none."""
    if os.name == "nt":
        return None
    library = ctypes.CDLL(None, use_errno=True)
    found = getattr(library, "fallocate64", None) or getattr(library, "fallocate", None)
    if found is not None:
        found.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
        found.restype = ctypes.c_int
    return found
