"""What `Run.save` returns: a save that goes on behind the training, or has ended."""

import threading
from pathlib import Path

from holdtrue.saving import Saved


class Saving:
    """A save of a run. `stall` and `staging` are known at once, the rest when it is durable."""

    def __init__(self, step: int, path: Path, nbytes: int = 0, *, skipped: bool = False) -> None:
        self.step, self.path = step, path
        self.nbytes = nbytes  # of all tensors and texts
        self.skipped = skipped  # the one before was still in progress, and the run does not wait
        self.stall = 0.0  # seconds that the training waited
        self.staging = 0  # bytes of memory that hold the state meanwhile
        self._ended = threading.Event()
        self._saved: Saved | None = None
        self._error: BaseException | None = None
        if skipped:
            self._ended.set()

    @property
    def done(self) -> bool:
        """True when it is durable, has failed, or was skipped."""
        return self._ended.is_set()

    @property
    def error(self) -> BaseException | None:
        """What it failed with; None where it did not, and before it has ended."""
        return self._error

    @property
    def seconds(self) -> float | None:
        """From the call until it was durable; None before."""
        return self._saved.seconds if self._saved else None

    @property
    def linked(self) -> tuple[str, ...] | None:
        """The files that did not change and were linked; None before it is durable."""
        return self._saved.linked if self._saved else None

    @property
    def written(self) -> int | None:
        """Bytes that were written, and not linked; None before it is durable."""
        return self._saved.written if self._saved else None

    @property
    def buffered(self) -> str | None:
        """Why large files went through the page cache; None where they did not, and before."""
        return self._saved.buffered if self._saved else None

    def wait(self) -> Saved | None:
        """Wait until it is durable; None for one that was skipped. Raises what it failed with."""
        self._ended.wait()
        if self._error is not None:
            raise self._error
        return self._saved

    def end(self, saved: Saved | None, error: BaseException | None = None) -> None:
        """Called by the run, once."""
        self._saved, self._error = saved, error
        self._ended.set()

    def __repr__(self) -> str:
        if self.skipped:
            return f"<save of step {self.step}: skipped>"
        if self._error is not None:
            return f"<save of step {self.step}: failed>"
        state = f"durable after {self.seconds:.2f} s" if self._saved else "in progress"
        return f"<save of step {self.step}: stall {self.stall:.3f} s, {state}>"
