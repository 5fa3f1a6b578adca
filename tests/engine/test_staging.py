"""Copies into staging memory: the bytes of every tensor, however the work is cut."""

import os
import sys
from pathlib import Path

import pytest
import torch

from holdtrue.capture.pinned import pin, stage
from holdtrue.capture.raw import raw_bytes
from holdtrue.capture.tensors import TensorSet, add_tensor, finish, tensor_set
from holdtrue.capture.together import copy_together
from holdtrue.engine.layout import lay_out
from holdtrue.engine.staging import Staging, copy_in
from holdtrue.limits import override

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8,
          torch.bool, torch.complex64, torch.float8_e4m3fn]  # fmt: skip


def some_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = {}
    for n in range(60):
        shape = [(), (5,), (3, 4), (0, 2), (2, 1, 3)][n % 5]
        count = torch.Size(shape).numel()
        dtype = DTYPES[n % len(DTYPES)]
        # All bit patterns: NaNs of every kind among them.
        raw = torch.randint(0, 256, (count * dtype.itemsize,), generator=generator)
        raw = raw.to(torch.uint8) % 2 if dtype is torch.bool else raw.to(torch.uint8)
        whole = torch.empty(shape, dtype=dtype)
        whole.reshape(-1).view(torch.uint8)[:] = raw
        made[f"t{n:02d}"] = whole
    made["turned"] = torch.randn(6, 7, generator=generator).t()
    made["parameter"] = torch.nn.Parameter(torch.randn(9, generator=generator))
    made["large"] = torch.randn(3000, generator=generator)
    made["large turned"] = torch.randn(60, 50, generator=generator).t()
    return made


def captured(tensors: dict[str, torch.Tensor]) -> TensorSet:
    into = tensor_set("part")
    for name, tensor in tensors.items():
        add_tensor(into, tensor, name)
    finish(into)
    return into


@pytest.mark.parametrize("together", [None, copy_together])
@pytest.mark.parametrize("chunk", [1, 7, 64, 1000, 1 << 23])
@pytest.mark.parametrize("threads", [1, 3])
def test_every_tensor_is_where_its_file_wants_it(together, chunk: int, threads: int) -> None:  # type: ignore[no-untyped-def]
    tensors = some_tensors()
    kept = captured(tensors)
    files = lay_out(kept.records, kept.sources)
    staging = Staging()
    with override(chunk_bytes=chunk, threads=threads):
        places = staging.reserve(files)
        copy_in(files, kept.sources, places, together)
        copies = places.copies(files)
        for name, tensor in tensors.items():
            kept_bytes = b"".join(copies[f"part/{name}"].blocks())
            assert kept_bytes == bytes(raw_bytes(tensor)), name


def test_a_tensor_of_another_size_by_now_is_refused() -> None:
    tensors = {"a": torch.zeros(4), "b": torch.zeros(4), "c": torch.zeros(4)}
    kept = captured(tensors)
    files = lay_out(kept.records, kept.sources)
    tensors["b"].resize_(2)
    places = Staging().reserve(files)
    with pytest.raises(RuntimeError, match="part/b changed its size"):
        copy_in(files, kept.sources, places, copy_together)


def test_memory_is_used_again() -> None:
    kept = captured({"a": torch.zeros(1000)})
    files = lay_out(kept.records, kept.sources)
    staging = Staging()
    staging.reserve(files)
    size = staging.nbytes
    for _ in range(20):
        copy_in(files, kept.sources, staging.reserve(files), copy_together)
        assert staging.nbytes == size


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_expected_memory_is_touched_before_it_is_needed() -> None:
    nbytes = 64 << 20
    staging, before = Staging(), resident()
    staging.expect(nbytes)
    assert staging._touching is not None
    staging._touching.join()
    assert resident() - before > 0.9 * nbytes
    staging.free()
    assert resident() - before < 0.1 * nbytes


def resident() -> int:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def test_expected_memory_is_what_is_reserved() -> None:
    kept = captured({"a": torch.arange(100_000)})
    files = lay_out(kept.records, kept.sources)
    staging = Staging()
    staging.expect(16 << 20)
    expected = staging.memory
    places = staging.reserve(files)  # at once: it is still being touched
    copy_in(files, kept.sources, places, copy_together)
    assert staging.memory is expected
    held = places.copies(files)["part/a"].data
    assert torch.equal(torch.frombuffer(held, dtype=torch.int64), torch.arange(100_000))
    staging.expect(4096)  # less than there is
    assert staging.memory is expected


def test_memory_that_cannot_be_had_is_not_expected() -> None:
    staging = Staging()
    staging.expect(1 << 60)
    assert staging.nbytes == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU; there is none here")
def test_tensors_on_a_gpu_are_copied_when_their_stream_is_done(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(1000, device="cuda")}
    kept = captured(tensors)
    files = lay_out(kept.records, kept.sources)
    tensors["a"].fill_(3.0)
    staging = Staging()
    places = staging.reserve(files)
    pin(staging, kept.sources)
    assert staging.held
    stage(files, kept.sources, places)
    copy = b"".join(places.copies(files)["part/a"].blocks())
    assert copy == bytes(raw_bytes(torch.full((1000,), 3.0)))
    staging.free()
    assert not staging.held


def test_a_hold_on_staging_memory_ends_before_the_memory_does() -> None:
    """As pinning has one; here without a GPU."""
    kept = captured({"a": torch.zeros(1000)})
    staging, ended = Staging(), []
    staging.reserve(lay_out(kept.records, kept.sources))
    pin(staging, kept.sources)
    assert not staging.held  # there is nothing of a GPU to come
    staging.hold(lambda: ended.append(staging.nbytes))
    larger = captured({"a": torch.zeros(3_000_000)})
    staging.reserve(lay_out(larger.records, larger.sources))
    assert ended
    assert ended[0] < staging.nbytes
    assert not staging.held
