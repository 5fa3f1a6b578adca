"""How long it takes until the library, or its command line, is there."""

import subprocess
import sys
import time
from pathlib import Path

from benchmarks.speed.measured import Measured
from benchmarks.speed.rounds import Say

STATE, START = "a new process", "start"
NOTHING, WHOLE = "python -c pass", "python -c 'import holdtrue'"
IMPORT, HELP = "import holdtrue", "holdtrue --help"
_TIMED = "import time; t = time.perf_counter(); import holdtrue; print(time.perf_counter() - t)"


def run(rounds: int, into: Measured, say: Say) -> None:
    command = str(Path(sys.executable).with_name("holdtrue"))
    for number in range(-1, rounds):  # one that only fills the page cache
        bare = _seconds([sys.executable, "-c", "pass"])
        whole = _seconds([sys.executable, "-c", "import holdtrue"])
        helped = _seconds([command, "--help"])
        inside = subprocess.run(
            [sys.executable, "-c", _TIMED], capture_output=True, text=True, check=True
        )
        if number >= 0:
            into.add(STATE, START, NOTHING, number, bare)
            into.add(STATE, START, WHOLE, number, whole)
            into.add(STATE, START, IMPORT, number, float(inside.stdout))
            into.add(STATE, START, HELP, number, helped)
    say("startup: done")


def _seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began
