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
from collections.abc import Iterable
from pathlib import Path

from benchmarks.speed import everyone, files, rounds, states
from benchmarks.speed.measured import Measured
from benchmarks.speed.rounds import COLD, SAVE, STALL, WARM, Say

_SELF, _ROOT = "benchmarks.speed.trial", Path(__file__).parents[2]
_PART = 8  # of the memory: what a larger state costs some of them does not fit
KILLED = "killed by the system, in a process of its own: it needs more memory than there is"


def is_large(size: str) -> bool:
    """Whether a state of that name is large for this machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return states.about(size) > memory // _PART


def killed(size: str, names: Iterable[str], folder: Path, say: Say) -> dict[str, str]:
    """Those who were killed over a turn at that state, and the words for it."""
    found = {}
    for name in names:
        command = [sys.executable, "-m", _SELF, size, name, str(folder)]
        done = subprocess.run(command, capture_output=True, check=False, cwd=_ROOT)
        files.empty(folder)
        if done.returncode == -signal.SIGKILL:
            found[name] = KILLED
        say(f"{size}: trial, {name}: {found.get(name, 'there is memory for it')}")
    return found


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
