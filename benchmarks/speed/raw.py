"""What the machine can do with the same bytes: copying, writing, reading, hashing, touching.

No format, no names, no checks: one file of the tensors' bytes. Everything else is held against it.
"""

import contextlib
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash

from benchmarks.speed import files
from benchmarks.speed.measured import Measured
from benchmarks.speed.states import State, tensors_of

MIB = 1 << 20
WRITES = {
    "raw O_DIRECT 4x8 MiB": (4, 8 * MIB, True),
    "raw O_DIRECT 4x16 MiB": (4, 16 * MIB, True),
    "raw O_DIRECT 2x16 MiB": (2, 16 * MIB, True),
    "raw buffered 4x8 MiB": (4, 8 * MIB, False),
}
READS = {
    "raw O_DIRECT 4x16 MiB": (4, 16 * MIB, True),
    "raw O_DIRECT 8x8 MiB": (8, 8 * MIB, True),
    "raw buffered 4x8 MiB": (4, 8 * MIB, False),  # what bringing it into the page cache costs
}
COPIES = {"raw memcpy, 1 thread": 1, "raw memcpy, 2 threads": 2}
WARM = "raw preadv, 2 threads"
FRESH = "raw preadv into fresh huge pages, 2 threads"
_PAGE = 4096
_VECTORS = 1024  # what preadv takes at once


def measure(state: State, folder: Path, into: Measured, number: int) -> None:
    """One round of every limit. Memory for a second state is taken, and given back."""
    tensors = [t.detach().view(-1).view(torch.uint8).numpy() for t in tensors_of(state)]
    size = -(-state.nbytes // _PAGE) * _PAGE
    arena = anonymous(size)
    began = time.perf_counter()
    target = np.frombuffer(arena, np.uint8)
    target[::_PAGE] = 1
    _note(into, state, "first touch", "raw huge pages", number, began)
    for name, threads in COPIES.items():
        into.add(state.name, "memcpy", name, number, _copied(tensors, target, threads))
    for name, (threads, step, direct) in WRITES.items():
        with contextlib.suppress(OSError) if direct else contextlib.nullcontext():
            seconds = _written(folder, arena, state.nbytes, threads, step, direct)
            into.add(state.name, "save durable", name, number, seconds)
    for name, (threads, step, direct) in READS.items():
        files.make_cold(folder)
        with contextlib.suppress(OSError):
            seconds = _read(folder, arena, size, threads, step, direct=direct)
            into.add(state.name, "load cold", name, number, seconds)
    _hashed(state, arena, into, number)
    del target
    arena.release()
    files.make_warm(folder)
    began = time.perf_counter()
    _scattered(folder, tensors)
    _note(into, state, "load warm", WARM, number, began)


def first_touch(nbytes: int, path: Path) -> float:
    """Seconds to read so many cached bytes into memory that nobody has touched."""
    began = time.perf_counter()
    _read(path.parent, anonymous(-(-nbytes // _PAGE) * _PAGE), nbytes, 2, 8 * MIB, direct=False)
    return time.perf_counter() - began


def anonymous(nbytes: int) -> memoryview:
    """Fresh private memory, in huge pages where the system has them."""
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)


def _copied(tensors: list[np.ndarray], target: np.ndarray, threads: int) -> float:
    """The state into touched memory: each tensor in pieces, as one long list of copies."""
    jobs, at = [], 0
    for tensor in tensors:
        for start in range(0, len(tensor), 8 * MIB):
            piece = tensor[start : start + 8 * MIB]
            jobs.append((at + start, piece))
        at += len(tensor)

    def copy(job: tuple[int, np.ndarray]) -> None:
        np.copyto(target[job[0] : job[0] + len(job[1])], job[1])

    began = time.perf_counter()
    _in_threads(copy, jobs, threads)
    return time.perf_counter() - began


def _written(
    folder: Path, arena: memoryview, nbytes: int, threads: int, step: int, direct: bool
) -> float:
    path = folder / "raw"
    path.unlink(missing_ok=True)
    files.sync_folder(folder)
    size = len(arena) if direct else nbytes  # O_DIRECT takes whole pages
    began = time.perf_counter()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | (os.O_DIRECT if direct else 0))
    try:
        os.posix_fallocate(descriptor, 0, size)

        def write(at: int) -> None:
            end = min(size, at + step)
            while at < end:
                at += os.pwrite(descriptor, arena[at:end], at)

        _in_threads(write, range(0, size, step), threads)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return time.perf_counter() - began


def _read(
    folder: Path, arena: memoryview, size: int, threads: int, step: int, *, direct: bool = True
) -> float:
    began = time.perf_counter()
    descriptor = os.open(folder / "raw", os.O_RDONLY | (os.O_DIRECT if direct else 0))
    try:

        def read(at: int) -> None:
            end = min(size, at + step)
            while at < end:
                got = os.preadv(descriptor, [arena[at:end]], at)
                if got == 0:
                    break  # the end of a file that is no whole number of pages
                at += got

        _in_threads(read, range(0, size, step), threads)
    finally:
        os.close(descriptor)
    return time.perf_counter() - began


def _scattered(folder: Path, tensors: list[np.ndarray]) -> None:
    """From the page cache into the tensors' own memory, by two threads."""
    jobs: list[tuple[int, list[memoryview]]] = []
    at = filled = 0
    batch: list[memoryview] = []
    for tensor in tensors:
        for start in range(0, len(tensor), 8 * MIB):
            piece = memoryview(tensor[start : start + 8 * MIB])
            if batch and (filled + len(piece) > 8 * MIB or len(batch) == _VECTORS):
                jobs.append((at, batch))
                at, filled, batch = at + filled, 0, []
            batch.append(piece)
            filled += len(piece)
    jobs.append((at, batch))
    descriptor = os.open(folder / "raw", os.O_RDONLY)

    def read(job: tuple[int, list[memoryview]]) -> None:
        got, wanted = os.preadv(descriptor, job[1], job[0]), sum(map(len, job[1]))
        if got != wanted:
            raise RuntimeError(f"a raw read brought {got} bytes of {wanted}")

    try:
        _in_threads(read, jobs, 2)
    finally:
        os.close(descriptor)


def _hashed(state: State, arena: memoryview, into: Measured, number: int) -> None:
    began = time.perf_counter()
    digest = xxhash.xxh3_128()
    for at in range(0, state.nbytes, 8 * MIB):
        digest.update(arena[at : at + 8 * MIB])
    _note(into, state, "hash", "raw xxh3-128, 1 thread", number, began)


def _note(
    into: Measured, state: State, measure: str, contender: str, number: int, began: float
) -> None:
    into.add(state.name, measure, contender, number, time.perf_counter() - began)


def _in_threads(work: Callable[[Any], None], jobs: Iterable[Any], count: int) -> None:
    """Independent of holdtrue's own: a limit must not share what it is a limit for."""
    waiting, errors = iter(jobs), []
    lock = threading.Lock()

    def taken() -> Iterator[Any]:
        while True:
            with lock:
                job = next(waiting, None)
            if job is None:
                return
            yield job

    def run() -> None:
        try:
            for job in taken():
                work(job)
        except BaseException as error:
            errors.append(error)

    others = [threading.Thread(target=run) for _ in range(count - 1)]
    for thread in others:
        thread.start()
    run()
    for thread in others:
        thread.join()
    if errors:
        raise errors[0]
