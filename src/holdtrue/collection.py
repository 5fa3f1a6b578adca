"""Python's search for reference cycles, put off while a caller waits."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def put_off() -> Iterator[None]:
    """Inside the block nothing is searched for cycles.

    Describing thousands of tensors makes so many objects that the interpreter would go through
    everything that the process holds, several times, in the middle of it; what is made here has no
    cycles. Where several threads are inside at once, the one that switched it off switches it on.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
