"""A planned file cut into windows, each filled, hashed and written at one go.

A tensor's digest needs its bytes in order, and a large tensor lies in many windows that several
threads fill at once: they take turns at its digest, which is twenty times as fast as the disk.
What is hashed is what is written, also where someone changes the tensor meanwhile.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import xxhash
from msgspec import Struct

from holdtrue.engine.layout import Placement, PlannedFile
from holdtrue.on_demand import numpy as np


class Readable(Protocol):
    """Gives a tensor's bytes in C order, block after block; on any thread, and the same ones
    when it is called again."""

    def blocks(self) -> Iterator[memoryview]: ...


# Copies sources that lie one behind the other in one call, where it can; True where it did.
Together = Callable[[list[Readable], memoryview], bool]


class Piece(Struct, frozen=True, eq=False, gc=False):
    """The bytes of one tensor that lie in one window."""

    begin: int  # in the window
    end: int
    placement: Placement
    at: int  # in the tensor
    turn: int  # which of the tensor's pieces it is


class Window(Struct, frozen=True, eq=False):
    begin: int  # in the file
    end: int
    pieces: list[Piece]


def windows(file: PlannedFile, size: int) -> list[Window]:
    """The file in windows of `size` bytes, the last one shorter."""
    cut = [Window(at, min(at + size, file.nbytes), []) for at in range(0, file.nbytes, size)]
    for placement in file.placements:
        first, nbytes = placement.offset, placement.nbytes
        at = turn = 0
        while at < nbytes:
            n, begin = divmod(first + at, size)
            end = min(begin + nbytes - at, size)
            cut[n].pieces.append(Piece(begin, end, placement, at, turn))
            at += end - begin
            turn += 1
    return cut


_NOTHING = xxhash.xxh3_128_hexdigest(b"")


class Filling:
    """Fills the windows of one file, and gathers the digests of its tensors.

    Windows have to be begun in order; then one that waits for its turn waits for others that are
    in progress. When one of them fails, `fail` lets the others go.
    """

    def __init__(
        self,
        file: PlannedFile,
        sources: Mapping[str, Readable],
        together: Together | None = None,
    ) -> None:
        # Of empty tensors too, which lie in no window.
        self.digests = {p.key: _NOTHING for p in file.placements if not p.nbytes}
        self._head = memoryview(file.head)
        self._sources, self._together = sources, together
        self._open: dict[str, _Open] = {}
        self._turns = threading.Condition()
        self._error: BaseException | None = None

    def fill(self, window: Window, into: memoryview, *, filled: bool = False) -> None:
        """Put the window's bytes `into` memory; hash what is there where it is `filled` already."""
        if not filled and window.begin < len(self._head):
            head = self._head[window.begin : window.end]
            into[: len(head)] = head
        whole = [p for p in window.pieces if p.end - p.begin == p.placement.nbytes]
        if whole and not filled:
            self._copy_whole(whole, into)
        for piece in whole:
            digest = xxhash.xxh3_128_hexdigest(into[piece.begin : piece.end])
            self.digests[piece.placement.key] = digest
        # The end of what began in another window is done last: others wait for the rest.
        for piece in sorted(window.pieces, key=lambda p: p.turn > 0):
            if piece.end - piece.begin < piece.placement.nbytes:
                self._take_turn(piece, into[piece.begin : piece.end], filled=filled)

    def fail(self, error: BaseException) -> None:
        """Nobody waits for a turn any more; those who do raise the error."""
        with self._turns:
            self._error = self._error or error
            self._turns.notify_all()

    def _copy_whole(self, pieces: list[Piece], into: memoryview) -> None:
        place = into[pieces[0].begin : pieces[-1].end]
        sources = [self._sources[piece.placement.key] for piece in pieces]
        if self._together is not None and len(pieces) > 1 and self._together(sources, place):
            return
        for piece, source in zip(pieces, sources, strict=True):
            _copy_whole(piece.placement, source, into[piece.begin : piece.end])

    def _take_turn(self, piece: Piece, place: memoryview, *, filled: bool) -> None:
        planned = piece.placement
        tensor = self._begun(piece, filled=filled)
        memory = None if tensor.memory is None else tensor.memory[piece.at :][: len(place)]
        if memory is not None and tensor.turn != piece.turn:  # it can be reached in any order
            _copy(memory, place)
            filled = True
        with self._turns:
            self._turns.wait_for(lambda: tensor.turn == piece.turn or self._error is not None)
            if self._error is not None:
                raise self._error
        if filled:
            tensor.digest.update(place)
        elif memory is not None:
            _copy_and_hash(memory, place, tensor.digest)
        else:
            tensor.pull(place)
            tensor.digest.update(place)
        if piece.at + len(place) == planned.nbytes:
            check_size(planned.key, planned.nbytes, planned.nbytes + tensor.left_over())
            self.digests[planned.key] = tensor.digest.hexdigest()
            del self._open[planned.key]
        with self._turns:
            tensor.turn += 1
            self._turns.notify_all()

    def _begun(self, piece: Piece, *, filled: bool) -> "_Open":
        key = piece.placement.key
        if piece.turn == 0:
            begun = _Open(piece.placement, iter(()) if filled else self._sources[key].blocks())
            with self._turns:
                self._open[key] = begun
                self._turns.notify_all()
            return begun
        with self._turns:
            self._turns.wait_for(lambda: key in self._open or self._error is not None)
            if self._error is not None:
                raise self._error
            return self._open[key]


class _Open:
    """A tensor that lies in several windows, while they are filled."""

    def __init__(self, placement: Placement, blocks: Iterator[memoryview]) -> None:
        self.placement = placement
        self.digest = xxhash.xxh3_128()
        self.turn = 0
        self._blocks = blocks
        self._left = next(blocks, memoryview(b""))
        self.memory = self._left if len(self._left) == placement.nbytes else None

    def pull(self, place: memoryview) -> None:
        """The next bytes, from as many blocks as it takes."""
        done = 0
        while done < len(place):
            if not self._left:
                block = next(self._blocks, None)
                if block is None:
                    check_size(self.placement.key, self.placement.nbytes, -1)
                    return
                self._left = block
            count = min(len(self._left), len(place) - done)
            _copy(self._left[:count], place[done : done + count])
            self._left = self._left[count:]
            done += count

    def left_over(self) -> int:
        """Bytes that nobody planned for."""
        return 0 if self.memory is not None else len(self._left) + sum(map(len, self._blocks))


def _copy_whole(planned: Placement, source: Readable, place: memoryview) -> None:
    done = 0
    for block in source.blocks():
        end = done + len(block)
        if end <= len(place):  # never into the neighbour's bytes
            _copy(block, place[done:end])
        done = end
    check_size(planned.key, planned.nbytes, done)


def _copy_and_hash(data: memoryview, place: memoryview, digest: xxhash.xxh3_128) -> None:
    """Slice by slice, so that what is hashed is still in the processor's cache."""
    for at in range(0, len(place), _CACHED):
        part = place[at : at + _CACHED]
        _copy(data[at : at + _CACHED], part)
        digest.update(part)


# From here on a copy gives other threads the interpreter; for less, that takes longer.
_LARGE = 256 * 1024
_CACHED = 512 * 1024


def _copy(data: memoryview, place: memoryview) -> None:
    if len(data) < _LARGE:
        place[:] = data
    else:
        np.copyto(np.frombuffer(place, np.uint8), np.frombuffer(data, np.uint8))


def check_size(key: str, planned: int, given: int) -> None:
    """Raises RuntimeError where a source gives another number of bytes than was planned."""
    if given != planned:
        # The tensor was resized by another thread since it was planned.
        raise RuntimeError(f"{key} changed its size while it was saved")
