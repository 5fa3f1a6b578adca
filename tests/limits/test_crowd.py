"""Several processes and threads at one run: nothing torn, nothing lost, nobody stuck."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("crowd.py")


@pytest.mark.skipif(sys.platform != "linux", reason="forks one process into many")
@pytest.mark.parametrize("seconds", [8, pytest.param(150, marks=pytest.mark.slow)])
def test_a_crowd_at_one_run(seconds: int, tmp_path: Path, figure: Callable[..., None]) -> None:
    command = [sys.executable, str(PROGRAM), str(tmp_path), str(seconds), "crowd"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 120)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    # What the rules keep of all that was saved, whoever saved it, is there, and nothing else.
    assert said["there"] == said["expected"]
    assert set(said["left"]) <= {".lock"}
    counts = said["counts"]
    assert all(counts.get(name) for name in ("saved", "resumed", "verified", "read", "restored"))
    assert counts["saved"] == said["logged"]
    for name, number in counts.items():
        figure(f"by 8 processes: {name}", number)
