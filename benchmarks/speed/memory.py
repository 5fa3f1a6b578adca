"""How much memory saving and loading add to a process: its highest resident set, in a fresh one.

Files that are mapped count as resident while they are looked at; that is how the kernel counts.
`python -m benchmarks.speed.memory STATE CONTENDER FOLDER` is what runs in each process.
"""

import gc
import json
import subprocess
import sys
import warnings
from pathlib import Path

from benchmarks.speed import everyone, files
from benchmarks.speed.contenders import Contender
from benchmarks.speed.measured import Measured
from benchmarks.speed.rounds import Say, said
from benchmarks.speed.states import State, build

SAVE, LOAD, BEHIND, GROWTH = (
    "memory of a save, MiB",
    "memory of a load, MiB",
    "memory of a save behind, MiB",
    "memory that saves behind grow by, MiB",
)
_SELF, _ROOT = "benchmarks.speed.memory", Path(__file__).parents[2]


def run(state: str, names: list[str], rounds: int, folder: Path, into: Measured, say: Say) -> None:
    """Everyone in turn, each in a process of its own."""
    for number in range(rounds):
        for name in names:
            place = folder / "memory"
            place.mkdir()
            try:
                for measure, contender, mib in _in_a_process(state, name, place):
                    into.add(state, measure, contender, number, mib)
            except RuntimeError as error:
                into.failed.setdefault(state, {})[f"{name}, memory"] = said(error)
            finally:
                files.empty(folder)
            say(f"memory: round {number + 1} of {rounds}, {name}")


def _in_a_process(state: str, name: str, place: Path) -> list[tuple[str, str, float]]:
    command = [sys.executable, "-m", _SELF, state, name, str(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=_ROOT)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return [tuple(row) for row in json.loads(done.stdout.splitlines()[-1])]


def main(name: str, contender: str, folder: str) -> None:
    warnings.simplefilter("ignore")
    found, _ = everyone.contenders()
    one = next(c for c in found if c.name == contender)
    place = Path(folder)
    for part in ("small", "large"):
        (place / part).mkdir()
    _rows(build("16 MiB"), one, place / "small")  # imports and first calls are not what is asked
    print(json.dumps(_rows(build(name), one, place / "large")))


def _rows(state: State, one: Contender, place: Path) -> list[tuple[str, str, float]]:
    peak = _Peak()
    one.save(state, place)
    rows = [(SAVE, one.name, peak.mib())]
    for load in one.loads:
        highest = 0.0
        for prepare in (files.make_cold, files.make_warm):
            prepare(place)
            before = state.spoil()
            peak = _Peak()
            load.act(state, place)
            highest = max(highest, peak.mib())
            state.check(before)
        rows.append((LOAD, load.name, highest))
    files.empty(place)
    for name, make in one.behind.items():
        (place / "behind").mkdir()
        start = _Peak()
        behind = make(state, place / "behind")
        heights = []
        for step in range(1, 5):
            state.change()
            behind.save(step)
            behind.wait()
            heights.append(start.mib())
        behind.close()
        rows.append((BEHIND, name, heights[-1]))
        rows.append((GROWTH, name, heights[3] - heights[1]))
        files.empty(place)
    return rows


class _Peak:
    """The highest resident set since this was made, above what it was then."""

    def __init__(self) -> None:
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the kernel's high mark starts anew
        self._before = _status("VmRSS")

    def mib(self) -> float:
        return max(0.0, (_status("VmHWM") - self._before) / 1024)


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(field + ":")))


if __name__ == "__main__":
    main(*sys.argv[1:4])
