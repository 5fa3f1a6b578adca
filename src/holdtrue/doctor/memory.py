"""Tensors over storages, as torch has them: which share one, and how others lie in their own."""

from collections.abc import Mapping

from msgspec import Struct
from msgspec.structs import replace

from holdtrue.formats.pickle_tensors import row
from holdtrue.formats.view import LazyTensor, Piece
from holdtrue.records.dtypes import OVERLAP_FACTOR, contiguous_stride, extent, product
from holdtrue.records.overlaps import Span, touching
from holdtrue.records.strides import dense_stride


class Laid(Struct, frozen=True):
    """A tensor in a storage: elements from `offset`, `stride` apart."""

    storage: int  # position among the storages
    offset: int
    stride: tuple[int, ...]


class Memory(Struct, frozen=True):
    """`storages` are one-dimensional tensors, each of the bytes of one storage."""

    storages: list[LazyTensor]
    places: dict[str, Laid]  # by the tensor's key


def lay_over(tensors: Mapping[str, LazyTensor]) -> Memory:
    """Strided tensors in storages: what shared memory shares it again, gaps are closed."""
    memory = Memory([], {})
    shared: dict[object, list[Span]] = {}
    for name, tensor in tensors.items():
        span = _span(tensor)
        if span is None:
            _alone(memory, name, tensor)
        else:
            piece = tensor.pieces[0]
            place = (piece.storage.file, piece.storage.key, tensor.dtype, tensor.lazy_bits)
            shared.setdefault(place, []).append((*span, name))
    for spans in shared.values():
        for run in touching(sorted(spans)):
            _together(memory, run, tensors)
    return memory


def _span(tensor: LazyTensor) -> tuple[int, int] | None:
    """First element and end within the storage; None where the file has another memory order."""
    if len(tensor.pieces) != 1 or not product(tensor.shape):
        return None
    piece = tensor.pieces[0]
    if piece.stride != tensor.stride or min(tensor.stride, default=0) < 0:
        return None
    return piece.offset, piece.offset + extent(tensor.shape, tensor.stride)


def _together(memory: Memory, run: list[Span], tensors: Mapping[str, LazyTensor]) -> None:
    first, end = run[0][0], max(e for _, e, _ in run)
    kept = {(start, e): product(tensors[name].shape) for start, e, name in run}
    if end - first > OVERLAP_FACTOR * sum(kept.values()):
        # A few elements far apart, such as a column of a large table.
        for _, _, name in run:
            _alone(memory, name, tensors[name])
        return
    tensor = tensors[run[0][2]]
    flat = row(tensor.pieces[0].storage, tensor.dtype, end - first, lazy_bits=tensor.lazy_bits)
    piece = replace(flat.pieces[0], offset=first)
    memory.storages.append(replace(flat, pieces=(piece,)))
    for start, _, name in run:
        memory.places[name] = Laid(len(memory.storages) - 1, start - first, tensors[name].stride)


def _alone(memory: Memory, name: str, tensor: LazyTensor) -> None:
    memory.storages.append(in_memory_order(tensor))
    stride = dense_stride(tensor.shape, tensor.stride)
    memory.places[name] = Laid(len(memory.storages) - 1, 0, stride)


def in_memory_order(tensor: LazyTensor) -> LazyTensor:
    """The tensor whose C order is the memory order of this one; repeats are there once."""
    stride = dense_stride(tensor.shape, tensor.stride)
    repeated = [n > 1 and step == 0 for n, step in zip(tensor.shape, stride, strict=True)]
    axes = sorted(range(len(stride)), key=lambda axis: -stride[axis])

    def moved(sizes: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sizes[axis] for axis in axes)

    def once(sizes: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(1 if r else n for r, n in zip(repeated, sizes, strict=True))

    shape = moved(once(tensor.shape))
    pieces = tuple(
        Piece(
            start=moved(piece.start),
            shape=moved(once(piece.shape)),
            storage=piece.storage,
            offset=piece.offset,
            stride=moved(piece.stride),
        )
        for piece in tensor.pieces
        if not any(r and start for r, start in zip(repeated, piece.start, strict=True))
    )
    return replace(tensor, shape=shape, stride=contiguous_stride(shape), pieces=pieces)
