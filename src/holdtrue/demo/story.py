"""The demo's acts, as functions that return what happened; the command line tells it."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

from msgspec import Struct

from holdtrue.checkpoint import Checkpoint
from holdtrue.checkpoint import open as open_checkpoint
from holdtrue.records.manifest import NAME, Part
from holdtrue.storage.locating import steps
from holdtrue.storage.own_names import STAGING

_PATIENCE = 120  # seconds for one training process before something must be wrong


class Training(Struct, frozen=True):
    """One training process that came to its end."""

    run: Path
    losses: Path
    seconds: float
    stall: float  # seconds that its last save held the training up
    durable: float  # seconds until that save was durable


class Killed(Struct, frozen=True):
    """A training process that was killed while it wrote a checkpoint behind the training."""

    run: Path
    losses: Path
    steps: int  # that it had trained
    published: int  # the newest checkpoint that was whole
    leftover: Path  # the directory that it was writing
    saving: int  # the step whose checkpoint that was to be
    leftover_bytes: int  # that had been written of it
    attempts: int


class Comparison(Struct, frozen=True):
    """Two runs, held side by side."""

    losses: int
    differing_losses: tuple[int, ...]  # steps
    tensors: int
    elements: int
    differing_tensors: tuple[str, ...]
    parts: int
    differing_parts: tuple[str, ...]  # by everything that is not a tensor
    accuracy: float

    @property
    def equal(self) -> bool:
        return not (self.differing_losses or self.differing_tensors or self.differing_parts)


class TrainingError(RuntimeError):
    """A training process ended badly; carries what it printed."""


def train_to_the_end(run: Path, losses: Path) -> Training:
    began = time.perf_counter()
    process = _start(run, losses)
    try:
        _, errors = process.communicate(timeout=_PATIENCE)
    except BaseException:
        process.kill()
        raise
    if process.returncode != 0:
        raise TrainingError(errors.decode(errors="replace"))
    seconds = time.perf_counter() - began
    last = open_checkpoint(run).manifest
    if last is None or last.cost is None:
        raise TrainingError("the last checkpoint does not tell what its save cost")
    return Training(run, losses, seconds, last.cost.stall, last.cost.seconds)


def kill_while_saving(run: Path, losses: Path, after: int = 80, attempts: int = 8) -> Killed:
    """Start training; once step `after` was published, SIGKILL it in the middle of a save.

    A save takes milliseconds, so a kill can come too late: then the training is resumed, and killed
    at its next save.
    """
    for attempt in range(1, attempts + 1):
        process = _start(run, losses)
        try:
            _wait_for_save(process, run, after)
        finally:
            process.kill()
            _, errors = process.communicate()
        if process.returncode != -signal.SIGKILL:
            raise TrainingError(errors.decode(errors="replace"))
        leftovers = list((run / STAGING).glob("step-*")) if (run / STAGING).is_dir() else []
        # One with its manifest is written in full, and was about to be published.
        if leftovers and not (leftovers[0] / NAME).exists():
            newest = open_checkpoint(run)
            return Killed(
                run=run,
                losses=losses,
                steps=len(_losses(losses)),
                published=newest.step or 0,
                leftover=leftovers[0],
                saving=int(leftovers[0].name.split(".")[0].removeprefix("step-")),
                leftover_bytes=sum(_written(f) for f in leftovers[0].glob("*.safetensors")),
                attempts=attempt,
            )
    raise TrainingError(f"the training was killed {attempts} times, each time between two saves")


def _written(file: Path) -> int:
    """Files have their full size from the beginning; what was not written yet has no blocks."""
    stat = file.stat()
    return min(stat.st_size, getattr(stat, "st_blocks", stat.st_size) * 512)


def compare(reference: Training, resumed: Training) -> Comparison:
    """Every loss by step; of the final checkpoints every tensor bit by bit, and every value."""
    expected, got = _losses(reference.losses), _losses(resumed.losses)
    steps = sorted(expected.keys() | got.keys())
    a, b = open_checkpoint(reference.run), open_checkpoint(resumed.run)
    one, other = _parts(a), _parts(b)
    parts = sorted(one.keys() | other.keys())
    names = sorted(a.tensors.keys() | b.tensors.keys())
    return Comparison(
        losses=len(steps),
        differing_losses=tuple(s for s in steps if expected.get(s) != got.get(s)),
        tensors=len(names),
        elements=sum(a.tensors[n].numpy().size for n in names if n in a.tensors),
        differing_tensors=tuple(n for n in names if not _equal(a, b, n)),
        parts=len(parts),
        differing_parts=tuple(p for p in parts if one.get(p) != other.get(p)),
        accuracy=b.metrics["accuracy"],
    )


def _parts(checkpoint: Checkpoint) -> dict[str, Part]:
    return checkpoint.manifest.parts if checkpoint.manifest else {}


def _equal(a: Checkpoint, b: Checkpoint, name: str) -> bool:
    if name not in a.tensors or name not in b.tensors:
        return False
    one, other = a.tensors[name], b.tensors[name]
    same = one.dtype == other.dtype and one.shape == other.shape
    return same and one.numpy().tobytes() == other.numpy().tobytes()


def _losses(path: Path) -> dict[int, tuple[str, ...]]:
    """step → its losses as hexadecimal floats; one that was trained twice must be equal twice."""
    found: dict[int, set[str]] = {}
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # the line that was being written when the process was killed
            continue
        found.setdefault(row["step"], set()).add(row["loss"])
    return {step: tuple(sorted(values)) for step, values in found.items()}


def _start(run: Path, losses: Path) -> "subprocess.Popen[bytes]":
    # Not -m: the network's class would then be called __main__.DigitsNet.
    program = "import sys; from holdtrue.demo.digits import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", program, str(run), str(losses)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def _wait_for_save(process: "subprocess.Popen[bytes]", run: Path, after: int) -> None:
    """Return as soon as a quarter of a checkpoint is seen written, step `after` being published."""
    deadline = time.monotonic() + _PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        if _newest(run) >= after and _is_writing(run / STAGING):
            return
        time.sleep(0.0003)
    if process.poll() is None:
        raise TrainingError("no checkpoint was begun in time")
    if process.returncode == 0:
        raise TrainingError("the training ended before it was seen saving; try again")


def _newest(run: Path) -> int:
    """The newest published step; 0 before the first."""
    return max(steps(run), default=0)


def _is_writing(area: Path) -> bool:
    try:
        files = list(area.glob("step-*/*.safetensors"))
        size = sum(file.stat().st_size for file in files)
        return size > 0 and sum(map(_written, files)) >= size / 4
    except OSError:  # it was published, or removed, while we looked
        return False
