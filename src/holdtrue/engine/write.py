"""Writes planned files with several threads, hashing each tensor on the way.

pwrite and xxhash release the GIL, so plain threads reach the disk. The bytes of a file do not
depend on the number of threads.
"""

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import xxhash

from holdtrue.engine.layout import Placement, PlannedFile
from holdtrue.limits import limits


class Readable(Protocol):
    """Gives a tensor's bytes in C order; called once, on any thread."""

    def read(self) -> memoryview: ...


def write_files(
    directory: Path, files: list[PlannedFile], sources: Mapping[str, Readable]
) -> dict[str, str]:
    """Write and fsync every file; returns the xxh3-128 of each tensor by key. Raises OSError."""
    digests: dict[str, str] = {}
    descriptors: list[int] = []
    try:
        with ThreadPoolExecutor(limits().threads, "holdtrue-write") as pool:
            jobs = []
            for file in files:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
                fd = os.open(directory / file.name, flags, 0o666)
                descriptors.append(fd)
                os.truncate(fd, file.nbytes)
                _write_at(fd, memoryview(file.head), 0)
                jobs += [pool.submit(_write_batch, fd, b, sources) for b in _batches(file)]
            try:
                for job in jobs:
                    digests.update(job.result())
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
            list(pool.map(os.fsync, descriptors))
    finally:
        for fd in descriptors:
            os.close(fd)
    return digests


def _batches(file: PlannedFile) -> Iterator[list[Placement]]:
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
    fd: int, batch: list[Placement], sources: Mapping[str, Readable]
) -> dict[str, str]:
    digests: dict[str, str] = {}
    pieces: list[memoryview] = []
    for placement in batch:
        data = sources[placement.key].read()
        if data.nbytes != placement.nbytes:
            # The tensor was resized by another thread since it was planned.
            raise RuntimeError(f"{placement.key} changed its size while it was saved")
        digests[placement.key] = xxhash.xxh3_128_hexdigest(data)
        pieces.append(data)
    _write_at(fd, pieces[0] if len(pieces) == 1 else memoryview(b"".join(pieces)), batch[0].offset)
    return digests


def _write_at(fd: int, data: memoryview, offset: int) -> None:
    """All of `data` at `offset`, however many system calls that takes."""
    done, step = 0, limits().chunk_bytes
    while done < len(data):
        if hasattr(os, "pwrite"):
            done += os.pwrite(fd, data[done : done + step], offset + done)
        else:  # Windows has no pwrite; a lock is not needed with one thread a file there
            os.lseek(fd, offset + done, os.SEEK_SET)
            done += os.write(fd, data[done : done + step])
