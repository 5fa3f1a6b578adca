"""A progress bar for bytes, on a terminal's stderr; nothing elsewhere."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """Yields what to tell (bytes done, bytes of all), or None where nobody is looking."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    with _bar(what, console) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class ProgressBar:
    """For `save`, `restore` and `Run`: progress=holdtrue.ProgressBar().

    What takes longer than `after` seconds is shown as a bar on a terminal's stderr, which goes away
    at the end. Where stderr is a file or a pipe, nothing is.
    """

    def __init__(self, what: str = "holdtrue", *, after: float = 2.0) -> None:
        self.what, self.after = what, after
        self._console = Console(stderr=True)
        self._lock = threading.RLock()
        self._began: float | None = None
        self._bar: Progress | None = None

    def __call__(self, done: int, total: int) -> None:
        if not self._console.is_terminal:
            return
        with self._lock:
            if self._began is None:
                self._began = time.monotonic()
            if self._bar is None and time.monotonic() - self._began >= self.after:
                self._bar = _bar(self.what, self._console)
                self._bar.add_task(self.what, total=total)
                self._bar.start()
            if self._bar is not None:
                self._bar.update(self._bar.task_ids[0], completed=done, total=total)

    def close(self) -> None:
        """Take the bar away; the next call begins a new one."""
        with self._lock:
            bar, self._bar, self._began = self._bar, None, None
            if bar is not None:
                bar.stop()


def _bar(what: str, console: Console) -> Progress:
    columns = (TextColumn(what), BarColumn(), DownloadColumn(binary_units=True),
               TransferSpeedColumn())  # fmt: skip
    return Progress(*columns, console=console, transient=True)
