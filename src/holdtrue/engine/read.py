"""Reads and verifies storages with several threads, in the order of the files, in bounded memory.

Each file is opened once. Neighbouring small storages come with one read; a large one is read by
several threads and hashed in order, while its bytes are still in the processor's cache.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import xxhash
from msgspec import Struct

from holdtrue.engine.buffers import PAGE, lease
from holdtrue.engine.shared_file import HOT, SharedFile, copy
from holdtrue.engine.spans import (
    Alone,
    Fill,
    Into,
    Job,
    Run,
    Section,
    Window,
    flat,
    spans,
    windows,
)
from holdtrue.engine.threads import in_threads
from holdtrue.findings import Finding
from holdtrue.formats.checkpoint_directory import unreadable
from holdtrue.formats.tensor_bytes import digest_mismatch
from holdtrue.formats.verifying import check_storage
from holdtrue.formats.view import Storage
from holdtrue.limits import limits, override

_LOOKED_AT = 16
Progress = Callable[[int], None]  # told how many more bytes have been read

__all__ = ["Fill", "Into", "Wrong", "damaged_storage", "fill", "verify_storages"]


class Wrong(Struct, frozen=True, eq=False):
    """A storage whose bytes are not those that were written, or cannot be read."""

    storage: Storage
    error: OSError | None = None


def verify_storages(
    storages: Iterable[Storage],
    progress: Progress | None = None,
    *,
    past_cache: bool = True,
) -> list[Finding]:
    """Read and compare every byte of the storages that have a digest or CRC; one finding for each
    damaged one. Of storages without a proof only the presence of their bytes is checked.

    What is not in the page cache is read past it, unless the same bytes are read again at once.
    """
    unique = {(s.file, s.offset, s.nbytes): s for s in storages}
    digested = [Fill(s) for s in unique.values() if s.digest and s.codec == "raw"]
    others = [s for s in unique.values() if not s.digest or s.codec != "raw"]
    wrong = _read(digested, progress, past_cache=past_cache)
    more = in_threads(lambda storage: check_storage(storage, progress), others)
    found = [damaged_storage(one) for one in wrong]
    distinct = {(f.code, f.where): f for f in found}
    return [*distinct.values(), *(f for f in more if f is not None)]


def fill(
    fills: Iterable[Fill],
    progress: Progress | None = None,
    *,
    past_cache: bool = False,
) -> list[Wrong]:
    """Read each storage into its place, hashing it on the way; what turned out to be damaged.

    All of it is read, also where something is found to be wrong. A function that places bytes gets
    none that are wrong.
    """
    return _read(list(fills), progress, past_cache=past_cache)


def damaged_storage(wrong: Wrong) -> Finding:
    """What is said of it."""
    if wrong.error is None:
        return digest_mismatch(wrong.storage)
    return unreadable(Path(wrong.storage.file), wrong.error).report.findings[0]


def _read(fills: list[Fill], progress: Progress | None, *, past_cache: bool) -> list[Wrong]:
    past_cache = past_cache and limits().direct_bytes > 0
    jobs: list[Job] = list(spans(fills))
    here = _cached(jobs)
    if past_cache and not here:
        jobs = list(windows(fills))

    def let_go(error: BaseException) -> None:
        for job in jobs:
            if isinstance(job, Section):
                job.of.fail(error)
            elif isinstance(job, Window):
                for section in job.sections:
                    section.of.fail(error)

    with _opened(jobs, past_cache=past_cache) as files:

        def work(job: Job) -> list[Wrong]:
            with files.using(job.file) as file:
                found = _done(job, file)
            if progress is not None:
                progress(job.end - job.begin)
            return found

        # Copying and hashing keep a processor busy; waiting for the disk does not.
        few = min(limits().threads, os.cpu_count() or 1)
        with override(threads=few if here else limits().threads):
            results = in_threads(work, jobs, failed=let_go)
    return [one for found in results for one in found]


class _Files:
    """Each file is open from its first job to its last: there may be more files than may be open
    at once."""

    def __init__(self, jobs: list[Job], *, past_cache: bool) -> None:
        self._past_cache = past_cache
        self._left: dict[str, int] = {}
        self._open: dict[str, SharedFile] = {}
        self._lock = threading.Lock()
        for job in jobs:
            self._left[job.file] = self._left.get(job.file, 0) + 1

    @contextmanager
    def using(self, path: str) -> Iterator["SharedFile | OSError"]:
        file: SharedFile | OSError
        with self._lock:
            try:
                if path not in self._open:
                    self._open[path] = SharedFile(path, past_cache=self._past_cache)
                file = self._open[path]
            except OSError as error:
                file = error
        try:
            yield file
        finally:
            with self._lock:
                self._left[path] -= 1
                if not self._left[path] and path in self._open:
                    self._open.pop(path).close()

    def close(self) -> None:
        for file in self._open.values():
            file.close()


@contextmanager
def _opened(jobs: list[Job], *, past_cache: bool) -> Iterator[_Files]:
    files = _Files(jobs, past_cache=past_cache)
    try:
        yield files
    finally:
        files.close()


def _cached(jobs: list[Job]) -> bool:
    """Whether the page cache seems to have all of it; a few places are looked at."""
    for job in jobs[:: max(1, len(jobs) // _LOOKED_AT)]:
        try:
            file = SharedFile(job.file, past_cache=False)
        except OSError:
            return False
        try:
            if not file.has(job.begin):
                return False
        except OSError:  # is told by the one who reads there
            return False
        finally:
            file.close()
    return True


def _done(job: Job, file: SharedFile | OSError) -> list[Wrong]:
    if isinstance(job, Window):
        return _window(job, file)
    if isinstance(job, Section):
        return _section(job, file)
    return _alone(job, file) if isinstance(job, Alone) else _run(job, file)


def _run(job: Run, file: SharedFile | OSError) -> list[Wrong]:
    if isinstance(file, OSError):
        return [Wrong(f.storage, file) for f in job.fills]
    try:
        if _scatter(job, file):
            return [
                Wrong(f.storage)
                for f in job.fills
                if xxhash.xxh3_128_hexdigest(f.into) != f.storage.digest  # type: ignore[arg-type]
            ]
        with lease(job.end - job.begin + 2 * PAGE) as buffer:
            data = file.fetch(job.end - job.begin, job.begin, buffer)
            return [f for f in (_take(fill, job.begin, data) for fill in job.fills) if f]
    except OSError as error:
        return [Wrong(f.storage, error) for f in job.fills]


def _scatter(job: Run, file: SharedFile) -> bool:
    """Straight into all the places at once, where the page cache has all of it."""
    targets: list[Any] = []
    for one in job.fills:
        if one.into is None or callable(one.into):
            return False
        targets.append(one.into)
    between = [
        b.storage.offset - a.storage.offset - a.storage.nbytes for a, b in pairwise(job.fills)
    ]
    if any(between):
        spaced = [targets[0]]
        for gap, target in zip(between, targets[1:], strict=True):
            spaced += [bytearray(gap), target] if gap else [target]
        targets = spaced
    return file.scatter(targets, job.end - job.begin, job.begin)


def _take(one: Fill, begin: int, data: memoryview) -> Wrong | None:
    storage, into = one.storage, one.into
    first = storage.offset - begin
    found = data[first : first + storage.nbytes]
    if xxhash.xxh3_128_hexdigest(found) != storage.digest:
        return Wrong(storage)
    if callable(into):
        into(found)
    elif into is not None:
        copy(flat(into), found)
    return None


def _alone(job: Alone, file: SharedFile | OSError) -> list[Wrong]:
    storage, into = job.fill.storage, job.fill.into
    if isinstance(file, OSError):
        return [Wrong(storage, file)]
    memory = memoryview(bytearray(storage.nbytes)) if callable(into) else None
    if into is not None and not callable(into):
        memory = flat(into)
    digest = xxhash.xxh3_128()
    large = limits().chunk_bytes
    try:
        with lease(min(large, storage.nbytes) + 2 * PAGE) as buffer:
            at = job.begin
            while at < job.end:
                # Small pieces out of the page cache; few and large requests to the disk.
                count = min(HOT, large, job.end - at)
                place = buffer if memory is None else memory[at - job.begin :]
                if file.scatter([place[:count]], count, at):
                    digest.update(place[:count])
                    at += count
                    continue
                count = min(large, job.end - at)
                if memory is None:
                    data = file.fetch(count, at, buffer)
                    digest.update(data)
                    got = len(data)
                else:
                    got = file.fill(place[:count], at, buffer, digest.update)
                at += got
                if got < count:
                    return [Wrong(storage)]  # the file ends here
    except OSError as error:
        return [Wrong(storage, error)]
    if digest.hexdigest() != storage.digest:
        return [Wrong(storage)]
    if callable(into) and memory is not None:
        into(memory)
    return []


def _section(job: Section, file: SharedFile | OSError) -> list[Wrong]:
    nbytes = job.end - job.begin
    if isinstance(file, OSError):
        return _judged(job, memoryview(b""), file)
    with lease(nbytes + 2 * PAGE) as buffer:
        try:
            memory = job.of.memory()
            if memory is None:
                data = file.fetch(nbytes, job.begin, buffer)
            else:
                first = job.begin - job.of.storage.offset
                data = memory[first : first + nbytes]
                data = data[: file.fill(data, job.begin, buffer)]
        except OSError as error:
            return _judged(job, memoryview(b""), error)
        return _judged(job, data, None)


def _window(job: Window, file: SharedFile | OSError) -> list[Wrong]:
    data, error, wrong = memoryview(b""), None, []
    with lease(job.end - job.begin + 2 * PAGE) as buffer:
        try:
            if isinstance(file, OSError):
                raise file
            data = file.fetch(job.end - job.begin, job.begin, buffer)
        except OSError as raised:
            error = raised
        for one in job.fills:
            found = _take(one, job.begin, data) if error is None else Wrong(one.storage, error)
            wrong += [found] if found is not None else []
        for section in job.sections:
            part = data[section.begin - job.begin : section.end - job.begin]
            memory = section.of.memory() if error is None else None
            if memory is not None:
                first = section.begin - section.of.storage.offset
                copy(memory[first : first + len(part)], part)
            wrong += _judged(section, part, error)
    return wrong


def _judged(section: Section, data: memoryview, error: OSError | None) -> list[Wrong]:
    """Hash the bytes when it is their turn; at the end of the storage say whether they are right.
    Also where they could not be read: the sections that follow wait for their turn."""
    large = section.of
    large.unreadable = large.unreadable or error is not None
    right = large.hash(section, data)
    if error is not None:
        return [Wrong(large.storage, error)]
    if right is False and not large.unreadable:
        return [Wrong(large.storage)]
    if right and large.place is not None:
        memory = large.memory()
        if memory is not None:
            large.place(memory)
    return []
