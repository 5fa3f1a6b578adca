"""What a run holds on to: one copy of the state, and not a byte, thread or file more each save."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the system does not tell what a process holds"
)
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

    path, kib, saves, wait = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "wait"
    state = torch.rand(kib << 8)
    count = torch.zeros(8)
    run = holdtrue.Run(path, keep=holdtrue.Keep(last=2, best=1, by="loss"), state=state, n=count)
    measured = [now()]
    for step in range(1, saves + 1):
        count += 1
        state[step % len(state)] = step
        saving = run.save(step, metrics={"loss": step % 7}, wait=wait)
        if step % max(1, saves // 30) == 0 or step == 1:
            saving.wait()
            run.flush()
            measured.append({**now(), "staging": saving.staging, "nbytes": saving.nbytes})
    run.close()
    measured.append(now())
    print(json.dumps(measured))
"""


def measured(path: Path, kib: int, saves: int, how: str = "behind") -> list[dict[str, int]]:
    program = textwrap.dedent(PROGRAM)
    command = [sys.executable, "-c", program, str(path), str(kib), str(saves), how]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


@pytest.mark.slow
def test_a_save_behind_holds_the_state_once_and_gives_it_back(tmp_path: Path) -> None:
    before, *during, after = measured(tmp_path / "run", kib=192 << 10, saves=3)
    assert len(during) == 3
    for one in during:
        assert one["staging"] < one["nbytes"] + 4 * MIB
        # Beside the copy, what code and buffers of a save need; a second copy would be 192 MiB.
        assert one["resident"] - before["resident"] < one["staging"] + 96 * MIB
    assert after["resident"] - before["resident"] < 96 * MIB


@pytest.mark.parametrize(
    "saves",
    [pytest.param(300, id="300"), pytest.param(10_000, marks=pytest.mark.slow, id="10000")],
)
@pytest.mark.parametrize("how", ["behind", "wait"])
def test_nothing_grows_with_the_saves(how: str, saves: int, tmp_path: Path, figure: Any) -> None:
    """Memory by a straight line through all that was measured once the run had settled: what each
    save leaves behind would show in its slope, however little it is."""
    _, *during, after = measured(tmp_path / "run", 64, saves, how)
    settled = [*during[8:], after]
    assert len(settled) > 20
    resident = [m["resident"] for m in settled]
    slope = np.polyfit(np.linspace(0, 1, len(resident)), resident, 1)[0]
    print(f"{saves} saves, {how}: {slope / 1024:+,.0f} KiB of {resident[-1] // 1024:,}")
    assert slope < 4 * MIB, resident
    assert max(resident) - resident[0] < 8 * MIB
    assert {m["files"] for m in settled[:-1]} == {settled[0]["files"]}
    assert settled[-1]["files"] <= settled[0]["files"]
    assert {m["threads"] for m in settled} == {settled[0]["threads"]}
    assert len({m["staging"] for m in during}) == 1
    figure(f"saves of one process, without growth ({how})", saves)
