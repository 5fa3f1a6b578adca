"""The bytes of two tensors, read together in chunks of bounded size whatever their layouts."""

from collections.abc import Callable, Iterator

import xxhash
from msgspec.structs import replace

from holdtrue.errors import DamageError, fail
from holdtrue.formats.pieces import blocks, cut, is_contiguous, reach
from holdtrue.formats.tensor_bytes import (
    Bytes,
    digest_mismatch,
    element_bytes,
    read_box,
    storage_chunks,
    tensor_chunks,
)
from holdtrue.formats.view import LazyTensor, Piece, Storage
from holdtrue.limits import limits
from holdtrue.on_demand import numpy as np
from holdtrue.records.dtypes import product

Progress = Callable[[int], None]  # called with the number of bytes just read
_Box = tuple[int, ...]

_SPAN = 4  # chunks that may be read for one chunk of a tensor whose rows are not in a row


def known_digest(tensor: LazyTensor) -> str | None:
    """The digest of a tensor's bytes where the file keeps just that; nothing is read."""
    piece = _only_piece(tensor)
    if piece is None or piece.storage.codec != "raw":
        return None
    whole = piece.storage.nbytes == product(tensor.shape) * element_bytes(tensor)
    return piece.storage.digest if whole else None


def in_memory_order(a: LazyTensor, b: LazyTensor) -> tuple[LazyTensor, LazyTensor]:
    """Both with their axes as they lie in memory, where that is the same for both.

    A distance does not depend on the order of elements, and two channels-last tensors are read
    from front to back so, not strip by strip.
    """
    if len(a.pieces) != 1 or len(b.pieces) != 1:
        return a, b
    orders = [
        sorted(range(len(a.shape)), key=lambda axis: -abs(strides[axis]))
        for strides in (a.pieces[0].stride, b.pieces[0].stride)
    ]
    return (_permuted(a, orders[0]), _permuted(b, orders[0])) if orders[0] == orders[1] else (a, b)


def _permuted(tensor: LazyTensor, order: list[int]) -> LazyTensor:
    def turned(sizes: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sizes[axis] for axis in order)

    pieces = tuple(
        replace(p, start=turned(p.start), shape=turned(p.shape), stride=turned(p.stride))
        for p in tensor.pieces
    )
    return replace(tensor, shape=turned(tensor.shape), pieces=pieces)


def pairs(
    a: Iterator[Bytes], b: Iterator[Bytes], width_a: int = 1, width_b: int = 1
) -> Iterator[tuple[Bytes, Bytes]]:
    """Equal numbers of elements of both: two layouts are cut into chunks at other places."""
    x = y = np.empty(0, np.uint8)
    while True:
        x = x if len(x) else next(a, x)
        y = y if len(y) else next(b, y)
        count = min(len(x) // width_a, len(y) // width_b)
        if not count:
            return
        yield x[: count * width_a], y[: count * width_b]
        x, y = x[count * width_a :], y[count * width_b :]


def chunks(tensor: LazyTensor, progress: Progress | None = None) -> Iterator[Bytes]:
    """A tensor's bytes in C order, whole elements a chunk, checked against a digest at the end."""
    kept = known_digest(tensor)
    digest = xxhash.xxh3_128()
    for part in _whole(_streamed(tensor), element_bytes(tensor)):
        chunk = np.ascontiguousarray(part)
        if progress is not None:
            progress(len(chunk))
        if kept is not None:
            digest.update(chunk.data)
        yield chunk
    if kept is not None and digest.hexdigest() != kept:
        storage = tensor.pieces[0].storage
        raise fail(DamageError, storage.file, digest_mismatch(storage))


def _streamed(tensor: LazyTensor) -> Iterator[Bytes]:
    width = element_bytes(tensor)
    if all(piece.storage.codec == "raw" for piece in tensor.pieces):
        for start, shape in blocks(tensor.shape, max(1, limits().chunk_bytes // max(1, width))):
            yield _read(tensor, start, shape)
        return
    piece = _only_piece(tensor)
    if piece is None:
        yield from tensor_chunks(tensor)  # packed and not in C order: inflated as a whole
        return
    nbytes = product(tensor.shape) * width
    yield from _inflated(piece.storage, piece.offset * width, nbytes)


def _read(tensor: LazyTensor, start: _Box, shape: _Box) -> Bytes:
    """A box in C order. One that lies scattered is put together from boxes that lie closer: what
    is between the elements of a box is read along with them."""
    axis = _scattered(tensor, start, shape)
    if axis is None:
        return read_box(tensor, start, shape)
    half = shape[axis] // 2
    sizes = half, shape[axis] - half
    places = start[axis], start[axis] + half
    lead = product(shape[:axis])
    rows = [
        _read(
            tensor,
            (*start[:axis], place, *start[axis + 1 :]),
            (*shape[:axis], size, *shape[axis + 1 :]),
        ).reshape(lead, -1)
        for place, size in zip(places, sizes, strict=True)
    ]
    return np.concatenate(rows, axis=1).reshape(-1)


def _scattered(tensor: LazyTensor, start: _Box, shape: _Box) -> int | None:
    """The axis to halve of a box that spans too much of its file; None for one that does not."""
    most = _SPAN * limits().chunk_bytes
    for piece in tensor.pieces:
        part = cut(piece, start, shape)
        if part is None or is_contiguous(part):
            continue
        first, last = reach(part.shape, part.stride, part.offset)
        if (last - first + 1) * element_bytes(tensor) > most:
            return max(range(len(shape)), key=lambda i: (part.shape[i] > 1) * abs(part.stride[i]))
    return None


def _inflated(storage: Storage, skip: int, nbytes: int) -> Iterator[Bytes]:
    for block in storage_chunks(storage):
        data = block[skip : skip + nbytes]
        skip, nbytes = max(0, skip - len(block)), nbytes - len(data)
        if len(data):
            yield data


def _whole(parts: Iterator[Bytes], width: int) -> Iterator[Bytes]:
    """The same bytes, no element cut in two."""
    rest = np.empty(0, np.uint8)
    for part in parts:
        data = np.concatenate([rest, part]) if len(rest) else part
        end = len(data) // max(1, width) * max(1, width)
        rest = data[end:]
        if end:
            yield data[:end]


def _only_piece(tensor: LazyTensor) -> Piece | None:
    """The one piece that is the whole tensor in C order, byte for byte."""
    if len(tensor.pieces) != 1 or tensor.lazy_bits:
        return None
    piece = tensor.pieces[0]
    dense = piece.shape == tensor.shape and is_contiguous(piece)
    return piece if dense and not piece.storage.big_endian else None
