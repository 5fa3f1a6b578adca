"""How far something long is, told to a function of the caller's. The library itself shows nothing.

It is told bytes done and bytes in all, from any thread, one call at a time. Where it has a `close`,
that is called when the work ends, well or not. An exception of its own costs the bar, not the
work; KeyboardInterrupt, SystemExit and their like end the work, as they would between two lines.
"""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator

from holdtrue.engine.write import Progress

Tell = Callable[[int, int], object]
_log = logging.getLogger("holdtrue")


@contextlib.contextmanager
def telling(tell: Tell | None, total: int) -> Iterator[Progress | None]:
    """Yields what the engine reports to; None where nobody wants to know."""
    if tell is None:
        yield None
        return
    teller = _Teller(tell, total)
    try:
        yield teller.add
        teller.finish()
    finally:
        teller.close()


@contextlib.contextmanager
def held_back(progress: Progress | None) -> Iterator[Progress | None]:
    """What a callback interrupts with inside the block is raised at its end: for what must not stop
    half-way. An error of the block itself is raised instead."""
    interrupts: list[BaseException] = []

    def add(nbytes: int) -> None:
        if progress is not None and not interrupts:
            try:
                progress(nbytes)
            except BaseException as error:
                interrupts.append(error)

    yield add
    if interrupts:
        raise interrupts[0]


class _Teller:
    def __init__(self, tell: Tell, total: int) -> None:
        self._tell: Tell | None = tell
        self._close = getattr(tell, "close", None)
        self._total, self._done = total, 0
        self._lock = threading.Lock()

    def add(self, nbytes: int) -> None:
        with self._lock:
            self._done = min(self._done + nbytes, self._total)
            self._say()

    def finish(self) -> None:
        """What was linked, or is a header, was not counted: all of it is done now."""
        with self._lock:
            self._done = self._total
            self._say()

    def close(self) -> None:
        if callable(self._close):
            with self._lock:
                self._close()

    def _say(self) -> None:
        if self._tell is None:
            return
        try:
            self._tell(self._done, self._total)
        except Exception as error:  # a bar that breaks is no reason to lose a checkpoint
            self._tell = None
            _log.warning("progress is not told any more: %s: %s", type(error).__name__, error)
