"""Tensor bytes that are proven before they are given out: each record once for a checkpoint."""

from msgspec import Struct, field
from msgspec.structs import replace

from holdtrue.errors import DamageError, fail
from holdtrue.formats.pieces import is_contiguous
from holdtrue.formats.tensor_bytes import Bytes, element_bytes, read_storage, read_tensor
from holdtrue.formats.verifying import check_storage
from holdtrue.formats.view import LazyTensor, Piece, Storage
from holdtrue.records.dtypes import PACKED, product


class Proven(Struct, frozen=True):
    """The records that were found to be what was written, since the checkpoint was opened."""

    places: set[tuple[str, int, int]] = field(default_factory=set)


def read_proven(tensor: LazyTensor, proven: Proven, name: str) -> Bytes:
    """`read_tensor`, once every record that it touches has been proven. Raises DamageError."""
    for piece in tensor.pieces:
        if not _is_whole(tensor, piece):
            prove(piece.storage, proven, name)
    try:
        return read_tensor(tensor)
    except DamageError as error:
        raise _named(error, name) from None


def read_proven_storage(storage: Storage, proven: Proven, name: str) -> Bytes:
    """`read_storage` of all its bytes, proven. Raises DamageError."""
    if storage.record is not None:
        prove(storage, proven, name)
    try:
        return read_storage(storage)
    except DamageError as error:
        raise _named(error, name) from None


def prove(storage: Storage, proven: Proven, name: str) -> None:
    """Stream a record through its CRC or digest, unless that was done. Raises DamageError."""
    record = storage.record or storage
    if record.crc32 is None and record.digest is None:
        return
    place = (record.file, record.offset, record.nbytes)
    if place in proven.places:
        return
    found = check_storage(record)
    if found is not None:
        raise _named(fail(DamageError, record.file, found), name)
    proven.places.add(place)


def _is_whole(tensor: LazyTensor, piece: Piece) -> bool:
    """Whether reading the piece reads its storage from end to end, and so proves it."""
    if piece.storage.record is not None:
        return False
    if tensor.dtype in PACKED:
        return True
    nbytes = product(piece.shape) * element_bytes(tensor)
    return is_contiguous(piece) and not piece.offset and nbytes == piece.storage.nbytes


def _named(error: DamageError, name: str) -> DamageError:
    """The same damage, with the tensor that lies there."""
    first, *rest = error.report.findings
    subject = error.report.subject
    told = first if name in first.where else replace(first, where=f"{first.where} ({name})")
    return fail(DamageError, subject, told, *rest)
