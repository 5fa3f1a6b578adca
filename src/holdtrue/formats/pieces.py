"""Where the boxes of a tensor lie: geometry of shapes and strides, no bytes."""

from collections.abc import Iterator

from holdtrue.formats.view import Piece
from holdtrue.records.dtypes import contiguous_stride, product


def blocks(shape: tuple[int, ...], most: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Boxes of at most `most` elements that follow one another in C order."""
    if not product(shape):
        return
    axis, inner = len(shape), 1  # the axes from `axis` on fit into one block together
    while axis and inner * shape[axis - 1] <= most:
        axis -= 1
        inner *= shape[axis]
    if not axis:
        yield (0,) * len(shape), shape
        return
    rows = max(1, most // inner)
    tail = shape[axis:]
    for lead in _positions(shape[: axis - 1]):
        for row in range(0, shape[axis - 1], rows):
            size = min(rows, shape[axis - 1] - row)
            yield (*lead, row, *(0 for _ in tail)), (*(1 for _ in lead), size, *tail)


def _positions(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """All index tuples in C order. `itertools.product` would hold each whole range in memory."""
    if not shape:
        yield ()
        return
    for first in range(shape[0]):
        for rest in _positions(shape[1:]):
            yield (first, *rest)


def cut(piece: Piece, start: tuple[int, ...], shape: tuple[int, ...]) -> Piece | None:
    """The part of a piece that lies in the box, if any."""
    low = tuple(map(max, piece.start, start))
    high = [min(s + n, b + m) for s, n, b, m in zip(piece.start, piece.shape, start, shape,
                                                    strict=True)]  # fmt: skip
    size = tuple(h - lo for h, lo in zip(high, low, strict=True))
    if any(n <= 0 for n in size):
        return None
    skipped = zip(low, piece.start, piece.stride, strict=True)
    offset = piece.offset + sum((lo - s) * step for lo, s, step in skipped)
    return Piece(start=low, shape=size, storage=piece.storage, offset=offset, stride=piece.stride)


def reach(shape: tuple[int, ...], stride: tuple[int, ...], offset: int) -> tuple[int, int]:
    """The lowest and the highest element that a non-empty box touches."""
    first = last = offset
    for size, step in zip(shape, stride, strict=True):
        extent = (size - 1) * step
        first, last = first + min(extent, 0), last + max(extent, 0)
    return first, last


def is_contiguous(piece: Piece) -> bool:
    """Whether the elements follow one another in C order, axes of one element apart."""
    wanted = contiguous_stride(piece.shape)
    return all(
        size == 1 or a == b for size, a, b in zip(piece.shape, piece.stride, wanted, strict=True)
    )


def far_axis(piece: Piece, itemsize: int, gap: int) -> int | None:
    """The axis whose rows lie far apart, where reading row by row skips much of the file."""
    if piece.storage.codec != "raw" or not piece.shape:
        return None
    axis = max(range(len(piece.shape)), key=lambda a: (piece.shape[a] > 1, abs(piece.stride[a])))
    rest = without(piece.shape, axis), without(piece.stride, axis)
    first, last = reach(*rest, 0)
    apart = (abs(piece.stride[axis]) - (last - first + 1)) * itemsize
    return axis if piece.shape[axis] > 1 and apart > gap else None


def without(sizes: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """The sizes or strides of all axes but one."""
    return sizes[:axis] + sizes[axis + 1 :]
