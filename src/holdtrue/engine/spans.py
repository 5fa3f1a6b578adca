"""What a reading reads, in the order in which it lies in the files.

What the page cache has goes straight to its place: runs of small storages, each run in one read,
larger ones alone, and huge ones in sections that several threads take. What the disk has to bring
comes in windows, one request each, whatever lies in them: a small read between large ones would
wait behind them for as long as they do.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import xxhash
from msgspec import Struct
from msgspec.structs import replace

from holdtrue.engine.buffers import PAGE
from holdtrue.formats.view import Storage
from holdtrue.limits import MIB, limits
from holdtrue.on_demand import npt
from holdtrue.on_demand import numpy as np

_MOST = 500  # storages of one run; a scattered read takes 1,024 pieces of memory, gaps included
_STEP = 2 * MIB  # of a run: read and hashed while it is in the processor's cache
_HUGE = 8  # chunks; what is larger would keep one thread busy while the others are done
GAP = 4096  # what lies between two storages of one run is read as well, and forgotten

# Where bytes go: an array over the memory, or a function that places them.
Into: TypeAlias = "npt.NDArray[Any] | Callable[[memoryview], None] | None"


class Fill(Struct, frozen=True, eq=False):
    """A storage that is read, and where its bytes go: straight into memory, to a function that
    places them, or nowhere when they are only to be verified."""

    storage: Storage
    into: Into = None


class Run(Struct, frozen=True, eq=False):
    """Neighbours of one file, none over another."""

    file: str
    begin: int
    end: int
    fills: list[Fill]


class Alone(Struct, frozen=True, eq=False):
    """One storage that one thread reads, piece by piece."""

    file: str
    begin: int
    end: int
    fill: Fill


class Section(Struct, frozen=True, eq=False):
    """A part of one large storage."""

    file: str
    begin: int  # in the file
    end: int
    turn: int
    of: "Large"


class Window(Struct, frozen=True, eq=False):
    """What one request brings past the page cache."""

    file: str
    begin: int
    end: int
    fills: list[Fill]  # that lie in it whole
    sections: list[Section]  # of storages that reach into other windows


class Large:
    """A storage that is read in sections, by several threads, and hashed in order."""

    def __init__(self, fill: Fill) -> None:
        self.storage = fill.storage
        self.place = fill.into if callable(fill.into) else None
        self.unreadable = False
        self._into = None if callable(fill.into) else fill.into
        self._memory: memoryview | None = None
        self._turns = threading.Condition()
        self._turn = 0
        self._error: BaseException | None = None
        self._digest = xxhash.xxh3_128()

    def memory(self) -> memoryview | None:
        """All of where the bytes go; None when they go nowhere."""
        with self._turns:
            if self._memory is None and self.place is not None:
                self._memory = memoryview(bytearray(self.storage.nbytes))
            elif self._memory is None and self._into is not None:
                self._memory = flat(self._into)
            return self._memory

    def hash(self, section: Section, data: memoryview) -> bool | None:
        """Add these bytes when those before them have been; at the end whether all were right."""
        with self._turns:
            self._turns.wait_for(lambda: self._turn == section.turn or self._error is not None)
            if self._error is not None:
                raise self._error
        self._digest.update(data)
        if section.end == self.storage.offset + self.storage.nbytes:
            return self._digest.hexdigest() == self.storage.digest
        with self._turns:
            self._turn += 1
            self._turns.notify_all()
        return None

    def fail(self, error: BaseException) -> None:
        """Nobody waits for a turn any more; those who do raise the error."""
        with self._turns:
            self._error = self._error or error
            self._turns.notify_all()


Job: TypeAlias = Run | Alone | Section | Window


def spans(fills: Iterable[Fill]) -> Iterator[Job]:
    """All of it by file and place in the file. Neighbours that are small share a span."""
    step, chunk = _step(), limits().chunk_bytes
    run: list[Fill] = []
    file, first, last = "", 0, 0  # of the run: where it is, begins, and ends
    for fill in sorted(fills, key=_place):
        storage = fill.storage
        begin = storage.offset
        end = begin + storage.nbytes
        if run and not (
            0 <= begin - last <= GAP
            and end - first <= step
            and storage.file == file
            and len(run) < _MOST
        ):
            yield Run(file, first, last, run)
            run = []
        if storage.nbytes > _HUGE * chunk:
            yield from _sections(fill, chunk)
        elif storage.nbytes > step:
            yield Alone(storage.file, begin, end, fill)
        else:
            if not run:
                file, first = storage.file, begin
            run.append(fill)
            last = end
    if run:
        yield Run(file, first, last, run)


def windows(fills: Iterable[Fill]) -> Iterator[Window]:
    """All of it by file and place in the file, in requests of about `limits().chunk_bytes` that end
    on a page."""
    window: Window | None = None
    last = limit = 0  # where what was added ends, and where the window has to
    for fill in sorted(fills, key=_place):
        storage = fill.storage
        at, end = storage.offset, storage.offset + storage.nbytes
        if window is not None and not (window.file == storage.file and 0 <= at - last <= GAP):
            yield replace(window, end=last)
            window = None
        if window is not None and (end <= limit or at == end):
            window.fills.append(fill)
            last = end if at < end else last  # one without bytes may lie anywhere
            continue
        large, turn = Large(fill), 0
        while window is None or at < end:
            if window is None or at >= limit:
                if window is not None:
                    yield replace(window, end=last)
                window = Window(storage.file, at, at, [], [])
                limit = at // PAGE * PAGE + max(PAGE, limits().chunk_bytes)
                if not turn and end <= limit:
                    window.fills.append(fill)
                    last = end
                    break
            last = min(end, limit)
            # The others wait for the end of what they begin, so that is looked at first.
            window.sections.insert(0, Section(storage.file, at, last, turn, large))
            at, turn = last, turn + 1
    if window is not None:
        yield replace(window, end=last)


def _step() -> int:
    """Bytes of one read."""
    return min(_STEP, limits().chunk_bytes)


def flat(array: "npt.NDArray[Any]") -> memoryview:
    """Its bytes in C order, as they lie in memory."""
    return array.reshape(-1).view(np.uint8).data


def _place(fill: Fill) -> tuple[str, int]:
    return fill.storage.file, fill.storage.offset


def _sections(fill: Fill, step: int) -> Iterator[Section]:
    storage, large = fill.storage, Large(fill)
    for turn, at in enumerate(range(0, storage.nbytes, step)):
        end = min(at + step, storage.nbytes)
        yield Section(storage.file, storage.offset + at, storage.offset + end, turn, large)
