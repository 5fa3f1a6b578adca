"""Writes planned files with several threads, hashing each tensor on the way.

pwrite and xxhash release the GIL, so plain threads reach the disk. The bytes of a file do not
depend on the number of threads. A tensor arrives in blocks, so that one that comes from a file is
never whole in memory.
"""

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from msgspec import Struct

from holdtrue.engine.buffers import PAGE, lease, padded
from holdtrue.engine.layout import Placement, PlannedFile
from holdtrue.engine.new_file import NewFile
from holdtrue.engine.threads import in_threads
from holdtrue.engine.windows import Filling, Readable, Together, Window, windows
from holdtrue.limits import MIB, limits

_LARGE = 1 * MIB  # is worth a word where nothing else says what is large
Progress = Callable[[int], None]  # told how many more bytes have been written, on any thread


class FilesWritten(Struct, frozen=True):
    digests: dict[str, str]  # xxh3-128 of each tensor, by key
    refused: str | None = None  # why large files went through the page cache


class _Job(Struct, frozen=True, eq=False):
    file: NewFile
    window: Window
    filling: Filling
    image: memoryview | None


def write_files(
    directory: Path,
    files: list[PlannedFile],
    sources: Mapping[str, Readable],
    progress: Progress | None = None,
    images: Mapping[str, memoryview] | None = None,
    together: Together | None = None,
) -> FilesWritten:
    """Write and fsync every file. Raises OSError.

    `images` are page-aligned memory, padded to whole pages, in which the tensors of a file lie at
    their offsets already: they are written from there. `together` is offered small neighbours.
    """
    opened: list[NewFile] = []
    fillings: list[Filling] = []
    jobs: list[_Job] = []
    try:
        for file in files:
            step = limits().chunk_bytes
            large = file.nbytes >= limits().direct_bytes > 0
            made = NewFile(directory / file.name, file.nbytes, direct=large and step % PAGE == 0)
            opened.append(made)
            if large and step % PAGE:
                made.refused = f"chunks of {step:,} bytes (chunk_bytes) are no whole pages"
            image = (images or {}).get(file.name)
            filling = Filling(file, sources, together)
            fillings.append(filling)
            if image is not None:
                image[: len(file.head)] = file.head
            jobs += [_Job(made, window, filling, image) for window in windows(file, step)]

        def let_go(error: BaseException) -> None:
            for filling in fillings:
                filling.fail(error)

        # While some write, others fill the next windows: all in step, the disk would wait for the
        # processor and the processor for the disk. More who fill than there are processors would
        # only hold more memory.
        in_flight = threading.Semaphore(limits().writes)
        most = min(limits().threads, os.cpu_count() or 1) + limits().writes
        in_threads(lambda job: _write_window(job, in_flight, progress), jobs, let_go, most)
        in_threads(NewFile.sync, opened)
    finally:
        for made in opened:
            made.close()
    digests = {key: text for filling in fillings for key, text in filling.digests.items()}
    refused = next((f.refused for f in opened if f.refused), None)
    if not limits().direct_bytes and any(file.nbytes >= _LARGE for file in files):
        refused = "direct writes are switched off (direct_bytes is 0)"
    return FilesWritten(digests, refused)


def _write_window(job: _Job, in_flight: threading.Semaphore, progress: Progress | None) -> None:
    window, direct = job.window, job.file.direct
    nbytes = window.end - window.begin
    size = padded(nbytes) if direct else nbytes
    if job.image is not None:
        place = job.image[window.begin : window.begin + size]
        job.filling.fill(window, place, filled=True)
        with in_flight:
            job.file.write(place, window.begin)
    else:
        with lease(nbytes) as buffer:
            job.filling.fill(window, buffer)
            buffer[nbytes:size] = bytes(size - nbytes)
            with in_flight:
                job.file.write(buffer[:size], window.begin)
    if progress is not None:
        progress(sum(piece.end - piece.begin for piece in window.pieces))


def batches(file: PlannedFile) -> Iterator[list[Placement]]:
    """Neighbouring small tensors, together about a chunk; large ones alone."""
    batch: list[Placement] = []
    filled, most = 0, limits().chunk_bytes
    for placement in file.placements:
        if batch and filled + placement.nbytes > most:
            yield batch
            batch, filled = [], 0
        batch.append(placement)
        filled += placement.nbytes
    if batch:
        yield batch
