"""A file that several threads read at once: out of the page cache, or past it where asked to.

What the page cache holds is copied from there. What it does not hold is asked for in one request a
window, either into the page cache, so that a second reading finds it there, or past it by O_DIRECT,
which pushes nothing of others out. Mapping the file was rejected: one that is cut short while it is
mapped kills the process.
"""

import contextlib
import errno
import logging
import os
from collections.abc import Callable, Sequence
from threading import Lock
from typing import TYPE_CHECKING

from holdtrue.engine.buffers import PAGE
from holdtrue.limits import KIB, MIB
from holdtrue.on_demand import numpy as np

if TYPE_CHECKING:
    from typing_extensions import Buffer

HOT = 1 * MIB  # is hashed while it is in the nearest cache of a processor
_WORTH_ASKING = 128 * KIB  # smaller reads are left to the system's own read-ahead, and cached
_NO_SUCH_WAY = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.EPERM}
_log = logging.getLogger("holdtrue")


class SharedFile:
    """Reads at given places. Every method may be called from any thread; ends are told as short."""

    def __init__(self, path: str, *, past_cache: bool) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self._nowait: int = getattr(os, "RWF_NOWAIT", 0) if hasattr(os, "preadv") else 0
        self._past_cache = past_cache and bool(self._nowait) and hasattr(os, "O_DIRECT")
        self._direct_fd = -1
        self._lock = Lock()

    def close(self) -> None:
        os.close(self._fd)
        if self._direct_fd >= 0:
            os.close(self._direct_fd)

    def has(self, offset: int) -> bool:
        """Whether the page cache holds the byte at `offset`."""
        return self._at_once([bytearray(1)], offset) == 1

    def scatter(self, targets: "Sequence[Buffer]", nbytes: int, offset: int) -> bool:
        """Fill all the targets in one call out of the page cache; False where it lacks something,
        and then what they hold is undefined."""
        return self._cached(targets, offset) == nbytes

    def fetch(self, nbytes: int, offset: int, buffer: memoryview) -> memoryview:
        """The bytes, within an aligned buffer; fewer where the file ends."""
        lead = offset % PAGE
        got = self._cached([buffer[lead : lead + nbytes]], offset)
        if nbytes - got >= _WORTH_ASKING and self._open_direct():
            got = self._directly(buffer, lead, got, nbytes, offset)
        if got < nbytes:
            got = self._buffered(buffer[lead : lead + nbytes], got, offset)
        return buffer[lead : lead + got]

    def fill(
        self,
        target: memoryview,
        offset: int,
        buffer: memoryview,
        seen: Callable[[memoryview], None] = lambda _: None,
    ) -> int:
        """Read into the target, which may be anywhere; how many bytes there were. `seen` gets them
        in order, while the processor's cache still has them where that can be."""
        got = self._cached([target], offset)
        seen(target[:got])
        left = len(target) - got
        if left >= _WORTH_ASKING and self._past_cache:
            found = self.fetch(left, offset + got, buffer)
            for at in range(0, len(found), HOT):
                piece = found[at : at + HOT]
                seen(piece)
                copy(target[got + at : got + at + len(piece)], piece)
            return got + len(found)
        if left:
            first, got = got, self._buffered(target, got, offset)
            seen(target[first:got])
        return got

    def _cached(self, targets: "Sequence[Buffer]", offset: int) -> int:
        # Linux reads ahead for a read that may not wait, as much as was asked for, even where it
        # returns nothing: what then goes past the cache would be read twice. One byte costs little.
        if self._past_cache and not self.has(offset):
            return 0
        return self._at_once(targets, offset)

    def _at_once(self, targets: "Sequence[Buffer]", offset: int) -> int:
        if not self._nowait:
            return 0
        try:
            return os.preadv(self._fd, targets, offset, self._nowait)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno not in _NO_SUCH_WAY:
                raise
            self._nowait = 0  # this file system cannot tell what is cached: take it as cached
            self._past_cache = False
            return 0

    def _buffered(self, target: memoryview, got: int, offset: int) -> int:
        left = len(target) - got
        if left >= _WORTH_ASKING and hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError):
                os.posix_fadvise(self._fd, offset + got, left, os.POSIX_FADV_WILLNEED)
        while got < len(target) and (count := self._read(target[got:], offset + got)):
            got += count
        return got

    def _read(self, target: memoryview, offset: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._fd, [target], offset)
        with self._lock:  # Windows: one place in the file for all
            os.lseek(self._fd, offset, os.SEEK_SET)
            found = os.read(self._fd, len(target))
        target[: len(found)] = found
        return len(found)

    def _directly(self, buffer: memoryview, lead: int, got: int, nbytes: int, offset: int) -> int:
        """Past the page cache; the buffer mirrors the file from the page of `offset` on."""
        first = offset - lead
        at = (lead + got) // PAGE * PAGE
        end = -(-(lead + nbytes) // PAGE) * PAGE
        while at < end:
            try:
                count = os.preadv(self._direct_fd, [buffer[at:end]], first + at)
            except OSError as error:
                if error.errno not in _NO_SUCH_WAY:
                    raise
                self._refused(error)
                return got
            at += count
            got = max(got, min(at - lead, nbytes))
            if not count or count % PAGE:  # the end of the file; what is left is asked for buffered
                break
        return got

    def _open_direct(self) -> bool:
        if not self._past_cache:
            return False
        if self._direct_fd < 0:
            with self._lock:
                if self._direct_fd < 0 and self._past_cache:
                    try:
                        self._direct_fd = os.open(self.path, os.O_RDONLY | os.O_DIRECT)
                        same = os.fstat(self._direct_fd), os.fstat(self._fd)
                        if not os.path.samestat(*same):
                            raise OSError(errno.EINVAL, "another file stands there now")
                    except OSError as error:
                        self._refused(error)
        return self._past_cache

    def _refused(self, error: OSError) -> None:
        self._past_cache = False
        _log.debug("%s is read through the page cache: O_DIRECT: %s", self.path, error.strerror)


def copy(target: memoryview, source: memoryview) -> None:
    """One flat run of bytes to another; large ones without holding the interpreter up."""
    if len(source) < 64 * KIB:
        target[:] = source
        return
    np.copyto(np.frombuffer(target, np.uint8), np.frombuffer(source, np.uint8))
