"""Checking a file against everything that its format keeps: sizes, coverage, CRCs, digests.

What a format keeps no proof of is said, under `not_checked`. Bytes are streamed in chunks.
"""

import zlib
from collections.abc import Callable, Iterator

import xxhash
from msgspec.structs import replace

from holdtrue.errors import DamageError, HoldtrueError, fail
from holdtrue.findings import Finding, Report, report
from holdtrue.formats.pieces import reach
from holdtrue.formats.tensor_bytes import (
    Bytes,
    crc_mismatch,
    digest_mismatch,
    element_bytes,
    storage_chunks,
)
from holdtrue.formats.tree_walk import each_node
from holdtrue.formats.view import LazyTensor, Piece, Storage, View
from holdtrue.formats.zip_archive import read_directory, storage_of
from holdtrue.records.dtypes import product

Progress = Callable[[int], None]  # called with the number of bytes just read

_ZIPS = {"torch-zip", "torchscript", "pt2", "npz"}


def verify_view(view: View, progress: Progress | None = None) -> Report:
    """All that can be checked without the file's writer. Never raises for a damaged file."""
    findings = list(view.findings)
    unproven = 0
    if not any(finding.code == "tensor-past-storage" for finding in findings):
        for path, tensor in view.tensors.items():
            findings += _check_extent(view, path, tensor)
    if view.format in _ZIPS:
        found, unproven = _check_records(view.path, progress)
        findings += found
    checked: set[tuple[str, int, int]] = set()
    for storage in _storages(view):
        place = (storage.file, storage.offset, storage.nbytes)
        if place in checked or not storage.file:
            continue
        if view.format in _ZIPS and storage.file == view.path:
            continue  # within a record, which was checked as a whole
        checked.add(place)
        finding = check_storage(storage, progress)
        if finding is not None:
            findings.append(finding)
        elif storage.crc32 is None and storage.digest is None and storage.nbytes:
            unproven += 1
    distinct = {(f.code, f.where): f for f in findings}
    return report(view.path, distinct.values(), _unproven(view, unproven))


def check_storage(storage: Storage, progress: Progress | None = None) -> Finding | None:
    """The finding for bytes that are missing or not those that were written; None if all is well.

    Without a CRC or digest only the presence of the bytes is checked.
    """
    if storage.inline is not None:
        return None
    proof = storage.crc32 is not None or storage.digest is not None
    try:
        for block in proven_chunks(storage if proof else _last_byte(storage)):
            if progress is not None:
                progress(len(block))
    except HoldtrueError as error:
        return error.report.findings[0]
    return None


def proven_chunks(storage: Storage) -> Iterator[Bytes]:
    """`storage_chunks`, and at its end a DamageError where the CRC or the digest does not hold."""
    crc, digest = 0, xxhash.xxh3_128()
    for block in storage_chunks(storage):
        if storage.crc32 is not None:
            crc = zlib.crc32(block.data, crc)
        if storage.digest is not None:
            digest.update(block.data)
        yield block
    if storage.crc32 is not None and crc != storage.crc32:
        raise fail(DamageError, storage.file, crc_mismatch(storage, crc))
    if storage.digest is not None and digest.hexdigest() != storage.digest:
        raise fail(DamageError, storage.file, digest_mismatch(storage))


def missing_bytes(piece: Piece, itemsize: int) -> int:
    """By how much a piece reaches past its storage."""
    if not product(piece.shape):
        return 0
    first, last = reach(piece.shape, piece.stride, piece.offset)
    return max(0, (last + 1) * itemsize - piece.storage.nbytes, -first * itemsize)


def parts(tensor: LazyTensor) -> Iterator[LazyTensor]:
    """The tensor, its components and the tensors in its state."""
    for _, node in each_node(tensor, "a tensor"):
        if isinstance(node, LazyTensor):
            yield node


def _storages(view: View) -> Iterator[Storage]:
    for tensor in view.tensors.values():
        for part in parts(tensor):
            for piece in part.pieces:
                yield piece.storage


def _check_extent(view: View, path: str, tensor: LazyTensor) -> Iterator[Finding]:
    for part in parts(tensor):
        missing = sum(missing_bytes(piece, element_bytes(part)) for piece in part.pieces)
        held = sum(product(piece.shape) for piece in part.pieces)
        if part.layout == "strided" and part.pieces and held != product(part.shape):
            yield _finding(
                view, path, "tensor-incomplete", "a tensor's pieces do not cover it",
                f"{product(part.shape):,} elements are needed, the pieces hold {held:,}",
            )  # fmt: skip
        if missing:
            yield _finding(
                view, path, "tensor-past-storage", "a tensor reaches past its storage",
                f"{part.dtype} {list(part.shape)} needs {missing:,} bytes more than there are",
            )  # fmt: skip


def _check_records(path: str, progress: Progress | None) -> tuple[list[Finding], int]:
    """Every record of an archive, those that hold no tensor too. torch.load checks none."""
    try:
        archive = read_directory(path)
    except HoldtrueError as error:
        return list(error.report.findings), 0
    findings, unproven = list(archive.findings), 0
    for entry in archive.entries:
        if not entry.readable:
            continue  # among the archive's findings already
        storage = storage_of(archive, entry, entry.name)
        finding = check_storage(storage, progress)
        if finding is not None:
            findings.append(replace(finding, where=f"{path}: {entry.name}"))
        elif entry.crc32 is None and entry.nbytes:
            unproven += 1
    return findings, unproven


def _unproven(view: View, count: int) -> list[str]:
    said = []
    if count:
        kind = "records without a CRC" if view.format in _ZIPS else "tensors"
        said.append(f"the values of {count:,} {kind}: the file keeps no checksum of them")
    if view.format != "holdtrue":
        said.append("who wrote the file and whether it is the one they meant: nothing is signed")
    return said


def _last_byte(storage: Storage) -> Storage:
    """Enough to know that all bytes are there, where there is nothing to compare them with."""
    if storage.codec != "raw" or not storage.nbytes:
        return storage
    return replace(storage, offset=storage.offset + storage.nbytes - 1, nbytes=1)


def _finding(view: View, path: str, code: str, what: str, why: str) -> Finding:
    return Finding(
        code=code,
        severity="error",
        where=f"{view.path}: {path}",
        what=what,
        why=why,
        fix="fetch or save the file again; `holdtrue salvage` keeps the tensors that are whole",
    )
