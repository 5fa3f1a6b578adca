"""Memory in which a state is held still while it is written behind the training.

Kept from save to save: touching fresh memory costs ten times what copying into it does.
"""

from collections.abc import Iterator, Mapping

import numpy as np
from msgspec import Struct

from holdtrue.engine.buffers import anonymous, padded
from holdtrue.engine.layout import Placement, PlannedFile
from holdtrue.engine.threads import in_threads
from holdtrue.engine.windows import Readable, check_size
from holdtrue.engine.write import batches
from holdtrue.limits import limits


class Staged(Struct, frozen=True, eq=False):
    """The bytes of one tensor in staging memory."""

    data: memoryview

    def blocks(self) -> Iterator[memoryview]:
        step = limits().chunk_bytes
        for at in range(0, len(self.data), step):
            yield self.data[at : at + step]


class Staging:
    """A buffer that grows to the largest state it was given, and is used again for the next."""

    def __init__(self) -> None:
        self._buffer = memoryview(b"")

    @property
    def nbytes(self) -> int:
        """How much memory is held."""
        return len(self._buffer)

    def reserve(self, files: list[PlannedFile]) -> dict[str, memoryview]:
        """Tensor key → its place, for all tensors of these files; what was there before is lost."""
        starts, size = _starts(files)
        if size > len(self._buffer):
            self._buffer = memoryview(b"")  # first: the old and the new are never held together
            self._buffer = anonymous(size)
        return {
            p.key: self._buffer[start + p.offset : start + p.offset + p.nbytes]
            for start, file in zip(starts, files, strict=True)
            for p in file.placements
        }

    def images(self, files: list[PlannedFile]) -> dict[str, memoryview]:
        """File name → the memory that `reserve` laid it out in, in whole pages."""
        starts, _ = _starts(files)
        return {
            file.name: self._buffer[start : start + padded(file.nbytes)]
            for start, file in zip(starts, files, strict=True)
        }


def _starts(files: list[PlannedFile]) -> tuple[list[int], int]:
    """Where each file begins in the buffer, and how much all of them need: in whole pages."""
    starts, size = [], 0
    for file in files:
        starts.append(size)
        size += padded(file.nbytes)
    return starts, size


def copy_in(
    files: list[PlannedFile], sources: Mapping[str, Readable], places: Mapping[str, memoryview]
) -> None:
    """Copy every tensor into its place, with several threads."""
    large = [p for f in files for p in f.placements if p.nbytes > limits().chunk_bytes]
    for placement in large:
        _copy_large(placement, sources[placement.key], places[placement.key])
    small = [
        [p for p in batch if p.nbytes <= limits().chunk_bytes]
        for f in files
        for batch in batches(f)
    ]

    def copy(batch: list[Placement]) -> None:
        for placement in batch:
            _copy(placement, sources[placement.key], places[placement.key])

    in_threads(copy, [batch for batch in small if batch])


def _copy(placement: Placement, source: Readable, place: memoryview) -> None:
    done = 0
    for block in source.blocks():
        if done + len(block) <= len(place):
            place[done : done + len(block)] = block
        done += len(block)
    check_size(placement.key, placement.nbytes, done)


def _copy_large(placement: Placement, source: Readable, place: memoryview) -> None:
    """One tensor, its bytes shared out among the threads."""
    step = limits().chunk_bytes
    jobs: list[tuple[int, memoryview]] = []
    done = 0
    for block in source.blocks():
        if done + len(block) <= len(place):
            jobs += [(done + at, block[at : at + step]) for at in range(0, len(block), step)]
        done += len(block)
    check_size(placement.key, placement.nbytes, done)
    target = np.frombuffer(place, np.uint8)

    def copy(job: tuple[int, memoryview]) -> None:
        at, block = job
        np.copyto(target[at : at + len(block)], np.frombuffer(block, np.uint8))  # without the GIL

    in_threads(copy, jobs)
