"""What goes on behind the training: one job at a time, its errors kept until someone asks."""

import logging
import threading
from collections.abc import Callable
from contextvars import copy_context

_log = logging.getLogger("holdtrue")


class Background:
    """A thread for one job at a time. The process does not exit while a job is in progress."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start(self, name: str, job: Callable[[], None]) -> None:
        """Begin a job; the one before must have been waited for. Where no thread can be had, it is
        done when this returns."""
        if self.busy:
            raise RuntimeError("a job is in progress")

        def run() -> None:
            try:
                job()
            except BaseException as error:  # on this thread nobody else would see it
                self._error = error

        # No daemon: those are killed when the main thread ends, half-way through a file.
        thread = threading.Thread(target=copy_context().run, args=(run,), name=name)
        try:
            thread.start()
        except RuntimeError as error:  # too many threads, or the process exits
            _log.warning("%s goes on in the foreground: %s", name, error)
            run()
        else:
            self._thread = thread  # only now: another thread that waits may not join it before

    def wait(self) -> None:
        """Returns when nothing is in progress. What failed is for `raise_error`."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def raise_error(self) -> None:
        """Raise what the last job ended with, once."""
        error, self._error = self._error, None
        if error is not None:
            raise error
