"""Lazy tensors laid out anew: joined, cut, transposed, unflattened. Only geometry, no bytes."""

from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from holdtrue.doctor.fit.wrappers import Shape
from holdtrue.formats.pieces import cut
from holdtrue.formats.view import LazyTensor, Piece
from holdtrue.records.dtypes import PACKED, contiguous_stride, product


def can_be_laid_out(tensor: LazyTensor) -> bool:
    """Plain numbers with pieces that can be cut."""
    return tensor.layout == "strided" and bool(tensor.pieces) and tensor.dtype not in PACKED


def joined(parts: Sequence[LazyTensor], axis: int) -> LazyTensor:
    """The parts one after the other along an axis."""
    pieces: list[Piece] = []
    at = 0
    for part in parts:
        for piece in part.pieces:
            start = (*piece.start[:axis], piece.start[axis] + at, *piece.start[axis + 1 :])
            pieces.append(replace(piece, start=start))
        at += part.shape[axis]
    first = parts[0]
    shape = (*first.shape[:axis], at, *first.shape[axis + 1 :])
    return _made(first, shape, pieces)


def cut_out(whole: LazyTensor, start: Shape, shape: Shape) -> LazyTensor:
    """The box of `shape` at `start`."""
    pieces = []
    for piece in whole.pieces:
        part = cut(piece, start, shape)
        if part is not None:
            moved = tuple(s - o for s, o in zip(part.start, start, strict=True))
            pieces.append(replace(part, start=moved))
    return _made(whole, shape, pieces)


def transposed(matrix: LazyTensor) -> LazyTensor:
    pieces = [
        replace(p, start=p.start[::-1], shape=p.shape[::-1], stride=p.stride[::-1])
        for p in matrix.pieces
    ]
    return _made(matrix, matrix.shape[::-1], pieces)


def flat_part(flat: LazyTensor, start: int, shape: Shape) -> LazyTensor:
    """The elements from `start` of a flat tensor in one piece, as a tensor of `shape`."""
    count = product(shape)
    (piece,) = flat.pieces
    step = piece.stride[0] if piece.stride else 1
    stride = tuple(s * step for s in contiguous_stride(shape))
    made = Piece(
        start=(0,) * len(shape),
        shape=shape,
        storage=piece.storage,
        offset=piece.offset + start * step,
        stride=stride,
    )
    return _made(flat, shape, [made] if count else [])


def _made(like: LazyTensor, shape: Shape, pieces: Sequence[Piece]) -> LazyTensor:
    return replace(
        like, shape=shape, stride=contiguous_stride(shape), pieces=tuple(pieces), overlap=None
    )


def of_one_element(
    file: Mapping[str, LazyTensor], shapes: Mapping[str, Shape | None]
) -> dict[str, LazyTensor]:
    """Single numbers that are a vector of one in the target, or the other way round, as there."""
    found = {}
    for name, tensor in file.items():
        shape = shapes.get(name)
        if shape is None or {shape, tensor.shape} != {(), (1,)} or not can_be_laid_out(tensor):
            continue
        zero = (0,) * len(shape)
        pieces = [replace(p, start=zero, shape=shape, stride=zero) for p in tensor.pieces[:1]]
        found[name] = _made(tensor, shape, pieces)
    return found
