"""Memory in which a state is held still while it is written behind the training.

Kept from save to save: touching fresh memory costs ten times what copying into it does.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np
from msgspec import Struct

from holdtrue.engine.buffers import PAGE, anonymous, padded
from holdtrue.engine.layout import Placement, PlannedFile
from holdtrue.engine.threads import in_threads
from holdtrue.engine.windows import Readable, Together, check_size
from holdtrue.engine.write import batches
from holdtrue.limits import limits


class Staged(Struct, frozen=True, eq=False):
    """The bytes of one tensor in staging memory."""

    data: memoryview

    def blocks(self) -> Iterator[memoryview]:
        step = limits().chunk_bytes
        for at in range(0, len(self.data), step):
            yield self.data[at : at + step]


class Places(Struct, frozen=True, eq=False):
    """Where in staging memory the tensors of some files go."""

    memory: memoryview
    starts: dict[str, int]  # file name → its first byte

    def of(self, file: PlannedFile, first: Placement, last: Placement) -> memoryview:
        """The memory from the first byte of one tensor to the last byte of another."""
        start = self.starts[file.name]
        return self.memory[start + first.offset : start + last.offset + last.nbytes]

    def copies(self, files: list[PlannedFile]) -> dict[str, Staged]:
        """Tensor key → its copy."""
        return {p.key: Staged(self.of(f, p, p)) for f in files for p in f.placements}

    def images(self, files: list[PlannedFile]) -> dict[str, memoryview]:
        """File name → all of the memory that is for it, in whole pages."""
        starts = self.starts
        return {
            f.name: self.memory[starts[f.name] : starts[f.name] + padded(f.nbytes)] for f in files
        }


class Staging:
    """A buffer that grows to the largest state it was given, and is used again for the next."""

    def __init__(self) -> None:
        self._buffer = memoryview(b"")
        self._let_go: Callable[[], object] | None = None
        self._touching: threading.Thread | None = None
        self._enough = threading.Event()  # nothing more is to be touched

    @property
    def nbytes(self) -> int:
        """How much memory is held."""
        return len(self._buffer)

    @property
    def memory(self) -> memoryview:
        """All of it."""
        return self._buffer

    @property
    def held(self) -> bool:
        """True when someone has a hold on this memory."""
        return self._let_go is not None

    def hold(self, let_go: Callable[[], object]) -> None:
        """`let_go` is called before this memory is given back."""
        self._let_go = let_go

    def expect(self, nbytes: int) -> None:
        """Take memory for a state of that size, and touch it beside what the caller does next."""
        if nbytes <= len(self._buffer):
            return
        self.free()
        # Too little memory, or too many threads: then the save that needs them says so.
        with contextlib.suppress(OSError, MemoryError, RuntimeError):
            self._buffer = anonymous(nbytes)
            self._enough.clear()
            given = (self._buffer, self._enough)
            touching = threading.Thread(
                target=_touch, args=given, name="holdtrue-touch", daemon=True
            )
            touching.start()
            self._touching = touching

    def _end_touching(self) -> None:
        touching, self._touching = self._touching, None
        if touching is not None:
            self._enough.set()
            touching.join()

    def free(self) -> None:
        """Give the memory back."""
        self._end_touching()
        let_go, self._let_go = self._let_go, None
        if let_go is not None:
            let_go()
        self._buffer = memoryview(b"")

    def reserve(self, files: list[PlannedFile]) -> Places:
        """Places for all tensors of these files; what was there before is lost."""
        self._end_touching()
        starts, size = {}, 0
        for file in files:
            starts[file.name] = size
            size += padded(file.nbytes)
        if size > len(self._buffer):
            self.free()  # first: the old and the new are never held together
            self._buffer = anonymous(size)
        return Places(self._buffer, starts)


def _touch(memory: memoryview, enough: threading.Event) -> None:
    """A byte of each page, without the GIL. `madvise` would do it in one call, and hold it."""
    pages = np.frombuffer(memory, np.uint8)
    step = limits().chunk_bytes
    for at in range(0, len(pages), step):
        if enough.is_set():
            return
        pages[at : at + step : PAGE] = 0


def copy_in(
    files: list[PlannedFile],
    sources: Mapping[str, Readable],
    places: Places,
    together: Together | None = None,
) -> None:
    """Copy every tensor into its place, with several threads.

    All jobs share one set of threads: large tensors are cut, small neighbours are one job, which
    `together` is offered as a whole.
    """
    jobs: list[Callable[[], None]] = []
    cut: list[Callable[[], None]]
    for file in files:
        for batch in batches(file):
            place = places.of(file, batch[0], batch[-1])
            if len(batch) == 1 and batch[0].nbytes > limits().chunk_bytes:
                source = sources[batch[0].key]
                cut = _cut(batch[0], source, place)
                if getattr(source, "direct", False):
                    jobs += cut
                else:  # of one tensor at a time: their bytes are copies already
                    in_threads(_call, cut)
            else:
                jobs.append(partial(_copy_batch, batch, sources, place, together))
    # A copy keeps a processor busy: more threads than there are processors take turns, at the
    # memory and at Python's lock.
    in_threads(_call, jobs, most=min(limits().threads, os.cpu_count() or 1))


def _call(job: Callable[[], None]) -> None:
    job()


def _copy_batch(
    batch: list[Placement],
    sources: Mapping[str, Readable],
    place: memoryview,
    together: Together | None,
) -> None:
    gapless = sum(p.nbytes for p in batch) == len(place)  # all of the neighbours are wanted
    if together is not None and gapless and together([sources[p.key] for p in batch], place):
        return
    first = batch[0].offset
    for placement in batch:
        at = placement.offset - first
        _copy(placement, sources[placement.key], place[at : at + placement.nbytes])


def _copy(placement: Placement, source: Readable, place: memoryview) -> None:
    done = 0
    for block in source.blocks():
        if done + len(block) <= len(place):
            place[done : done + len(block)] = block
        done += len(block)
    check_size(placement.key, placement.nbytes, done)


def _cut(placement: Placement, source: Readable, place: memoryview) -> list[Callable[[], None]]:
    """Jobs that copy one large tensor."""
    step = limits().chunk_bytes
    jobs: list[Callable[[], None]] = []
    done = 0
    for block in source.blocks():
        if done + len(block) <= len(place):
            for at in range(0, len(block), step):
                piece = block[at : at + step]
                target = place[done + at : done + at + len(piece)]
                jobs.append(partial(_copy_piece, target, piece))
        done += len(block)
    check_size(placement.key, placement.nbytes, done)
    return jobs


def _copy_piece(target: memoryview, piece: memoryview) -> None:
    np.copyto(np.frombuffer(target, np.uint8), np.frombuffer(piece, np.uint8))  # without the GIL
