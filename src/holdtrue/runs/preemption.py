"""Signals that ask a training to stop: SIGTERM and SIGUSR1, as schedulers send them."""

import logging
import os
import signal
import threading
from types import FrameType
from typing import Any

_log = logging.getLogger("holdtrue")
# SLURM warns with the signal that `--signal` names, by custom USR1; Kubernetes sends TERM.
_NAMES = ("SIGTERM", "SIGUSR1")


class Preemption:
    """Notes the first signal, so that the step in progress can end; obeys the second at once."""

    def __init__(self) -> None:
        self.asked: int | None = None  # the signal that came
        self._process = os.getpid()
        self._before: dict[int, Any] = {}
        if threading.current_thread() is not threading.main_thread():
            _log.warning(
                "preemption: signals are not watched, since only the main thread may do so: "
                "make the Run there"
            )
            return
        for name in _NAMES:
            number = getattr(signal, name, None)
            if number is not None:  # Windows has no SIGUSR1
                self._before[number] = signal.signal(number, self._note)

    @property
    def exit_code(self) -> int:
        """As a shell reports a process that the signal ended: 143 for TERM, 138 for USR1."""
        return 128 + (self.asked or 0)

    def end(self) -> None:
        """Give the signals back to who had them, where nobody has taken them since."""
        before, self._before = self._before, {}
        if threading.current_thread() is not threading.main_thread():
            self._before = before  # only the main thread may
            return
        for number, handler in before.items():
            if signal.getsignal(number) == self._note:
                # None: a handler that was not set from Python, and cannot be set from it.
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            self._in_child(number)
        elif self.asked is None:
            self.asked = number
        else:
            self._obey(number)

    def _in_child(self, number: int) -> None:
        """A forked process, such as a loader's worker, has the handler too, and no step to end.

        Schedulers signal every process of a job: a worker that dies of the warning would break the
        step that its parent is finishing. SIGTERM is how its parent ends it.
        """
        if number == signal.SIGTERM:
            self._obey(number)

    def _obey(self, number: int) -> None:
        before = self._before.get(number)
        signal.signal(number, before if callable(before) else signal.SIG_DFL)
        signal.raise_signal(number)
