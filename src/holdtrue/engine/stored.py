"""The bytes of a tensor that lies in a file, on their way into another: streamed, and proven."""

from collections.abc import Iterable, Iterator
from math import prod

from msgspec import Struct

from holdtrue.engine.threads import in_threads
from holdtrue.errors import DamageError
from holdtrue.findings import report
from holdtrue.formats.pieces import is_contiguous
from holdtrue.formats.tensor_bytes import element_bytes, read_tensor, tensor_chunks
from holdtrue.formats.verifying import check_storage, proven_chunks
from holdtrue.formats.view import LazyTensor, Storage
from holdtrue.limits import MIB, limits
from holdtrue.records.dtypes import DTYPES, PACKED
from holdtrue.records.dtypes import packed_bytes as packed_size

# Up to here a tensor in another order than C is read at once: block by block, each element of a
# row is looked up by itself, which is slow, and beyond this the memory matters more.
_AT_ONCE = 64 * MIB


class StoredSource(Struct, frozen=True, eq=False):
    """A tensor of a file as the writer wants it; `code` and `shape` are those of safetensors."""

    tensor: LazyTensor
    code: str
    shape: tuple[int, ...]
    nbytes: int

    def blocks(self) -> Iterator[memoryview]:
        """The bytes in C order, none of them twice in memory. Raises DamageError."""
        whole = whole_storage(self.tensor)
        if whole is not None:
            yield from (block.data for block in proven_chunks(whole))
        elif self.nbytes <= _AT_ONCE and not _in_order(self.tensor):
            data, step = read_tensor(self.tensor).data, limits().chunk_bytes
            yield from (data[at : at + step] for at in range(0, len(data), step))
        else:
            yield from (block.data for block in tensor_chunks(self.tensor))


def stored_source(tensor: LazyTensor) -> StoredSource:
    """The source of a strided tensor, or of the integers of a quantised one."""
    row = DTYPES.get(tensor.dtype)
    if row is None or (tensor.numpy is not None and row.numpy != tensor.numpy):
        nbytes = prod(tensor.shape) * element_bytes(tensor)
        return StoredSource(tensor, "U8", (nbytes,), nbytes)
    packed = packed_bytes(tensor)
    if packed is not None:
        return StoredSource(tensor, row.code, (packed,), packed)
    return StoredSource(
        tensor, row.code, tensor.shape + row.trailing, prod(tensor.shape) * row.itemsize
    )


def packed_bytes(tensor: LazyTensor) -> int | None:
    """Bytes of a tensor with several elements in each byte; None for all others."""
    return packed_size(tensor.dtype, tensor.shape) if tensor.dtype in PACKED else None


def whole_storage(tensor: LazyTensor) -> Storage | None:
    """The storage whose bytes, as they stand in the file, are just those of the tensor."""
    if len(tensor.pieces) != 1 or tensor.lazy_bits:
        return None
    piece = tensor.pieces[0]
    packed = packed_bytes(tensor)
    nbytes = prod(tensor.shape) * element_bytes(tensor) if packed is None else packed
    alone = piece.shape == tensor.shape and not piece.offset and is_contiguous(piece)
    plain = alone and nbytes == piece.storage.nbytes and not piece.storage.big_endian
    return piece.storage if plain else None


def prove(tensors: Iterable[LazyTensor]) -> None:
    """Check the storages that the tensors lie in, where copying will not do so on the way.

    A CRC is over a storage as a whole; a tensor that is a part of it proves nothing by itself.
    """
    tensors = list(tensors)
    on_the_way = {_place(s) for t in tensors if (s := whole_storage(t)) is not None}
    apart = {
        _place(record): record
        for tensor in tensors
        for piece in tensor.pieces
        for record in (piece.storage.record or piece.storage,)
        if record.crc32 is not None or record.digest is not None
    }
    left = [storage for place, storage in apart.items() if place not in on_the_way]
    found = [finding for finding in in_threads(check_storage, left) if finding is not None]
    if found:
        raise DamageError(report(found[0].where.partition(": ")[0], found))


def _place(storage: Storage) -> tuple[str, int, int]:
    return storage.file, storage.offset, storage.nbytes


def _in_order(tensor: LazyTensor) -> bool:
    return all(is_contiguous(piece) for piece in tensor.pieces)
