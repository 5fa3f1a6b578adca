"""Planned files on the disk: the same bytes whatever the chunks, the threads and the disk do."""

import ctypes
import errno
import mmap
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
from msgspec import Struct

import holdtrue
from holdtrue.engine.buffers import anonymous, padded
from holdtrue.engine.layout import PlannedFile, plan_file
from holdtrue.engine.write import FilesWritten, write_files
from holdtrue.limits import override

CHUNKS = (1, 7, 512, 4096, 3 * 4096, 1 << 16, 1 << 30)
THREADS = (1, 2, 3, 4, 8, 16)


class Bytes(Struct, frozen=True, eq=False):
    """A tensor's bytes, in blocks of a size."""

    data: bytes
    block: int
    code: str = "U8"

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.data),)

    @property
    def nbytes(self) -> int:
        return len(self.data)

    def blocks(self) -> Iterator[memoryview]:
        view = memoryview(self.data)
        yield from (view[at : at + self.block] for at in range(0, len(view), self.block))


def planned(seed: int, most: int, count: int = 12) -> tuple[list[PlannedFile], dict[str, Bytes]]:
    """Two files of tensors of odd sizes, empty ones too, in one block or in several."""
    draw = random.Random(seed)
    sources = {}
    for i in range(count):
        nbytes = draw.choice((0, 1, 5, draw.randrange(most), draw.randrange(most)))
        block = draw.choice((1 << 30, 1 << 30, max(1, most // 7), 4096))
        sources[f"part/t{i}"] = Bytes(draw.randbytes(nbytes), block)
    keys = list(sources)
    half = count // 2
    return [
        plan_file("a.safetensors", keys[:half], sources),
        plan_file("b.safetensors", keys[half:], sources),
        PlannedFile("index.json", b'{"an": "index"}', 15, ()),
    ], sources


def expected(file: PlannedFile, sources: dict[str, Bytes]) -> bytes:
    return file.head + b"".join(sources[p.key].data for p in file.placements)


def images(files: list[PlannedFile], sources: dict[str, Bytes]) -> dict[str, memoryview]:
    """As staging memory has them, with what an earlier save left behind the end."""
    made = {}
    for file in files:
        memory = anonymous(padded(file.nbytes))
        memory[:] = b"\xee" * len(memory)
        for p in file.placements:
            memory[p.offset : p.offset + p.nbytes] = sources[p.key].data
        made[file.name] = memory[: padded(file.nbytes)]
    return made


def check(
    directory: Path, files: list[PlannedFile], sources: dict[str, Bytes], done: FilesWritten
) -> None:
    for file in files:
        assert (directory / file.name).read_bytes() == expected(file, sources), file.name
    assert done.digests == {k: xxhash.xxh3_128_hexdigest(s.data) for k, s in sources.items()}


@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize("direct", [0, 1])
@pytest.mark.parametrize("chunk", CHUNKS)
def test_the_same_bytes_whatever_chunks_and_threads(
    chunk: int, direct: int, staged: bool, tmp_path: Path
) -> None:
    for threads in THREADS:
        most = min(40_000, 300 * chunk)
        files, sources = planned(seed=chunk * 100 + threads, most=most)
        place = tmp_path / str(threads)
        place.mkdir()
        with override(chunk_bytes=chunk, threads=threads, direct_bytes=direct):
            done = write_files(
                place, files, sources, images=images(files, sources) if staged else None
            )
        check(place, files, sources, done)


@pytest.mark.slow
def test_the_same_bytes_at_random(tmp_path: Path) -> None:
    for seed in range(300):
        draw = random.Random(seed)
        files, sources = planned(seed, most=draw.choice((100, 5000, 300_000)), count=30)
        place = tmp_path / str(seed)
        place.mkdir()
        with override(
            chunk_bytes=draw.choice((4096, 8192, 1 << 16, 1 << 20)) + draw.choice((0, 0, 1)),
            threads=draw.randint(1, 16),
            direct_bytes=draw.choice((0, 1, 20_000)),
        ):
            done = write_files(place, files, sources)
        check(place, files, sources, done)


@pytest.mark.parametrize("direct", [0, 1])
@pytest.mark.parametrize("seed", range(6))
def test_writes_that_end_early(
    seed: int, direct: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A system may take less than it is given, at any place; the fault is put in here."""
    draw, real = random.Random(seed), os.pwrite

    def short(fd: int, data: memoryview, offset: int) -> int:
        count = draw.choice((len(data), draw.randint(1, len(data))))
        if seed % 2:
            count = max(count - count % 4096, min(len(data), 4096))
        return real(fd, data[:count], offset)

    monkeypatch.setattr(os, "pwrite", short)
    files, sources = planned(seed, most=50_000)
    with override(chunk_bytes=1 << 14, direct_bytes=direct):
        done = write_files(tmp_path, files, sources)
    check(tmp_path, files, sources, done)


def test_signals_that_interrupt_the_writing(tmp_path: Path) -> None:
    """Every thousandth of a second, while a few megabytes go out in small pieces."""
    seen = []
    before = signal.signal(signal.SIGALRM, lambda number, _: seen.append(number))
    files, sources = planned(3, most=1 << 20)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        with override(chunk_bytes=4096, direct_bytes=1):
            done = write_files(tmp_path, files, sources)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert seen
    check(tmp_path, files, sources, done)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("threads", [1, 4, 16])
def test_a_disk_that_fails_in_each_chunk(
    threads: int, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each write in turn; nobody waits for ever for one that failed."""
    real, lock = os.pwrite, threading.Lock()
    files, sources = planned(1, most=60_000)
    failing = 0
    while True:
        count = 0

        def fails(fd: int, data: memoryview, offset: int) -> int:
            nonlocal count
            with lock:
                count += 1
                if count > failing:
                    raise OSError(number, os.strerror(number))
            return real(fd, data, offset)

        monkeypatch.setattr(os, "pwrite", fails)
        place = tmp_path / str(failing)
        place.mkdir()
        with override(chunk_bytes=1 << 13, threads=threads, direct_bytes=1):
            try:
                done = write_files(place, files, sources)
                break
            except OSError as error:
                said = error.errno
        assert said == number
        failing += 1
    assert failing > 20
    check(place, files, sources, done)


@pytest.mark.parametrize("threads", [2, 16])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_source_that_fails_ends_all(
    error: type[BaseException], threads: int, tmp_path: Path
) -> None:
    files, sources = planned(2, most=60_000)

    class Broken(Struct, frozen=True, eq=False):
        whole: Bytes

        def blocks(self) -> Iterator[memoryview]:
            yield memoryview(self.whole.data[:10])
            raise error("gone")

    for n, key in enumerate(k for k, s in sources.items() if s.nbytes > 10):
        place = tmp_path / str(n)
        place.mkdir()
        given: dict[str, Any] = {**sources, key: Broken(sources[key])}
        with override(chunk_bytes=1 << 12, threads=threads), pytest.raises(error):
            write_files(place, files, given)


@pytest.mark.parametrize("change", [lambda d: d + b"x", lambda d: d[:-1], lambda _: b""])
@pytest.mark.parametrize("chunk", [1 << 12, 1 << 30])
def test_a_tensor_of_another_size_than_planned(
    chunk: int, change: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    files, sources = planned(4, most=60_000)
    for n, key in enumerate(k for k, s in sources.items() if s.nbytes > 10):
        place = tmp_path / str(n)
        place.mkdir()
        other = Bytes(change(sources[key].data), sources[key].block)
        with (
            override(chunk_bytes=chunk),
            pytest.raises(RuntimeError, match="changed its size"),
        ):
            write_files(place, files, {**sources, key: other})


def test_a_file_system_without_direct_writes_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the first write, as some do that took the flag; put in here, none is at hand."""
    real = os.pwrite

    def refuses(fd: int, data: memoryview, offset: int) -> int:
        import fcntl

        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", refuses)
    value = torch.arange(1 << 19)
    saved = holdtrue.save(tmp_path / "kept", value=value)
    assert saved.buffered is not None
    assert "Invalid argument" in saved.buffered
    assert torch.equal(holdtrue.open(tmp_path / "kept")["value"], value)
    monkeypatch.undo()
    assert holdtrue.save(tmp_path / "again", value=value).buffered is None


def test_what_changes_meanwhile_is_kept_as_it_was_written(tmp_path: Path) -> None:
    """Another thread writes to the tensors all the time: a mix of moments, and still one that
    its digests vouch for."""
    value = torch.zeros(1 << 20)
    ended = threading.Event()

    def change() -> None:
        while not ended.is_set():
            value.add_(1)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        with override(chunk_bytes=1 << 16):
            for n in range(5):
                holdtrue.save(tmp_path / str(n), value=value)
    finally:
        ended.set()
        thread.join()
    for n in range(5):
        assert holdtrue.verify(tmp_path / str(n)).ok


def cached(path: Path) -> int:
    """How many pages of a file are in memory. (A read that does not wait begins to read them.)"""
    mincore = getattr(ctypes.CDLL(None), "mincore", None) if os.name != "nt" else None
    if mincore is None:
        pytest.skip("this system does not tell what is in its page cache")
    with path.open("rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    pages = (ctypes.c_ubyte * -(-len(memory) // mmap.PAGESIZE))()
    first = ctypes.c_char.from_buffer(memory)
    address = ctypes.c_void_p(ctypes.addressof(first))
    assert mincore(address, ctypes.c_size_t(len(memory)), pages) == 0
    del first
    memory.close()
    return sum(page & 1 for page in pages)


@pytest.mark.parametrize("refused", [False, True])
def test_what_went_through_the_page_cache_is_let_go_and_told(
    refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")
    real = os.pwrite

    def pwrite(fd: int, data: memoryview, offset: int) -> int:
        if refused and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    value = torch.rand(1 << 20)
    with override(chunk_bytes=1 << 20 if refused else 999_999):
        saved = holdtrue.save(tmp_path / "c", value=value)
    assert saved.buffered is not None
    assert ("Invalid argument" if refused else "999,999") in saved.buffered
    assert not cached(tmp_path / "c" / "value.safetensors")
    with override(direct_bytes=0):  # the page cache is asked for, and keeps what is written
        saved = holdtrue.save(tmp_path / "asked", value=value)
    assert saved.buffered is not None
    assert "direct_bytes is 0" in saved.buffered
    assert cached(tmp_path / "asked" / "value.safetensors") >= 1024
    with override(direct_bytes=0):
        assert holdtrue.save(tmp_path / "small", value=value[:9]).buffered is None
