"""Long runs of zeros in a stream of values: what a lost page of a file looks like."""

from msgspec import Struct, field

from holdtrue.on_demand import npt
from holdtrue.on_demand import numpy as np

_KEPT = 256  # runs; more of them are how the tensor is, not where it was damaged


class ZeroRuns(Struct):
    """The runs of at least `least` zeros, as (first element, length), whatever blocks they span."""

    least: int
    start: int = -1  # of the run that reaches to the end of what was added
    found: list[tuple[int, int]] = field(default_factory=list)

    def add(self, at: int, flags: "npt.NDArray[np.bool_]", zeros: int) -> None:
        """The next block: `flags` are true where its elements, from number `at` on, are zero."""
        if not zeros:
            self._end(at)
        elif zeros == len(flags):
            self.start = at if self.start < 0 else self.start
        else:
            self._add_mixed(at, flags)

    def finished(self, elements: int) -> tuple[tuple[int, int], ...]:
        """All runs, once the last block has been added."""
        self._end(elements)
        return tuple(self.found)

    def _add_mixed(self, at: int, flags: "npt.NDArray[np.bool_]") -> None:
        edges = np.flatnonzero(flags[1:] != flags[:-1]) + 1
        if flags[0]:
            self.start = at if self.start < 0 else self.start
            self._end(at + int(edges[0]))
            edges = edges[1:]
        else:
            self._end(at)
        if len(edges) % 2:
            self.start = at + int(edges[-1])
            edges = edges[:-1]
        starts, ends = edges[::2], edges[1::2]
        for index in np.flatnonzero(ends - starts >= self.least):
            self._keep(at + int(starts[index]), int(ends[index] - starts[index]))

    def _end(self, at: int) -> None:
        if self.start >= 0:
            self._keep(self.start, at - self.start)
            self.start = -1

    def _keep(self, start: int, length: int) -> None:
        if length >= self.least and len(self.found) < _KEPT:
            self.found.append((start, length))
