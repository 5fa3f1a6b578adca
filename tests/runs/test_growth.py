"""What a run holds on to: one copy of the state, and not a byte, thread or file more each save."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the system does not tell what a process holds"
)
SAVES = 200
MIB = 1 << 20

# In a process of its own: what other tests left in memory would hide what is looked for.
PROGRAM = """
    import json, os, sys, threading
    import torch, holdtrue

    torch.set_num_threads(1)

    def now():
        fields = dict(line.split(":", 1) for line in open("/proc/self/status"))
        return {
            "resident": int(fields["VmRSS"].split()[0]) * 1024,
            "threads": threading.active_count(),
            "files": len(os.listdir("/proc/self/fd")),
        }

    path, mib, saves = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    state = torch.rand(mib << 18)
    count = torch.zeros(8)
    run = holdtrue.Run(path, keep=holdtrue.Keep(last=2, best=1, by="loss"), state=state, n=count)
    measured = [now()]
    for step in range(1, saves + 1):
        count += 1
        state[step] = step
        saving = run.save(step, metrics={"loss": step % 7})
        if step % 10 == 0 or step == 1:
            saving.wait()
            run.flush()
            measured.append({**now(), "staging": saving.staging, "nbytes": saving.nbytes})
    run.close()
    measured.append(now())
    print(json.dumps(measured))
"""


def measured(path: Path, mib: int, saves: int) -> list[dict[str, int]]:
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(path), str(mib), str(saves)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


@pytest.mark.slow
def test_a_save_behind_holds_the_state_once_and_gives_it_back(tmp_path: Path) -> None:
    before, *during, after = measured(tmp_path / "run", mib=192, saves=3)
    (first,) = during
    assert first["staging"] < first["nbytes"] + 4 * MIB
    # Beside the copy, what code and buffers of a first save need; a second copy would be 192 MiB.
    assert first["resident"] - before["resident"] < first["staging"] + 96 * MIB
    assert after["resident"] - before["resident"] < 96 * MIB


def test_nothing_grows_over_200_saves(tmp_path: Path, figure: Any) -> None:
    _, *during, after = measured(tmp_path / "run", mib=1, saves=SAVES)
    settled = during[2]
    for later in [*during[3:], after]:
        assert later["resident"] - settled["resident"] < 8 * MIB
        assert later["files"] <= settled["files"]
        assert later["threads"] <= settled["threads"]
    assert len({m["staging"] for m in during}) == 1
    figure("saves of one process, without growth", SAVES)
