"""Who needs more memory than there is ends in a process of its own, not with all figures.

`python -m benchmarks.speed.trial STATE CONTENDER FOLDER` is what runs in each process. Only of the
packages that have to be installed first, on states that are large for the machine.
"""

import contextlib
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

from benchmarks.speed import everyone, files, rounds, states
from benchmarks.speed.measured import Measured
from benchmarks.speed.other_peers import OTHERS
from benchmarks.speed.rounds import COLD, SAVE, STALL, WARM

_SELF, _ROOT = "benchmarks.speed.trial", Path(__file__).parents[2]
_PART = 8  # of the memory: what a larger state costs some of them does not fit
KILLED = "killed by the system, tried in a process of its own: there is not that much memory"


def is_large(size: str) -> bool:
    """Whether a state of that name is large for this machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return states.about(size) > memory // _PART


def refused(size: str, folder: Path, name: str) -> str | None:
    """Why a contender has no turn at that state; None where it has.

    What this process holds meanwhile is what it will hold at that turn, but for the state.
    """
    if not is_large(size) or name not in {one.name for one in OTHERS}:
        return None
    command = [sys.executable, "-m", _SELF, size, name, str(folder)]
    done = subprocess.run(command, capture_output=True, check=False, cwd=_ROOT)
    files.empty(folder)
    return KILLED if done.returncode == -signal.SIGKILL else None


def main(size: str, contender: str, folder: str) -> None:
    with contextlib.suppress(OSError):  # and if someone has to go, it is this one
        Path("/proc/self/oom_score_adj").write_text("1000")
    taking_part, _ = everyone.contenders()
    one = next(c for c in taking_part if c.name == contender)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        all_of_it = (SAVE, COLD, WARM, STALL)
        rounds.turn(states.build(size), one, Path(folder), Measured(), all_of_it)(0)


if __name__ == "__main__":
    main(*sys.argv[1:4])
