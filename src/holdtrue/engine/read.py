"""Reads and verifies storages with several threads, in bounded memory."""

from collections.abc import Callable, Iterable, Iterator
from io import FileIO
from pathlib import Path

import xxhash
from msgspec import Struct

from holdtrue.engine.threads import in_threads
from holdtrue.errors import DamageError, HoldtrueError, fail
from holdtrue.findings import Finding
from holdtrue.formats.checkpoint_directory import unreadable
from holdtrue.formats.tensor_bytes import digest_mismatch
from holdtrue.formats.verifying import check_storage
from holdtrue.formats.view import Storage
from holdtrue.limits import limits

Progress = Callable[[int], None]  # told how many more bytes have been read


class Fill(Struct, frozen=True, eq=False):
    """Where a storage's bytes go: straight into memory, or to a function that places them."""

    storage: Storage
    into: memoryview | Callable[[memoryview], None]


def verify_storages(storages: Iterable[Storage], progress: Progress | None = None) -> list[Finding]:
    """Read and compare every byte of the storages that have a digest or CRC; one finding for each
    damaged one. Of storages without a proof only the presence of their bytes is checked."""
    unique = {(s.file, s.offset, s.nbytes): s for s in storages}
    digested = [s for s in unique.values() if s.digest and s.codec == "raw"]
    batches = list(_batches(sorted(digested, key=lambda s: (s.file, s.offset))))
    others = [s for s in unique.values() if not s.digest or s.codec != "raw"]
    found = in_threads(lambda batch: _verify_batch(batch, progress), batches)
    more = in_threads(lambda storage: check_storage(storage, progress), others)
    return [f for findings in found for f in findings] + [f for f in more if f is not None]


def fill(fills: Iterable[Fill], progress: Progress | None = None) -> None:
    """Read each storage into its place, hashing again on the way. Raises DamageError.

    Called after `verify_storages`; a difference found only now means that the file was changed in
    between.
    """
    in_threads(lambda item: _fill(item, progress), fills)


def _batches(storages: list[Storage]) -> Iterator[list[Storage]]:
    batch: list[Storage] = []
    filled = 0
    for storage in storages:
        neighbour = bool(batch) and storage.file == batch[-1].file
        if batch and (not neighbour or filled + storage.nbytes > limits().chunk_bytes):
            yield batch
            batch, filled = [], 0
        batch.append(storage)
        filled += storage.nbytes
    if batch:
        yield batch


def _verify_batch(batch: list[Storage], progress: Progress | None) -> list[Finding]:
    findings: list[Finding] = []
    buffer = memoryview(bytearray(min(limits().chunk_bytes, max(s.nbytes for s in batch))))
    try:
        with Path(batch[0].file).open("rb", buffering=0) as file:
            for storage in batch:
                if _hash(file, storage, buffer) != storage.digest:
                    findings.append(digest_mismatch(storage))
                if progress:
                    progress(storage.nbytes)
    except OSError as error:
        findings += unreadable(Path(batch[0].file), error).report.findings
    return findings


def _hash(file: FileIO, storage: Storage, buffer: memoryview) -> str:
    digest = xxhash.xxh3_128()
    for part in _stream(file, storage, buffer):
        digest.update(part)
    return digest.hexdigest()


def _stream(file: FileIO, storage: Storage, buffer: memoryview) -> Iterator[memoryview]:
    """The bytes of a storage, piece by piece, in `buffer`. Ends early where the file does."""
    file.seek(storage.offset)
    left = storage.nbytes
    while left:
        got = file.readinto(buffer[: min(left, len(buffer))])
        if not got:
            return
        yield buffer[:got]
        left -= got


def _fill(item: Fill, progress: Progress | None) -> None:
    storage = item.storage
    direct = isinstance(item.into, memoryview)
    target = (
        item.into if isinstance(item.into, memoryview) else memoryview(bytearray(storage.nbytes))
    )
    try:
        digest = xxhash.xxh3_128()
        done, step = 0, limits().chunk_bytes
        with Path(storage.file).open("rb", buffering=0) as file:
            file.seek(storage.offset)
            while done < storage.nbytes:
                got = file.readinto(target[done : min(done + step, storage.nbytes)])
                if not got:
                    break
                digest.update(target[done : done + got])
                done += got
                if progress:
                    progress(got)
    except OSError as error:
        raise _changed(storage, str(error)) from None
    if storage.digest and digest.hexdigest() != storage.digest:
        raise _changed(storage, "its digest was right a moment ago")
    if not direct and callable(item.into):
        item.into(target)


def _changed(storage: Storage, why: str) -> HoldtrueError:
    return fail(
        DamageError,
        storage.file,
        Finding(
            code="target-unusable",
            severity="error",
            where=f"{storage.file}: {storage.key}",
            what="the file changed while it was read; the target is now partly overwritten",
            why=why,
            fix="restore again from a checkpoint that nothing writes to, or build the target anew",
        ),
    )
