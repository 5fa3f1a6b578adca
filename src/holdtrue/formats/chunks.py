"""One tensor out of the boxes that several ranks or files each wrote."""

from msgspec.structs import replace

from holdtrue.formats.view import LazyTensor, Piece
from holdtrue.records.dtypes import contiguous_stride, product

Box = tuple[tuple[int, ...], tuple[int, ...]]  # start, shape


def assemble(shape: tuple[int, ...], parts: list[tuple[tuple[int, ...], LazyTensor]]) -> LazyTensor:
    """The tensor of `shape` from (start, part). Raises ValueError where they do not make it up.

    A box that is there twice, as replicated parameters are, counts once.
    """
    unique: dict[Box, LazyTensor] = {}
    for start, part in parts:
        unique.setdefault((start, part.shape), part)
    why = misfit(shape, list(unique))
    if why is not None:
        raise ValueError(why)
    first = next(iter(unique.values()))
    if len(unique) == 1:
        return first
    pieces: list[Piece] = []
    for (start, _), part in unique.items():
        if part.layout != "strided" or part.dtype != first.dtype:
            raise ValueError(f"its parts differ: {first.dtype} and {part.dtype}, {part.layout}")
        pieces += [
            replace(piece, start=tuple(map(sum, zip(piece.start, start, strict=True))))
            for piece in part.pieces
        ]
    return replace(first, shape=shape, stride=contiguous_stride(shape), pieces=tuple(pieces))


def misfit(shape: tuple[int, ...], boxes: list[Box]) -> str | None:
    """Why these boxes do not cover `shape` exactly once; None if they do."""
    for start, size in boxes:
        if len(start) != len(shape) or len(size) != len(shape):
            return f"a part has {len(size)} axes, the tensor {len(shape)}"
        if any(s + n > whole for s, n, whole in zip(start, size, shape, strict=True)):
            return f"a part of {list(size)} at {list(start)} reaches past {list(shape)}"
    covered = sum(product(size) for _, size in boxes)
    if covered < product(shape):
        return f"its parts hold {covered:,} of {product(shape):,} elements"
    filled = [box for box in boxes if product(box[1])]
    twice = _overlap(shape, filled)
    if twice is not None:
        return f"two of its parts overlap, at {list(twice[0])} and {list(twice[1])}"
    return None if boxes else "it has no parts"


def _overlap(
    shape: tuple[int, ...], boxes: list[Box]
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The starts of two boxes that share elements, by a sweep along the axis that is cut most."""
    if len(boxes) < 2 or not shape:
        return (boxes[0][0], boxes[1][0]) if len(boxes) > 1 else None
    axis = max(range(len(shape)), key=lambda a: len({start[a] for start, _ in boxes}))
    active: list[Box] = []
    for start, size in sorted(boxes, key=lambda box: box[0][axis]):
        active = [box for box in active if box[0][axis] + box[1][axis] > start[axis]]
        for other, extent in active:
            spans = zip(start, size, other, extent, strict=True)
            if all(a < b + m and b < a + n for a, n, b, m in spans):
                return start, other
        active.append((start, size))
    return None
