"""How much memory a save and a restore add to a process: bounded, whatever the state's size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("memory_added.py")


def measured(place: Path, **settings: str) -> dict[str, float]:
    """MiB that each step has added in a fresh process."""
    try:
        Path("/proc/self/clear_refs").write_text("5", "ascii")
    except OSError as error:
        pytest.skip(f"the highest resident set cannot be begun anew here: {error}")
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(place)],
        capture_output=True, text=True, check=False, env={**os.environ, **settings},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_save_and_a_restore_add_little_and_one_behind_adds_one_state(tmp_path: Path) -> None:
    added = measured(tmp_path)
    assert added["state"] > 500
    assert added["save"] <= 64
    assert added["restore first"] <= 64
    assert added["restore while"] <= 64
    behind = [added[f"save behind {step}"] for step in range(1, 5)]
    assert added["state"] <= behind[0]  # the copy; less could not be one
    assert behind[3] <= added["state"] + 32
    assert behind[3] - behind[1] <= 8  # of 512: records and lists, not tensors


@pytest.mark.slow
def test_memory_that_is_taken_is_seen(tmp_path: Path) -> None:
    """What the other test measures with is able to find too much."""
    added = measured(tmp_path, HOLDTRUE_CHUNK_BYTES=str(128 << 20))
    assert added["save"] > 256
    assert added["state"] <= added["save behind 1"]
