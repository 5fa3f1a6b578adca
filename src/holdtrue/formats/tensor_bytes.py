"""Reading a lazy tensor's bytes: inflated, swapped to little-endian, in C order.

Files are read, and mapped only by who asks for it (`restore.mapped`): one that is cut short while
it is mapped kills the process.
"""

import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import xxhash

from holdtrue.errors import DamageError, fail
from holdtrue.findings import Finding
from holdtrue.formats.pieces import blocks, cut, far_axis, is_contiguous, reach, without
from holdtrue.formats.view import LazyTensor, Piece, Storage
from holdtrue.limits import KIB, MIB, limits
from holdtrue.on_demand import npt
from holdtrue.on_demand import numpy as np
from holdtrue.records.arrays import dtype_of
from holdtrue.records.dtypes import DTYPES, PACKED, product

# Elements are moved as opaque numbers of their size, so that no NaN payload is ever touched.
_OPAQUE = {1: "u1", 2: "<u2", 4: "<u4", 8: "<u8"}
# Where rows lie further apart than this, each is read by itself instead of all that lies between.
_ROW_GAP = 64 * KIB
_DEFLATE_RATIO = 1032  # the most that deflate can expand

Bytes: TypeAlias = "npt.NDArray[np.uint8]"


def read_tensor(tensor: LazyTensor) -> Bytes:
    """All bytes of a strided tensor in C order, as a flat uint8 array.

    Raises ValueError for layouts that have components; read those one by one.
    """
    if tensor.dtype in PACKED and tensor.pieces:
        return read_storage(tensor.pieces[0].storage)  # always one piece, whose bytes have no shape
    return read_box(tensor, (0,) * len(tensor.shape), tensor.shape)


def tensor_chunks(tensor: LazyTensor) -> Iterator[Bytes]:
    """The bytes of `read_tensor` in blocks of about `limits().chunk_bytes`, one at a time."""
    step = limits().chunk_bytes
    if any(piece.storage.codec != "raw" for piece in tensor.pieces):
        whole = read_tensor(tensor)  # a compressed record has no way in but from its start
        yield from (whole[at : at + step] for at in range(0, len(whole), step))
        return
    for start, shape in blocks(tensor.shape, step // max(1, element_bytes(tensor)) or 1):
        yield read_box(tensor, start, shape)


def read_box(tensor: LazyTensor, start: tuple[int, ...], shape: tuple[int, ...]) -> Bytes:
    """The bytes of the box of `shape` at `start`, in C order."""
    itemsize = element_bytes(tensor)
    count = product(shape)
    if not tensor.pieces and count:
        raise ValueError(f"a {tensor.layout} tensor has no bytes of its own")
    if not count or not itemsize:
        return np.empty(0, np.uint8)
    _check_expansion(tensor, itemsize)
    parts = [part for piece in tensor.pieces if (part := cut(piece, start, shape)) is not None]
    if sum(product(part.shape) for part in parts) != count:
        raise _damage(
            tensor.pieces[0].storage,
            "tensor-incomplete",
            "a tensor's pieces do not cover it",
            f"{count:,} elements are needed, the pieces hold "
            f"{sum(product(part.shape) for part in parts):,}",
        )
    if len(parts) == 1:
        return _with_lazy_bits(tensor, read_piece(parts[0], itemsize))
    for part in parts:
        _check_on_disk(part.storage)
    # Axes of one element are left out: NumPy 1 stops at 32 axes, torch at 64.
    axes = [axis for axis, size in enumerate(shape) if size != 1]
    whole = np.empty([shape[axis] for axis in axes], _opaque(itemsize))
    for part in parts:
        box = tuple(
            slice(part.start[a] - start[a], part.start[a] - start[a] + part.shape[a]) for a in axes
        )
        data = read_piece(part, itemsize).view(_opaque(itemsize))
        whole[box] = data.reshape([part.shape[axis] for axis in axes])
    return _with_lazy_bits(tensor, whole.reshape(-1).view(np.uint8))


def read_piece(piece: Piece, itemsize: int) -> Bytes:
    """The bytes of one box in C order. Strides past the storage raise DamageError."""
    if not product(piece.shape) or not itemsize:
        return np.empty(0, np.uint8)
    first, last = reach(piece.shape, piece.stride, piece.offset)
    end = (last + 1) * itemsize
    if first < 0 or end > piece.storage.nbytes:
        raise _short(piece.storage, end, piece.storage.nbytes)
    if is_contiguous(piece):
        return read_storage(piece.storage, first * itemsize, end - first * itemsize)
    axis = far_axis(piece, itemsize, _ROW_GAP)
    if axis is not None:
        return _read_rows(piece, itemsize, axis)
    data = read_storage(piece.storage, first * itemsize, end - first * itemsize)
    kept = [(size, step) for size, step in zip(piece.shape, piece.stride, strict=True) if size != 1]
    view = np.lib.stride_tricks.as_strided(
        data.view(_opaque(itemsize))[piece.offset - first :],
        [size for size, _ in kept],
        [step * itemsize for _, step in kept],
        writeable=False,
    )
    return np.ascontiguousarray(view).reshape(-1).view(np.uint8)


def read_storage(storage: Storage, start: int = 0, nbytes: int | None = None) -> Bytes:
    """`nbytes` bytes of a storage from `start`. Raises DamageError where the file has fewer."""
    wanted = storage.nbytes - start if nbytes is None else nbytes
    if start < 0 or wanted < 0 or start + wanted > storage.nbytes:
        raise _short(storage, start + wanted, storage.nbytes)
    width = storage.itemsize if storage.big_endian else 1
    lead = start % width  # a byte-wise view of wider numbers: swap whole numbers, then cut
    begin, end = start - lead, start + wanted + -(start + wanted) % width
    if end > storage.nbytes:
        raise _short(storage, end, storage.nbytes)
    if storage.codec == "deflate":
        data = _inflate(storage, end)[begin:]
    else:
        data = _read_raw(storage, begin, end - begin)
    if len(data) == storage.nbytes:
        _check_whole(storage, data)
    if width > 1:
        data = data.reshape(-1, width)[:, ::-1].reshape(-1)
    return data[lead : lead + wanted]


def storage_chunks(storage: Storage) -> Iterator[Bytes]:
    """A storage's bytes as they were written, not swapped, in blocks; for checksums."""
    if storage.codec == "raw":
        for at in range(0, storage.nbytes, limits().chunk_bytes):
            yield _read_raw(storage, at, min(limits().chunk_bytes, storage.nbytes - at))
        return
    got, skip = 0, storage.skip
    for block in _inflated(storage, storage.skip + storage.nbytes + 1):
        data = np.frombuffer(block, np.uint8)[skip:]
        skip = max(0, skip - len(block))
        got += len(data)
        yield data
    if got != storage.nbytes:
        raise _short(storage, storage.nbytes, got)


def element_bytes(tensor: LazyTensor) -> int:
    """Bytes of one element in the file."""
    if tensor.numpy is not None:
        return dtype_of(tensor.numpy).itemsize
    return DTYPES[tensor.dtype].itemsize


def _with_lazy_bits(tensor: LazyTensor, data: Bytes) -> Bytes:
    """Conjugation and negation that torch had not carried out when it saved the bytes."""
    if not tensor.lazy_bits:
        return data
    is_complex = tensor.dtype.startswith("complex")
    width = element_bytes(tensor) // (2 if is_complex else 1)
    numbers = data.copy().view(_opaque(width))
    sign = 1 << (8 * width - 1)
    for bit in tensor.lazy_bits:
        if bit == "conj" and is_complex:
            numbers[1::2] ^= sign
        elif bit == "neg" and (is_complex or DTYPES[tensor.dtype].floating):
            numbers ^= sign
        elif bit == "neg":
            np.negative(numbers, out=numbers)  # unsigned, so that it wraps as torch's does
    return numbers.view(np.uint8)


def _read_rows(piece: Piece, itemsize: int, axis: int) -> Bytes:
    shape, stride = without(piece.shape, axis), without(piece.stride, axis)
    rows = np.empty((piece.shape[axis], product(shape)), _opaque(itemsize))
    for index, row in enumerate(rows):
        part = Piece(
            start=without(piece.start, axis),
            shape=shape,
            storage=piece.storage,
            offset=piece.offset + index * piece.stride[axis],
            stride=stride,
        )
        row[:] = read_piece(part, itemsize).view(_opaque(itemsize))
    apart = rows.reshape(-1, *(size for size in shape if size != 1))
    moved = np.moveaxis(apart, 0, sum(size != 1 for size in piece.shape[:axis]))
    return np.ascontiguousarray(moved).reshape(-1).view(np.uint8)


def _opaque(itemsize: int) -> str:
    return _OPAQUE.get(itemsize, f"V{itemsize}")


def _read_raw(storage: Storage, start: int, nbytes: int) -> Bytes:
    if storage.inline is not None:
        if start + nbytes > len(storage.inline):
            raise _short(storage, start + nbytes, len(storage.inline))
        return np.frombuffer(storage.inline, np.uint8)[start : start + nbytes]
    _check_on_disk(storage, start + nbytes)
    data = np.empty(nbytes, np.uint8)
    target = data.data
    got = 0
    try:
        with Path(storage.file).open("rb", buffering=0) as file:
            file.seek(storage.offset + start)
            while got < nbytes and (count := file.readinto(target[got:])):
                got += count
    except OSError as error:
        raise _unreadable(storage, error) from None
    if got != nbytes:  # it shrank since it was looked at
        raise _short(storage, start + nbytes, start + got)
    return data


def _inflate(storage: Storage, end: int) -> Bytes:
    """A record's first `end` bytes after `skip`. A bomb is refused before its memory is taken."""
    stored = storage.stored or 0
    total, needed = storage.skip + storage.nbytes, storage.skip + end
    budget = min(limits().inflated_bytes, _DEFLATE_RATIO * stored + 64)
    if total > budget:
        raise _short(storage, total, budget)
    data = np.empty(needed, np.uint8)
    got = 0
    for block in _inflated(storage, needed + (end == storage.nbytes)):
        data[got : got + len(block)] = np.frombuffer(block, np.uint8)[: needed - got]
        got += len(block)
    if got < needed or (end == storage.nbytes and got > total):
        raise _short(storage, total, got)
    return data[storage.skip :]


def _inflated(storage: Storage, most: int) -> Iterator[bytes]:
    """The inflated record in blocks, at most `most` bytes of it."""
    engine = zlib.decompressobj(-zlib.MAX_WBITS)
    packed_at, step = 0, min(limits().chunk_bytes, MIB)
    packed, block = b"", b""
    while most > 0 and not engine.eof:
        count = min(step, (storage.stored or 0) - packed_at)
        if not packed and count > 0:
            packed = _read_raw(_as_stored(storage), packed_at, count).tobytes()
            packed_at += count
        elif not packed and not block:  # nothing is left to come, not even from within zlib
            return
        try:
            block = engine.decompress(packed, min(most, step))
        except zlib.error as error:
            raise _damage(
                storage, "compressed-data-damaged", "a compressed record cannot be inflated",
                str(error),
            ) from None  # fmt: skip
        packed = engine.unconsumed_tail
        most -= len(block)
        yield block


def _as_stored(storage: Storage) -> Storage:
    """The compressed bytes themselves, as a storage."""
    stored = storage.stored or 0
    return Storage(key=storage.key, file=storage.file, offset=storage.offset, nbytes=stored)


def _check_on_disk(storage: Storage, nbytes: int | None = None) -> None:
    """Before memory is taken for them: are there so many bytes at all?"""
    if storage.inline is not None:
        return
    if nbytes is None:
        nbytes = storage.stored or 0 if storage.codec == "deflate" else storage.nbytes
    try:
        present = os.stat(storage.file).st_size - storage.offset  # noqa: PTH116
    except OSError as error:
        raise _unreadable(storage, error) from None
    if storage.offset < 0 or nbytes > present:
        raise _short(storage, nbytes, present)


def _check_expansion(tensor: LazyTensor, itemsize: int) -> None:
    """Strides of zero make terabytes of a few bytes; torch keeps the view, a reader cannot."""
    total = product(tensor.shape) * itemsize
    backing = {piece.storage.key: piece.storage.nbytes for piece in tensor.pieces}
    if total > max(limits().expanded_bytes, sum(backing.values())):
        raise _damage(
            tensor.pieces[0].storage,
            "tensor-expanded",
            "a tensor repeats its few bytes into too many",
            f"{list(tensor.shape)} takes {total:,} bytes, made of {sum(backing.values()):,}; "
            f"{limits().expanded_bytes:,} are allowed",
            "set HOLDTRUE_EXPANDED_BYTES higher if this is meant",
        )


def _check_whole(storage: Storage, data: Bytes) -> None:
    """Of a part there is no proof; `proven.prove` reads the rest for it."""
    if storage.crc32 is not None and (crc := zlib.crc32(data.data)) != storage.crc32:
        raise fail(DamageError, storage.file, crc_mismatch(storage, crc))
    if storage.digest and xxhash.xxh3_128_hexdigest(data.data) != storage.digest:
        raise fail(DamageError, storage.file, digest_mismatch(storage))


def crc_mismatch(storage: Storage, found: int) -> Finding:
    """The finding for a record of a zip whose bytes are not those that were written."""
    return Finding(
        code="crc-mismatch",
        severity="error",
        where=f"{storage.file}: {storage.key}",
        what="a record is not what was written",
        why=f"its CRC is {found:08x}, the archive says {storage.crc32:08x}; torch.load does not "
        "look",
        fix="go back to another copy; `holdtrue salvage` keeps the tensors that are whole",
    )


def digest_mismatch(storage: Storage) -> Finding:
    """The finding for bytes that are not those that were written."""
    return Finding(
        code="digest-mismatch",
        severity="error",
        where=f"{storage.file}: {storage.key}",
        what="a tensor's bytes are not those that were written",
        why="their xxh3-128 digest differs: bytes were changed on disk or on the way",
        fix="use another checkpoint (of a run RUN@whole), or copy this one again from where it is "
        "whole",
    )


def _short(storage: Storage, needed: int, present: int) -> DamageError:
    return _damage(
        storage,
        "bytes-missing",
        "a tensor reaches past the bytes that are there",
        f"{needed:,} bytes are needed, {max(present, 0):,} are present",
    )


def _unreadable(storage: Storage, error: OSError) -> DamageError:
    return _damage(
        storage,
        "file-unreadable",
        "the file could not be read",
        error.strerror or type(error).__name__,
        "check that the file is still there and that you may read it",
    )


def _damage(storage: Storage, code: str, what: str, why: str, fix: str = "") -> DamageError:
    finding = Finding(
        code=code,
        severity="error",
        where=f"{storage.file}: {storage.key}",
        what=what,
        why=why,
        fix=fix
        or "fetch or save the file again; `holdtrue salvage` keeps the tensors that are whole",
    )
    return fail(DamageError, storage.file, finding)


def tensor_bytes(lazy: LazyTensor) -> int:
    """Bytes that a tensor's elements take, with its components; 0 where it has none (meta)."""
    inner = sum(tensor_bytes(part) for part in lazy.components.values())
    return inner + (product(lazy.shape) * element_bytes(lazy) if lazy.pieces else 0)
