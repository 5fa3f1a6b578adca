"""What grows: states of ever more bytes or tensors, runs of ever more checkpoints.

Each `measure` is given an empty folder and a size, and returns seconds by operation.
"""

import contextlib
import io
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from msgspec import Struct
from msgspec.structs import replace
from torch import nn

import holdtrue
from holdtrue.cli.log import command as log
from holdtrue.cli.prune import command as prune
from holdtrue.formats.checkpoint_directory import read_manifest
from holdtrue.formats.step_names import step_name
from holdtrue.records.manifest import NAME, Manifest, encode_manifest

Times = dict[str, float]
MIB = 1 << 20
_SPARE = 3 << 30  # bytes of memory that a state leaves to everything else


class SkippedError(Exception):
    """This machine is too small for the size."""


class Growth(Struct, frozen=True):
    """What is measured over one kind of size."""

    label: str
    measure: Callable[[Path, int], Times]
    full: tuple[int, ...]
    few: tuple[int, ...]  # for --quick
    large: int  # from this size on there is one round

    def sizes(self, *, quick: bool) -> tuple[int, ...]:
        return self.few if quick else self.full

    def rounds(self, size: int, *, quick: bool) -> int:
        return 1 if quick or size >= self.large else 3


def measure_bytes(folder: Path, mib: int) -> Times:
    """One state of 64 tensors. There is one of it in memory: it is restored in place."""
    if _free_memory() < mib * MIB + _SPARE:
        raise SkippedError(f"{_free_memory() / 2**30:.1f} GiB of memory are free")
    if _free_disk(folder) < 1.1 * mib * MIB:
        raise SkippedError(f"{_free_disk(folder) / 2**30:.1f} GiB of disk are free")
    block = torch.rand(MIB // 4)
    tensors = [torch.empty(mib * MIB // 64 // 4) for _ in range(64)]
    model = nn.ParameterList([nn.Parameter(t) for t in tensors])
    for number, tensor in enumerate(tensors):
        rows = tensor.view(-1, min(len(block), len(tensor)))
        rows[:] = block[: rows.shape[1]]
        tensor[0] = number
    times: Times = {}
    place = folder / "c"
    with _timed(times, "save"):
        holdtrue.save(place, model=model)
    _drop(place)
    with _timed(times, "verify"):
        whole = holdtrue.verify(place).ok
    for tensor in tensors:
        tensor[0] = -1
    _drop(place)
    with _timed(times, "open and restore"):
        holdtrue.open(place).restore(model=model)
    if not whole or [int(tensor[0]) for tensor in tensors] != list(range(64)):
        raise RuntimeError("what was restored is not what was saved")
    return times


def measure_tensors(folder: Path, count: int) -> Times:
    """A model of so many parameters of 64 bytes."""
    model = nn.ParameterList([nn.Parameter(torch.full((16,), float(i))) for i in range(count)])
    times: Times = {}
    place = folder / "c"
    with _timed(times, "save"):
        holdtrue.save(place, model=model)
    _drop(place)
    with _timed(times, "open"):
        checkpoint = holdtrue.open(place)
    with torch.no_grad():
        for parameter in model:
            parameter.zero_()
    with _timed(times, "restore"):
        checkpoint.restore(model=model)
    with _timed(times, "doctor"):
        healthy = holdtrue.diagnose(place).ok
    if not healthy or int(model[count - 1][0]) != count - 1:
        raise RuntimeError("what was restored is not what was saved")
    return times


def measure_checkpoints(folder: Path, count: int) -> Times:
    """A run of so many checkpoints of one small training. Each `Run` is a new one, which knows
    nothing of the directory yet."""
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 8)).sum().backward()
    optimizer.step()
    place = folder / "run"
    keep = holdtrue.Keep(last=count, best=1, by="loss", mode="max")

    def run() -> holdtrue.Run:
        return holdtrue.Run(place, keep=keep, model=model, optimizer=optimizer)

    with run() as first:
        first.save(1, metrics={"loss": 1.0}, wait=True)
        first.resume()  # what is imported for it is no part of what grows
    _repeat(place, count)
    times: Times = {}
    with _timed(times, "open a run"):
        reader = run()
    with _timed(times, "steps"):
        listed = reader.steps()
    with _timed(times, "resume"):
        resumed = run().resume()
    with _timed(times, "resume the best"):
        best = run().resume("best")
    with _timed(times, "open @best"):
        opened = holdtrue.open(f"{place}@best").step
    with _timed(times, "log"):
        _called(log.main, str(place))
    with _timed(times, "log --json"):
        _called(log.main, str(place), "--json")
    with _timed(times, "prune --dry-run"):
        _called(prune.main, str(place), "--keep", f"last={count}", "--dry-run")
    with run() as writer:
        # Both remove one: the number of checkpoints stays.
        with _timed(times, "first save, pruned"):
            writer.save(count + 1, metrics={"loss": 0.0}, wait=True)
        with _timed(times, "next save, pruned"):
            writer.save(count + 2, metrics={"loss": 0.0}, wait=True)
    with holdtrue.Run(place, model=model, optimizer=optimizer) as writer:
        with _timed(times, "first save, all kept"):
            writer.save(count + 3, wait=True)
        with _timed(times, "next save, all kept"):
            writer.save(count + 4, wait=True)
    with _timed(times, "prune all but one"):
        _called(prune.main, str(place), "--keep", "last=1")
    left = run().steps()
    if (listed[-1], resumed, best, opened, left) != (count, count, count, count, [count + 4]):
        raise RuntimeError(f"not what was saved: {listed[-1]}, {resumed}, {best}, {opened}, {left}")
    return times


GROWTHS = {
    "bytes": Growth(
        "MiB",
        measure_bytes,
        (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384),
        (64, 128, 256, 512),
        4096,
    ),
    "tensors": Growth(
        "tensors",
        measure_tensors,
        (10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000),
        (10, 100, 1000, 3000, 10_000),
        30_000,
    ),
    "checkpoints": Growth(
        "checkpoints",
        measure_checkpoints,
        (1, 3, 10, 30, 100, 300, 1000),
        (1, 10, 30, 100),
        10_000,
    ),
}


@contextlib.contextmanager
def _timed(times: Times, name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    times[name] = time.perf_counter() - began


def _called(main: Callable[..., object], *arguments: str) -> None:
    """A command, in this process: what it imports is no part of what grows."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main(list(arguments), standalone_mode=False)


def _repeat(run: Path, count: int) -> None:
    """Steps 2 to `count` as the first one, by links; the metric grows with the step."""
    source = run / step_name(1)
    manifest = read_manifest(source)
    for step in range(2, count + 1):
        target = run / step_name(step)
        target.mkdir()
        for name in manifest.files:
            (target / name).parent.mkdir(exist_ok=True)
            os.link(source / name, target / name)
        (target / NAME).write_bytes(encode_manifest(_of(manifest, step)))


def _of(manifest: Manifest, step: int) -> Manifest:
    return replace(manifest, step=step, metrics={"loss": float(step)})


def _drop(place: Path) -> None:
    """Of what the page cache holds, so that it is read from the disk."""
    for file in place.rglob("*"):
        if file.is_file():
            fd = os.open(file, os.O_RDONLY)
            try:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)


def _free_memory() -> int:
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024


def _free_disk(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize
