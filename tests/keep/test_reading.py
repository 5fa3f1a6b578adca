"""Reading into place: the same bytes whatever the sizes of the reads, and damage always found.

Short reads, refused direct reads and changes in the middle are injected by replacing `os.preadv`.
"""

import errno
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import holdtrue
from holdtrue.limits import override

HAS_PREADV = hasattr(os, "preadv")
needs_preadv = pytest.mark.skipif(not HAS_PREADV, reason="reads are made by os.preadv on Linux")


def model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    made = nn.Module()
    made.small = nn.ParameterList([nn.Parameter(torch.randn(n)) for n in range(1, 40)])
    made.sixteen = nn.Parameter(torch.randn(33, 3).bfloat16())
    made.turned = nn.Parameter(torch.randn(7, 5).t())
    made.scalar = nn.Parameter(torch.randn(()))
    made.empty = nn.Parameter(torch.empty(0, 3))
    made.large = nn.Parameter(torch.randn(70_001))
    made.register_buffer("complex", torch.randn(5, dtype=torch.complex64))
    made.register_buffer("truth", torch.rand(9) > 0.5)
    return made


def values(made: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in made.state_dict().items()}


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert torch.equal(value, right[name]), name


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reading") / "kept"
    holdtrue.save(path, model=model(0))
    return path


@pytest.fixture
def copied(kept: Path, tmp_path: Path) -> Path:
    path = tmp_path / "copied"
    path.mkdir()
    for file in kept.iterdir():
        if file.is_file():
            (path / file.name).write_bytes(file.read_bytes())
    return path


def out_of_cache(path: Path) -> None:
    for file in path.glob("*.safetensors"):
        fd = os.open(file, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def data_file(path: Path) -> Path:
    return max(path.glob("*.safetensors"), key=lambda file: file.stat().st_size)


@pytest.mark.parametrize("verify", ["first", "while"])
@pytest.mark.parametrize("chunk", [97, 4096, 10_000, 1 << 23])
@pytest.mark.parametrize("threads", [1, 2, 16])
@pytest.mark.parametrize("cached", [True, False])
def test_every_size_of_read_gives_the_same_bytes(
    verify: Any, chunk: int, threads: int, cached: bool, kept: Path
) -> None:
    target = model(1)
    if not cached:
        out_of_cache(kept)
    with override(chunk_bytes=chunk, threads=threads):
        holdtrue.open(kept).restore(model=target, verify=verify)
    assert_same(values(model(0)), values(target))


@pytest.mark.parametrize("verify", ["first", "while"])
def test_one_byte_at_a_time(verify: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    saved, target = nn.Linear(9, 7), nn.Linear(9, 7)
    holdtrue.save(tmp_path / "kept", model=saved)
    with override(chunk_bytes=1, threads=3):
        holdtrue.open(tmp_path / "kept").restore(model=target, verify=verify)
        assert holdtrue.verify(tmp_path / "kept").ok
    assert_same(values(saved), values(target))


# -- faults injected into os.preadv ---------------------------------------------------------------

Preadv = Callable[..., int]


@pytest.fixture
def preadv(monkeypatch: pytest.MonkeyPatch) -> Callable[[Preadv], None]:
    return lambda function: monkeypatch.setattr(os, "preadv", function)


def short(real: Preadv) -> Preadv:
    """At most a few bytes of the first piece, other numbers every time."""
    lengths = iter(range(1, 1 << 30))

    def read(fd: int, buffers: Any, offset: int, flags: int = 0) -> int:
        for buffer in buffers:
            view = memoryview(buffer).cast("B") if memoryview(buffer).nbytes else None
            if view is not None:
                return real(fd, [view[: 1 + next(lengths) * 37 % 5000]], offset, flags)
        return 0

    return read


def nothing_cached(real: Preadv) -> Preadv:
    def read(fd: int, buffers: Any, offset: int, flags: int = 0) -> int:
        if flags:
            raise BlockingIOError(errno.EAGAIN, "not cached")
        return real(fd, buffers, offset)

    return read


def half_cached(real: Preadv) -> Preadv:
    """What is cached ends in the middle of every read."""

    def read(fd: int, buffers: Any, offset: int, flags: int = 0) -> int:
        if not flags:
            return real(fd, buffers, offset)
        first = memoryview(buffers[0]).cast("B") if memoryview(buffers[0]).nbytes else b""
        return real(fd, [first[: len(first) // 2]], offset) if len(first) > 1 else 0

    return read


def no_flags(real: Preadv) -> Preadv:
    def read(fd: int, buffers: Any, offset: int, flags: int = 0) -> int:
        if flags:
            raise OSError(errno.EOPNOTSUPP, "no RWF_NOWAIT here")
        return real(fd, buffers, offset)

    return read


def direct_refused(real: Preadv) -> Preadv:
    import fcntl

    def read(fd: int, buffers: Any, offset: int, flags: int = 0) -> int:
        if flags:
            raise BlockingIOError(errno.EAGAIN, "not cached")
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no direct reads here")
        return real(fd, buffers, offset)

    return read


FAULTS = [short, nothing_cached, half_cached, no_flags, direct_refused]


@needs_preadv
@pytest.mark.parametrize("verify", ["first", "while"])
@pytest.mark.parametrize("fault", FAULTS)
def test_odd_reads_give_the_same_bytes(
    verify: Any, fault: Callable[[Preadv], Preadv], kept: Path, preadv: Callable[[Preadv], None]
) -> None:
    target = model(1)
    preadv(fault(os.preadv))
    holdtrue.open(kept).restore(model=target, verify=verify)
    assert_same(values(model(0)), values(target))
    assert holdtrue.verify(kept).ok


@needs_preadv
@pytest.mark.parametrize("chunk", [4096, 1 << 23])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_flipped_byte_is_found_by_odd_reads(
    fault: Callable[[Preadv], Preadv],
    chunk: int,
    copied: Path,
    preadv: Callable[[Preadv], None],
) -> None:
    file = data_file(copied)
    data = bytearray(file.read_bytes())
    data[-70_000] ^= 4
    file.write_bytes(data)
    target = model(1)
    before = values(target)
    preadv(fault(os.preadv))
    with override(chunk_bytes=chunk):
        assert [f.code for f in holdtrue.verify(copied).errors] == ["digest-mismatch"]
        with pytest.raises(holdtrue.DamageError, match="digest-mismatch"):
            holdtrue.open(copied).restore(model=target)
        assert_same(before, values(target))
        with pytest.raises(holdtrue.DamageError, match="target-unusable"):
            holdtrue.open(copied).restore(model=target, verify="while")


@needs_preadv
@pytest.mark.parametrize("verify", ["first", "while"])
def test_cut_short_while_it_is_read(
    verify: Any, copied: Path, preadv: Callable[[Preadv], None]
) -> None:
    file, real, reads = data_file(copied), os.preadv, iter(range(1 << 30))
    checkpoint, target = holdtrue.open(copied), model(1)
    before = values(target)

    def read(fd: int, buffers: Any, offset: int, flags: int = 0) -> int:
        if next(reads) == 1:
            os.truncate(file, file.stat().st_size - 90_000)
        return real(fd, buffers, offset, flags)

    preadv(read)
    with override(chunk_bytes=4096, threads=2), pytest.raises(holdtrue.DamageError) as caught:
        checkpoint.restore(model=target, verify=verify)
    codes = {f.code for f in caught.value.report.errors}
    if verify == "first":
        assert codes == {"digest-mismatch"}
        assert_same(before, values(target))
    else:
        assert codes == {"target-unusable"}


@needs_preadv
@pytest.mark.parametrize(
    ("verify", "code"), [("first", "read-failed"), ("while", "target-unusable")]
)
def test_a_disk_that_fails(
    verify: Any, code: str, kept: Path, preadv: Callable[[Preadv], None]
) -> None:
    checkpoint, target, real = holdtrue.open(kept), model(1), os.preadv

    def read(fd: int, buffers: Any, offset: int, flags: int = 0) -> int:
        if offset > 100_000:
            raise OSError(errno.EIO, "Input/output error")
        return real(fd, buffers, offset, flags)

    preadv(read)
    with override(chunk_bytes=4096), pytest.raises(holdtrue.HoldtrueError) as caught:
        checkpoint.restore(model=target, verify=verify)
    assert [f.code for f in caught.value.report.errors] == [code]


def test_signals_do_not_break_a_read(kept: Path) -> None:
    """A timer that fires all the time; its handler does nothing, so calls are begun again."""
    fired = [0]

    def count(*_: object) -> None:
        fired[0] += 1

    old = signal.signal(signal.SIGALRM, count)
    signal.setitimer(signal.ITIMER_REAL, 1e-4, 1e-4)
    try:
        for _ in range(20):
            target = model(1)
            with override(chunk_bytes=997):
                holdtrue.open(kept).restore(model=target)
            assert_same(values(model(0)), values(target))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert fired[0]


# -- verify="while" -------------------------------------------------------------------------------


def test_damage_found_on_the_way_names_the_tensors(copied: Path) -> None:
    file = data_file(copied)
    data = bytearray(file.read_bytes())
    data[-70_000] ^= 4
    data[-1] ^= 4
    file.write_bytes(data)
    with pytest.raises(holdtrue.DamageError) as caught:
        holdtrue.open(copied).restore(model=model(1), verify="while")
    (found,) = caught.value.report.errors
    assert found.code == "target-unusable"
    assert len(found.places) == 2
    assert all(str(file) in place for place in found.places)


def test_what_does_not_fit_is_found_before_anything_is_touched(kept: Path) -> None:
    target = model(1)
    target.large = nn.Parameter(torch.zeros(5))
    before = values(target)
    with pytest.raises(holdtrue.RestoreError, match="shape-mismatch"):
        holdtrue.open(kept).restore(model=target, verify="while")
    assert_same(before, values(target))


def test_how_to_verify_is_one_of_two(kept: Path) -> None:
    with pytest.raises(ValueError, match='verify=.*"first" or "while"'):
        holdtrue.open(kept).restore(model=model(1), verify="never")  # type: ignore[arg-type]


def test_a_run_resumes_while_verifying(tmp_path: Path) -> None:
    saved, target = model(0), model(1)
    with holdtrue.Run(tmp_path / "run", model=saved) as run:
        run.save(3)
    with holdtrue.Run(tmp_path / "run", model=target) as run:
        assert run.resume(verify="while") == 3
    assert_same(values(saved), values(target))


def flip_last(path: Path) -> None:
    data = bytearray(data_file(path).read_bytes())
    data[-1] ^= 1
    data_file(path).write_bytes(data)


def test_a_run_fills_what_a_damaged_checkpoint_overwrote(tmp_path: Path) -> None:
    older, newer, target = model(0), model(2), model(1)
    with holdtrue.Run(tmp_path / "run", model=older) as run:
        run.save(1)
    with holdtrue.Run(tmp_path / "run", model=newer) as run:
        run.resume()
        with torch.no_grad():
            newer.get_parameter("large").add_(1)
        run.save(2)
    (newest,) = (tmp_path / "run").glob("*step*2")
    flip_last(newest)
    with holdtrue.Run(tmp_path / "run", model=target) as run:
        assert run.resume(verify="while") == 1
        assert_same(values(older), values(target))
        for path in (tmp_path / "run").glob("*step*1"):
            flip_last(path)
        with pytest.raises(holdtrue.DamageError, match="target-unusable"):
            run.resume(verify="while")


def test_a_foreign_file_is_verified_first_either_way(tmp_path: Path) -> None:
    saved, target = nn.Linear(3, 2), nn.Linear(3, 2)
    torch.save(saved.state_dict(), tmp_path / "it.pt")
    data = bytearray((tmp_path / "it.pt").read_bytes())
    at = data.index(saved.weight.detach().numpy().tobytes())
    data[at] ^= 1
    (tmp_path / "it.pt").write_bytes(data)
    before = values(target)
    with pytest.raises(holdtrue.DamageError, match="crc-mismatch"):
        holdtrue.open(tmp_path / "it.pt").restore(model=target, verify="while")
    assert_same(before, values(target))


def test_more_files_than_may_be_open(tmp_path: Path) -> None:
    import resource

    saved, target = model(0), model(1)
    with override(shard_bytes=200):
        holdtrue.save(tmp_path / "kept", model=saved)
    many = len(list((tmp_path / "kept").glob("*.safetensors")))
    old = resource.getrlimit(resource.RLIMIT_NOFILE)
    checkpoint = holdtrue.open(tmp_path / "kept")
    used = max(int(name) for name in os.listdir("/proc/self/fd"))
    assert many > 15
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 12, old[1]))
    try:
        checkpoint.restore(model=target)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, old)
    assert_same(values(saved), values(target))


def test_no_thread_is_left(kept: Path) -> None:
    before = threading.active_count()
    with override(chunk_bytes=512, threads=16):
        holdtrue.open(kept).restore(model=model(1))
    assert threading.active_count() == before
