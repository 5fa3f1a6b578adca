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
        self._runner: threading.Thread | None = None  # it, or who runs the job in the foreground
        self._error: BaseException | None = None
        # Not `is_alive`: a `join` that Ctrl-C interrupts takes the thread for ended (Python 3.12).
        self._ended = threading.Event()
        self._ended.set()

    @property
    def busy(self) -> bool:
        return not self._ended.is_set()

    def start(self, name: str, job: Callable[[], None]) -> None:
        """Begin a job; the one before must have been waited for. Where no thread can be had, it is
        done when this returns."""
        if self.busy:
            raise RuntimeError("a job is in progress")
        self._ended = ended = threading.Event()

        def run() -> None:
            try:
                job()
            except BaseException as error:  # on this thread nobody else would see it
                self._error = error
            finally:
                ended.set()

        # No daemon: those are killed when the main thread ends, half-way through a file.
        thread = threading.Thread(target=copy_context().run, args=(run,), name=name)
        self._thread = self._runner = thread
        try:
            thread.start()
        except RuntimeError as error:  # too many threads, or the process exits
            _log.warning("%s goes on in the foreground: %s", name, error)
            self._thread, self._runner = None, threading.current_thread()
            run()

    def wait(self) -> None:
        """Returns when nothing is in progress. What failed is for `raise_error`."""
        thread = self._thread
        if self._runner is not threading.current_thread():
            self._ended.wait()
            if thread is not None and thread.ident is not None:
                thread.join()

    def raise_error(self) -> None:
        """Raise what the last job ended with, once."""
        error, self._error = self._error, None
        if error is not None:
            raise error
