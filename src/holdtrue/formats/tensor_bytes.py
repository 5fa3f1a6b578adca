"""Reading a lazy tensor's bytes: inflated, swapped to little-endian, in C order."""

import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from holdtrue.errors import DamageError, fail
from holdtrue.findings import Finding
from holdtrue.formats.view import LazyTensor, Piece, Storage
from holdtrue.limits import limits
from holdtrue.records.arrays import dtype_of
from holdtrue.records.dtypes import DTYPES, contiguous_stride, product

# Elements are moved as opaque numbers of their size, so that no NaN payload is ever touched.
_OPAQUE = {1: "u1", 2: "<u2", 4: "<u4", 8: "<u8", 16: "V16"}

Bytes = npt.NDArray[np.uint8]


def read_storage(storage: Storage, start: int = 0, nbytes: int | None = None) -> Bytes:
    """`nbytes` bytes of a storage from `start`. Raises DamageError where the file has fewer."""
    wanted = storage.nbytes - start if nbytes is None else nbytes
    if start < 0 or wanted < 0 or start + wanted > storage.nbytes:
        raise _short(storage, start + wanted, storage.nbytes)
    if storage.codec == "deflate":
        data = _inflate(storage)[start : start + wanted]
    else:
        data = np.empty(wanted, np.uint8)
        with Path(storage.file).open("rb") as file:
            file.seek(storage.offset + start)
            got = file.readinto(data.data)
        if got != wanted:
            raise _short(storage, start + wanted, start + got)
        if storage.digest and wanted == storage.nbytes:
            _check_digest(storage, data)
    if storage.big_endian and storage.itemsize > 1:
        width = storage.itemsize
        if start % width or wanted % width:
            raise _short(storage, start + wanted, storage.nbytes)
        data = data.reshape(-1, width)[:, ::-1].reshape(-1)
    return data


def read_tensor(tensor: LazyTensor) -> Bytes:
    """All bytes of a strided tensor in C order, as a flat uint8 array.

    Raises ValueError for layouts that have components; read those one by one.
    """
    if not tensor.pieces and product(tensor.shape):
        raise ValueError(f"a {tensor.layout} tensor has no bytes of its own")
    itemsize = element_bytes(tensor)
    if len(tensor.pieces) == 1 and tensor.pieces[0].shape == tensor.shape:
        return read_piece(tensor.pieces[0], itemsize)
    whole = np.zeros(tensor.shape, _OPAQUE[itemsize])
    for piece in tensor.pieces:
        box = tuple(slice(s, s + n) for s, n in zip(piece.start, piece.shape, strict=True))
        part = read_piece(piece, itemsize).view(_OPAQUE[itemsize]).reshape(piece.shape)
        whole[box] = part
    return whole.reshape(-1).view(np.uint8)


def read_piece(piece: Piece, itemsize: int) -> Bytes:
    """The bytes of one box in C order. Strides past the storage raise DamageError."""
    count = product(piece.shape)
    if not count:
        return np.empty(0, np.uint8)
    first = last = piece.offset
    for size, step in zip(piece.shape, piece.stride, strict=True):
        reach = (size - 1) * step
        first, last = first + min(reach, 0), last + max(reach, 0)
    end = (last + 1) * itemsize
    if first < 0 or end > piece.storage.nbytes:
        raise _short(piece.storage, end, piece.storage.nbytes)
    data = read_storage(piece.storage, first * itemsize, end - first * itemsize)
    if _is_contiguous(piece):
        return data
    elements = data.view(_OPAQUE[itemsize])
    view = np.lib.stride_tricks.as_strided(
        elements[piece.offset - first :],
        piece.shape,
        tuple(step * itemsize for step in piece.stride),
        writeable=False,
    )
    return np.ascontiguousarray(view).reshape(-1).view(np.uint8)


def element_bytes(tensor: LazyTensor) -> int:
    """Bytes of one element in the file."""
    if tensor.numpy is not None:
        return dtype_of(tensor.numpy).itemsize
    return DTYPES[tensor.dtype].itemsize


def _is_contiguous(piece: Piece) -> bool:
    wanted = contiguous_stride(piece.shape)
    return all(
        size == 1 or a == b for size, a, b in zip(piece.shape, piece.stride, wanted, strict=True)
    )


def _inflate(storage: Storage) -> Bytes:
    """The whole record. Deflate cannot expand more than 1032 to 1; a bomb is refused before."""
    stored = storage.stored or 0
    budget = min(limits().inflated_bytes, 1032 * stored + 64)
    if storage.nbytes > budget:
        raise _short(storage, storage.nbytes, budget)
    with Path(storage.file).open("rb") as file:
        file.seek(storage.offset)
        packed = file.read(stored)
    try:
        engine = zlib.decompressobj(-zlib.MAX_WBITS)
        data = engine.decompress(packed, storage.nbytes + 1)
    except zlib.error:
        data = b""
    if len(data) != storage.nbytes:
        raise _short(storage, storage.nbytes, len(data))
    return np.frombuffer(data, np.uint8)


def _check_digest(storage: Storage, data: Bytes) -> None:
    if xxhash.xxh3_128_hexdigest(data.data) != storage.digest:
        raise fail(DamageError, storage.file, digest_mismatch(storage))


def digest_mismatch(storage: Storage) -> Finding:
    """The finding for bytes that are not those that were written."""
    return Finding(
        code="digest-mismatch",
        severity="error",
        where=f"{storage.file}: {storage.key}",
        what="a tensor's bytes are not those that were written",
        why="their xxh3-128 digest differs: bytes were changed on disk or on the way",
        fix="use another checkpoint, or copy this one again from where it is whole",
    )


def _short(storage: Storage, needed: int, present: int) -> DamageError:
    return fail(
        DamageError,
        storage.file,
        Finding(
            code="bytes-missing",
            severity="error",
            where=f"{storage.file}: {storage.key}",
            what="a tensor reaches past the bytes that are there",
            why=f"{needed:,} bytes are needed, {max(present, 0):,} are present",
            fix="fetch or save the file again; `holdtrue salvage` keeps the tensors that are whole",
        ),
    )
