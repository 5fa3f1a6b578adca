"""What works where torch is not installed, and what is said of the rest."""

import os
import subprocess
import sys
from pathlib import Path

from torch import nn

import holdtrue

WITHOUT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
sys.meta_path.insert(0, Absent())
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "torch" else real(name, *more)
import holdtrue
kept = holdtrue.open(sys.argv[1])
print(type(kept["model"]["weight"]).__name__, kept["model"]["weight"].shape, kept["note"])
for act in (lambda: holdtrue.save, lambda: holdtrue.Run, lambda: kept.restore(note=[])):
    try:
        act()
    except holdtrue.HoldtrueError as error:
        print(error.report.errors[0].fix)
"""


def test_parts_are_arrays_and_saving_says_what_to_install(tmp_path: Path) -> None:
    holdtrue.save(tmp_path / "kept", model=nn.Linear(3, 2), note=[1])
    source = str(Path(holdtrue.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(tmp_path / "kept")],
        env={**os.environ, "PYTHONPATH": source},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "ndarray (2, 3) [1]",
        *["pip install 'holdtrue[torch]'"] * 3,
    ]
