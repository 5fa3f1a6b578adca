"""How far a save or a restore is: told in full to whoever asks, shown on a terminal only."""

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import holdtrue
from holdtrue.limits import override


class Heard:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, int]] = []
        self.closed = 0

    def __call__(self, done: int, total: int) -> None:
        self.told.append((done, total))

    def close(self) -> None:
        self.closed += 1

    def check(self, least: int) -> None:
        """Ever more, and in the end all, of one total."""
        assert self.told == sorted(self.told)
        assert len({total for _, total in self.told}) == 1
        assert self.told[-1][0] == self.told[-1][1] >= least
        assert len(self.told) > 5
        assert self.closed == 1


@pytest.mark.parametrize("threads", [1, 3])
def test_save_and_restore_tell_how_far_they_are(threads: int, tmp_path: Path) -> None:
    model, twin = (nn.Sequential(*(nn.Linear(70, 70) for _ in range(6))) for _ in range(2))
    saving, restoring = Heard(), Heard()
    with override(chunk_bytes=4096, threads=threads):
        holdtrue.save(tmp_path / "c", progress=saving, model=model)
        saving.check(119_280)
        holdtrue.open(tmp_path / "c").restore(progress=restoring, model=twin)
    restoring.check(2 * 119_280)  # it reads twice: once to verify, once to fill
    assert all(map(torch.equal, twin.parameters(), model.parameters()))


def test_a_run_tells_of_saves_behind_and_of_resumes(tmp_path: Path) -> None:
    values = [torch.rand(5000) for _ in range(6)]
    heard = Heard()
    with override(chunk_bytes=4096):
        run = holdtrue.Run(tmp_path / "run", progress=heard, values=values)
        run.save(1)
        run.flush()
        heard.check(120_000)
        heard.told.clear()
        values[0] += 1
        run.save(2, wait=True)
        assert heard.told[-1][0] == heard.told[-1][1]
        heard.told.clear()
        assert run.resume() == 2
    assert heard.told[-1][0] == heard.told[-1][1]
    assert heard.closed == 3


def test_a_bar_that_breaks_costs_no_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> None:
        raise BrokenPipeError("the terminal is gone")

    with caplog.at_level(logging.WARNING, "holdtrue"):
        holdtrue.save(tmp_path / "c", progress=broken, values=torch.rand(5000))
    assert holdtrue.verify(tmp_path / "c").findings == ()
    assert caplog.text.count("the terminal is gone") == 1


def test_it_is_closed_where_the_save_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    heard = Heard()
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(holdtrue.SaveError):
        holdtrue.save(tmp_path / "c", progress=heard, values=torch.rand(5000))
    assert heard.closed == 1


PROGRAM = """
import sys, torch, holdtrue
from holdtrue.limits import override
at_once, late = holdtrue.ProgressBar("keeping", after=0), holdtrue.ProgressBar("long", after=999)
with override(chunk_bytes=4096):
    holdtrue.save(sys.argv[1], progress=at_once, t=torch.rand(90000))
    holdtrue.save(sys.argv[1] + "2", progress=late, t=1)
"""


def test_nothing_is_shown_where_stderr_is_no_terminal(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "c")], capture_output=True, check=True
    )
    assert (done.stdout, done.stderr) == (b"", b"")


@pytest.mark.skipif(os.name == "nt", reason="a pseudo-terminal")
def test_a_bar_is_shown_on_a_terminal(tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "c")],
        stderr=theirs, stdout=subprocess.PIPE, env=environment,
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    while True:
        try:
            data = os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
        if not data:
            break
        shown += data
    os.close(ours)
    stdout, _ = process.communicate()
    assert process.returncode == 0, shown
    assert stdout == b""  # that is for data
    assert b"keeping" in shown
    assert b"KiB" in shown
    assert b"long" not in shown


@pytest.mark.parametrize("kind", ["own", "zip"])
def test_verify_tells_how_far_it_is(kind: str, tmp_path: Path) -> None:
    model, heard = nn.Sequential(*(nn.Linear(70, 70) for _ in range(6))), Heard()
    if kind == "own":
        holdtrue.save(tmp_path / "c", model=model)
    else:
        torch.save(model.state_dict(), tmp_path / "c")
    with override(chunk_bytes=4096):
        assert holdtrue.verify(tmp_path / "c", progress=heard).ok
    heard.check(119_280)
