"""An example is run to its end, and another time killed, and run again; then both are compared."""

import os
import random
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

import holdtrue
from holdtrue.storage.locating import steps

EXAMPLES = Path(__file__).parents[2] / "examples"
_LIMIT = 100.0  # seconds: something is broken when one process takes longer


def needs(*packages: str) -> pytest.MarkDecorator:
    """A mark that skips where one is absent. Importing them takes seconds, and is not needed."""
    absent = [name for name in packages if find_spec(name) is None]
    return pytest.mark.skipif(bool(absent), reason=f"not installed: {', '.join(absent)}")


def run_killed_and_again(example: str, directory: Path, run: str = "run") -> tuple[Path, Path, int]:
    """The uninterrupted run, the one that was killed, and the step it had published by then."""
    whole, cut = directory / "whole", directory / "cut"
    log = (directory / "log").open("w")
    # Slowed down, so that a kill at a random moment falls into the training.
    killed = _start(example, cut, log, "0.05")
    uninterrupted = _start(example, whole, log)
    try:
        reached = _kill_at_random(killed, cut / run)
        assert uninterrupted.wait(_LIMIT) == 0, (directory / "log").read_text()
        assert _start(example, cut, log).wait(_LIMIT) == 0, (directory / "log").read_text()
    finally:
        for process in (killed, uninterrupted):
            process.kill()
            process.wait()
    return whole / run, cut / run, reached


def _start(example: str, directory: Path, log, *more: str) -> "subprocess.Popen[bytes]":
    program = [sys.executable, str(EXAMPLES / example), str(directory), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(program, stdout=log, stderr=log, env=environment)


def _kill_at_random(process: "subprocess.Popen[bytes]", run: Path) -> int:
    end = time.monotonic() + _LIMIT
    while not (run.is_dir() and steps(run)):
        assert process.poll() is None, "it ended before it published a checkpoint"
        assert time.monotonic() < end, "it published no checkpoint"
        time.sleep(0.005)
    time.sleep(random.uniform(0, 1.0))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    return max(steps(run))


def parts_that_differ(a: Path, b: Path) -> set[str]:
    """The parts of the newest checkpoints whose tensors or values are not the same, bit for bit."""
    first, second = holdtrue.open(a), holdtrue.open(b)
    assert first.step == second.step
    assert holdtrue.verify(a).ok
    assert holdtrue.verify(b).ok
    one, other = first.manifest, second.manifest
    differing = {
        name
        for name in one.parts.keys() | other.parts.keys()
        if name not in one.parts
        or name not in other.parts
        or one.parts[name].state != other.parts[name].state
    }
    keys = first.tensors.keys()
    return differing | {
        key.partition("/")[0]
        for key in keys | second.tensors.keys()
        if key not in keys
        or key not in second.tensors
        or first.tensors[key].numpy().tobytes() != second.tensors[key].numpy().tobytes()
    }
