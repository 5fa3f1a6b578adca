"""The bytes of a pickle, read forward under a budget, from memory or through a window on a file.

A window and not `mmap`: a mapped file that is rewritten meanwhile kills the process with SIGBUS.
"""

from collections.abc import Callable
from typing import NoReturn

from holdtrue.errors import DamageError, OpenError, fail
from holdtrue.findings import Finding
from holdtrue.formats.source import inspect_path, read_bytes
from holdtrue.limits import MIB, limits

Fetch = Callable[[int, int], bytes]

WINDOW = 1 * MIB
SPAN = 1 * MIB  # byte strings from here on stay in the file


class PickleSource:
    """A forward cursor. `offset` counts from the start of the data or the file."""

    def __init__(
        self,
        data: bytes | memoryview,
        where: str,
        *,
        fetch: Fetch | None = None,
        file: str | None = None,
        start: int = 0,
        end: int | None = None,
    ) -> None:
        self.where = where
        self.file = file  # set where offsets count within a file that can be read again
        self._buffer = bytes(data)
        self._position = 0
        self._base = start
        self._fetch = fetch
        self._end = start + len(self._buffer) if end is None else end
        self._budget = limits().pickle_bytes
        self._taken = 0

    @property
    def offset(self) -> int:
        """Of the next byte."""
        return self._base + self._position

    @property
    def remaining(self) -> int:
        return self._end - self.offset

    def opcode(self) -> tuple[int, int]:
        """The offset of the next opcode, and the opcode."""
        if self._position >= len(self._buffer):
            self._fill(1)
        position = self._position
        self._position = position + 1
        return self._base + position, self._buffer[position]

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        stop = self._position + count
        if stop > len(self._buffer):
            self._fill(count)
            stop = self._position + count
        piece = self._buffer[self._position : stop]
        self._position = stop
        return piece

    def line(self) -> bytes:
        """Up to the next newline, which is left out."""
        size = 256
        while True:
            stop = self._buffer.find(b"\n", self._position)
            if stop >= 0:
                piece = self._buffer[self._position : stop]
                self._position = stop + 1
                return piece
            held = len(self._buffer) - self._position
            if held >= self.remaining:
                self.truncated(held + 1)
            size = min(max(2 * held, size), self.remaining)
            self._fill(size)

    def skip(self, count: int) -> int:
        """Pass over `count` bytes without reading them; where they began."""
        if count > self.remaining:
            self.truncated(count)
        start = self.offset
        if self._position + count <= len(self._buffer):
            self._position += count
        else:
            self._base, self._buffer, self._position = start + count, b"", 0
        return start

    def lazy(self, count: int) -> bool:
        """Whether a byte string of this size is better left in the file."""
        return self.file is not None and self._fetch is not None and count >= SPAN

    def _fill(self, count: int) -> None:
        if count > self.remaining:
            self.truncated(count)
        if self._fetch is None:  # all of it is in the buffer already
            self.truncated(count)
        start = self.offset
        wanted = min(max(count, WINDOW), self.remaining)
        self._taken += wanted
        if self._taken > self._budget:
            raise over_budget(self.where, "pickle_bytes", self._budget, "bytes of pickle")
        self._buffer = self._fetch(start, wanted)
        self._base, self._position = start, 0
        if len(self._buffer) < count:
            self.truncated(count)

    def truncated(self, count: int) -> NoReturn:
        """Report that fewer than `count` bytes are left."""
        raise fail(
            DamageError,
            self.where,
            Finding(
                code="pickle-truncated",
                severity="error",
                where=f"{self.where}: byte {self.offset}",
                what="the pickle ends before it is complete",
                why=f"{count:,} bytes are needed here, {max(self.remaining, 0):,} are left",
                fix="fetch or save the file again; `holdtrue salvage` keeps what is whole",
            ),
        )


def from_file(path: str, where: str, start: int = 0, end: int | None = None) -> PickleSource:
    """A source over bytes `start` to `end` of a file."""
    size = inspect_path(path).st_size

    def fetch(offset: int, count: int) -> bytes:
        return read_bytes(path, offset, count)

    stop = size if end is None else min(end, size)
    return PickleSource(b"", where, fetch=fetch, file=path, start=start, end=stop)


def over_budget(where: str, budget: str, value: int, unit: str) -> OpenError:
    """The error for a file that asks for more than a budget allows."""
    return fail(
        OpenError,
        where,
        Finding(
            code="over-budget",
            severity="error",
            where=where,
            what=f"the file asks for more than {value:,} {unit}",
            why="files are read within budgets, so that none can exhaust the machine",
            fix=f"if you trust the file, set HOLDTRUE_{budget.upper()} to a larger number",
        ),
    )
