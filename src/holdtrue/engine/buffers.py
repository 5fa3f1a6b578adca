"""Page-aligned memory for bytes on their way to or from the disk, kept and used again.

Direct reads and writes want memory that begins on a page, which tensors do not: what goes past
the page cache goes through one of these. They stay within `limits().buffer_bytes` together.
"""

import contextlib
import mmap
import threading
from collections.abc import Iterator

from holdtrue.limits import limits

PAGE = 4096  # what every direct read or write is a multiple of, in memory and in the file

_idle: list[memoryview] = []
_lock = threading.Lock()


@contextlib.contextmanager
def lease(nbytes: int) -> Iterator[memoryview]:
    """Memory of `nbytes`, rounded up to whole pages, for as long as the block lasts. What it held
    before is still in it."""
    size = padded(nbytes)
    with _lock:
        found = next((n for n, b in enumerate(_idle) if len(b) >= size), None)
        buffer = None if found is None else _idle.pop(found)
    if buffer is None:
        buffer = anonymous(size)
    try:
        yield buffer[:size]
    finally:
        with _lock:
            if sum(len(b) for b in _idle) + len(buffer) <= limits().buffer_bytes:
                _idle.append(buffer)


def padded(nbytes: int) -> int:
    """Rounded up to whole pages."""
    return -(-nbytes // PAGE) * PAGE


def anonymous(nbytes: int) -> memoryview:
    """Fresh memory in large pages where the system has them: a fault for 2 MiB, not for 4 KiB."""
    if not hasattr(mmap, "MAP_ANONYMOUS"):
        return memoryview(mmap.mmap(-1, nbytes))
    # Private: Python's default is shared memory, which gets no large pages.
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel built without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)
