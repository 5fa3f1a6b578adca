"""How a reading is divided: every byte of every storage once, in requests of a bounded size."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from holdtrue.engine.buffers import PAGE
from holdtrue.engine.read import fill
from holdtrue.engine.shared_file import SharedFile
from holdtrue.engine.spans import GAP, Fill, Section, windows
from holdtrue.formats.view import Storage
from holdtrue.limits import override

sizes = st.one_of(st.just(0), st.integers(1, 300), st.integers(1, 40_000))
gaps = st.one_of(st.just(0), st.integers(-200, 0), st.integers(0, 2 * GAP))


def storages(spaced: list[tuple[int, int]], file: str) -> list[Storage]:
    found, at = [], 0
    for gap, nbytes in spaced:
        at = max(0, at + gap)
        found.append(Storage(key=str(len(found)), file=file, offset=at, nbytes=nbytes))
        at += nbytes
    return found


@given(st.lists(st.tuples(gaps, sizes), max_size=30), st.sampled_from([1, 4096, 10_000, 1 << 20]))
def test_every_storage_is_in_windows_once(spaced: list[tuple[int, int]], chunk: int) -> None:
    fills = [Fill(s) for name in ("a", "b") for s in storages(spaced, name)]
    with override(chunk_bytes=chunk):
        found = list(windows(fills))
    whole = [one for window in found for one in window.fills]
    parts: dict[int, list[Section]] = {}
    for window in found:
        assert window.end - window.begin <= max(chunk, PAGE)
        for one in window.fills:
            assert window.begin <= one.storage.offset
            assert one.storage.offset + one.storage.nbytes <= max(window.end, one.storage.offset)
            assert one.storage.file == window.file
        for section in window.sections:
            assert window.begin <= section.begin < section.end <= window.end
            assert section.file == window.file
            parts.setdefault(id(section.of), []).append(section)
    seen = [one.storage for one in whole]
    for sections in parts.values():
        storage = sections[0].of.storage
        assert [s.turn for s in sections] == list(range(len(sections)))
        edges = [storage.offset, *(s.end for s in sections)]
        assert [s.begin for s in sections] == edges[:-1]
        assert edges[-1] == storage.offset + storage.nbytes
        seen.append(storage)
    assert sorted((s.file, s.key) for s in seen) == sorted((f.storage.file, f.storage.key)
                                                           for f in fills)  # fmt: skip


@pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="files are read past the cache on Linux")
def test_a_file_that_opens_only_sometimes_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, data = tmp_path / "file", os.urandom(200_000)
    path.write_bytes(data)
    digest = xxhash.xxh3_128_hexdigest(data)
    storage = Storage(key="x", file=str(path), offset=0, nbytes=len(data), digest=digest)
    opened: list[str] = []

    class Unreliable(SharedFile):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            opened.append(str(args[0]))
            if len(opened) == 2:  # the first one is asked what is cached
                raise OSError(errno.EMFILE, "Too many open files")
            super().__init__(*args, **kwargs)

        def has(self, offset: int) -> bool:
            return False

    monkeypatch.setattr("holdtrue.engine.read.SharedFile", Unreliable)
    for past_cache in (False, True):
        opened.clear()
        with override(chunk_bytes=PAGE, threads=4):
            wrong = fill([Fill(storage)], past_cache=past_cache)
        assert {w.error.errno for w in wrong if w.error is not None} == {errno.EMFILE}
