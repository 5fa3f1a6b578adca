"""Killed at random moments, resumed by a new process, again and again: it ends with the same bits.

Each life saves after every step, behind the training, and prunes. The program of the training
looks at what each kill leaves behind, and compares the end with a training that was not disturbed.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from random import SystemRandom
from typing import Any

import pytest

TRAINING = Path(__file__).with_name("killed_training.py")
KINDS = {"mlp", "convolutions", "adapters", "tied", "rivals"}
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks its training processes")


@pytest.mark.parametrize(
    ("steps", "saves"), [(40, 200), pytest.param(60, 300, marks=pytest.mark.slow)], ids=str
)
def test_killed_at_random_moments_it_ends_bit_equal(
    steps: int, saves: int, tmp_path: Path, figure: Any
) -> None:
    seed = SystemRandom().randrange(10**6)  # shown where it fails
    done = subprocess.run(
        [sys.executable, str(TRAINING), str(tmp_path), str(steps), str(seed)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"seed {seed}: {done.stderr[-3000:]}"
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert {kind["kind"] for kind in told} == KINDS
    for kind in told:
        assert kind["different"] == [], f"seed {seed}: {kind}"
        assert kind["left"] == [], f"seed {seed}: {kind}"  # nothing half-written
    assert sum(kind.get("kills", 0) for kind in told) > 0
    assert sum(kind["saves begun"] for kind in told) >= saves
    assert next(kind for kind in told if kind["kind"] == "adapters")["files linked"] > 0
    for name in ("kills", "in the middle of a save", "in the middle of a removal",
                 "checkpoints verified", "saves begun"):  # fmt: skip
        what = name if name == "kills" else f"kills: {name}"
        figure(what, sum(kind.get(name, 0) for kind in told))
