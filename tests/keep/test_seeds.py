"""The examples, which are also the three cases that this project began with."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import holdtrue

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = {"preprocessor": "model", "custom_getstate": "words", "checkpoint_dict": "checkpoint"}


def run(name: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / f"{name}.py"), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs_and_leaves_a_whole_checkpoint(name: str, tmp_path: Path) -> None:
    assert run(name, str(tmp_path))
    assert os.listdir(tmp_path) == [EXAMPLES[name]]
    assert holdtrue.verify(tmp_path / EXAMPLES[name]).findings == ()


class Counted(nn.Linear):
    """Slots beside a dict, and a state that is no dict."""

    def __init__(self, seen: int = 0) -> None:
        super().__init__(2, 2)
        self.seen = seen

    def __getstate__(self) -> tuple[str, int]:  # type: ignore[override]
        return ("seen", self.seen)

    def __setstate__(self, state: tuple[str, int]) -> None:  # type: ignore[override]
        assert state[0] == "seen"
        self.seen = state[1]


def test_a_state_of_any_form_goes_back_to_setstate(tmp_path: Path) -> None:
    source = nn.Sequential(Counted(3), Counted(4))
    holdtrue.save(tmp_path / "kept", model=source)
    target = nn.Sequential(Counted(), Counted())
    weight = target[0].weight
    holdtrue.open(tmp_path / "kept").restore(model=target)
    assert [m.seen for m in target] == [3, 4]
    assert target[0].weight is weight
    assert torch.equal(weight, source[0].weight)
