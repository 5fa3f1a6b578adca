"""Writes planned files with several threads, hashing each tensor on the way.

pwrite and xxhash release the GIL, so plain threads reach the disk. The bytes of a file do not
depend on the number of threads. A tensor arrives in blocks, so that one that comes from a file is
never whole in memory.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import xxhash

from holdtrue.engine.layout import Placement, PlannedFile
from holdtrue.engine.threads import in_threads
from holdtrue.limits import limits

Progress = Callable[[int], None]  # told how many more bytes have been written, on any thread


class Readable(Protocol):
    """Gives a tensor's bytes in C order, block after block; on any thread, and the same ones
    when it is called again."""

    def blocks(self) -> Iterator[memoryview]: ...


def write_files(
    directory: Path,
    files: list[PlannedFile],
    sources: Mapping[str, Readable],
    progress: Progress | None = None,
) -> dict[str, str]:
    """Write and fsync every file; returns the xxh3-128 of each tensor by key. Raises OSError."""
    digests: dict[str, str] = {}
    descriptors: list[int] = []
    jobs: list[tuple[int, list[Placement]]] = []
    try:
        for file in files:
            fd = create(directory / file.name, file.nbytes)
            descriptors.append(fd)
            write_at(fd, memoryview(file.head), 0)
            jobs += [(fd, batch) for batch in batches(file)]
        for found in in_threads(lambda job: _write_batch(*job, sources, progress), jobs):
            digests.update(found)
        in_threads(os.fsync, descriptors)
    finally:
        for fd in descriptors:
            os.close(fd)
    return digests


def create(path: Path, nbytes: int) -> int:
    """A new file of this size, open for writing."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        os.truncate(fd, nbytes)
    except BaseException:
        os.close(fd)
        raise
    return fd


def batches(file: PlannedFile) -> Iterator[list[Placement]]:
    """Neighbouring small tensors go out in one write."""
    batch: list[Placement] = []
    filled = 0
    for placement in file.placements:
        if batch and filled + placement.nbytes > limits().chunk_bytes:
            yield batch
            batch, filled = [], 0
        batch.append(placement)
        filled += placement.nbytes
    if batch:
        yield batch


def _write_batch(
    fd: int, batch: list[Placement], sources: Mapping[str, Readable], progress: Progress | None
) -> dict[str, str]:
    if len(batch) == 1:
        return {batch[0].key: _write_alone(fd, batch[0], sources, progress)}
    digests: dict[str, str] = {}
    pieces: list[memoryview] = []
    for placement in batch:
        own = list(sources[placement.key].blocks())
        check_size(placement.key, placement.nbytes, sum(block.nbytes for block in own))
        digest = xxhash.xxh3_128()
        for block in own:
            digest.update(block)
        digests[placement.key] = digest.hexdigest()
        pieces += own
    write_at(fd, memoryview(b"".join(pieces)), batch[0].offset)
    if progress is not None:
        progress(sum(placement.nbytes for placement in batch))
    return digests


def _write_alone(
    fd: int, placement: Placement, sources: Mapping[str, Readable], progress: Progress | None
) -> str:
    digest = xxhash.xxh3_128()
    done = 0
    for block in sources[placement.key].blocks():
        if done + block.nbytes <= placement.nbytes:  # never into the neighbour's bytes
            write_at(fd, block, placement.offset + done)
        digest.update(block)
        done += block.nbytes
        if progress is not None:
            progress(block.nbytes)
    check_size(placement.key, placement.nbytes, done)
    return digest.hexdigest()


def check_size(key: str, planned: int, given: int) -> None:
    """Raises RuntimeError where a source gives another number of bytes than was planned."""
    if given != planned:
        # The tensor was resized by another thread since it was planned.
        raise RuntimeError(f"{key} changed its size while it was saved")


def write_at(fd: int, data: memoryview, offset: int) -> None:
    """All of `data` at `offset`, however many system calls that takes."""
    done, step = 0, limits().chunk_bytes
    while done < len(data):
        if hasattr(os, "pwrite"):
            done += os.pwrite(fd, data[done : done + step], offset + done)
        else:  # Windows has no pwrite; a lock is not needed with one thread a file there
            os.lseek(fd, offset + done, os.SEEK_SET)
            done += os.write(fd, data[done : done + step])
