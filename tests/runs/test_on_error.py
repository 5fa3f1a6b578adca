"""A save that fails, where the training is to go on: told in the log and the handle."""

import logging
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import holdtrue
from holdtrue.errors import SaveError


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB in memory."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(place)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if done.returncode:
        pytest.skip(f"mount is refused here: {done.stderr.strip()[:100]}")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("wait", [True, False])
def test_warned_it_goes_on(
    wait: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = holdtrue.Run(tmp_path / "run", on_error="warn", model=nn.Linear(2, 2))
    first = run.save(1, wait=wait)
    run.flush()
    assert first.error is None
    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR, "holdtrue"):
        refuse(patch)
        failed = run.save(2, wait=wait)
        run.flush()
    assert isinstance(failed.error, SaveError)
    assert failed.done
    assert "step 2 was not saved" in caplog.text
    assert "write-failed" in caplog.text
    with pytest.raises(SaveError):  # who asks is told
        failed.wait()
    assert run.save(2, wait=wait).wait() is not None
    run.close()
    assert run.steps() == [1, 2]
    assert all(holdtrue.verify(run.path / f"step-{n:09d}").ok for n in (1, 2))


def test_what_waiting_does_not_mend_is_raised_until_a_save_has_succeeded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    state: dict[str, Any] = {"note": iter(())}
    run = holdtrue.Run(tmp_path / "run", state=state)
    with pytest.raises(SaveError, match="note"):
        run.save(1)
    state["note"] = 1
    with monkeypatch.context() as patch:  # the disk may be well again in a minute
        refuse(patch)
        assert isinstance(run.save(1, wait=True).error, SaveError)
    assert run.save(1, wait=True).error is None
    state["note"] = iter(())
    assert isinstance(run.save(2).error, SaveError)
    assert "step 2 was not saved" in caplog.text
    run.close()
    assert run.steps() == [1]


def test_a_directory_that_cannot_be_looked_into_for_a_moment_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    holdtrue.Run(tmp_path / "run", value=1).save(1, wait=True)
    (tmp_path / "run" / ".staging").mkdir()

    def listdir(path: object) -> list[str]:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", listdir)
        with pytest.raises(holdtrue.OpenError):
            holdtrue.Run(tmp_path / "run", on_error="raise", value=1)
        run = holdtrue.Run(tmp_path / "run", value=1)
    assert "not cleared away" in caplog.text
    assert run.save(2, wait=True).error is None


def test_raised_where_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = holdtrue.Run(tmp_path / "run", on_error="raise", model=nn.Linear(2, 2))
    refuse(monkeypatch)
    with pytest.raises(SaveError, match="write-failed"):
        run.save(1, wait=True)
    behind = holdtrue.Run(tmp_path / "run", on_error="raise", model=nn.Linear(2, 2))
    with pytest.raises(SaveError, match="write-failed"):
        behind.save(1)
        behind.close()


def test_what_is_wrong_with_the_code_raises(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="on_error"):
        holdtrue.Run(tmp_path, on_error="ignore", model=nn.Linear(2, 2))  # type: ignore[arg-type]
    run = holdtrue.Run(tmp_path / "run", on_error="warn", model=nn.Linear(2, 2))
    with pytest.raises(SaveError, match="step-invalid"):
        run.save("last")  # type: ignore[arg-type]
    kept = run.save(1, wait=True)
    again = run.save(1)
    assert kept.error is None
    assert isinstance(again.error, SaveError)  # there is one already: no reason to end a training
    run.close()


def test_a_full_disk_costs_the_saves_of_that_time(
    small_disk: Path, caplog: pytest.LogCaptureFixture, figure: Any
) -> None:
    model = nn.Linear(200, 300)  # 0.24 MB
    run = holdtrue.Run(small_disk / "run", on_error="warn", keep=holdtrue.Keep(last=2), model=model)
    ballast = small_disk / "ballast"
    kept: list[int] = []
    with caplog.at_level(logging.ERROR, "holdtrue"):
        for step in range(1, 31):
            with torch.no_grad():
                model.weight.fill_(step)
            if step % 10 == 5:
                with pytest.raises(OSError, match="No space left"):  # noqa: SIM117 - closed before
                    with ballast.open("wb", buffering=0) as file:
                        while True:
                            file.write(bytes(4096))
            if step % 10 == 9:
                ballast.unlink()
            saving = run.save(step)
            run.flush()
            if saving.error is None:
                kept.append(step)
            else:
                assert isinstance(saving.error, SaveError)
                (finding,) = saving.error.report.errors
                assert finding.code == "disk-full"
                assert finding.where
                assert finding.why
                assert finding.fix
            assert run.steps() == kept[-2:]
            assert all(holdtrue.verify(p).ok for p in (small_disk / "run").glob("step-*"))
    run.close()
    assert 10 <= len(kept) < 30
    assert "Traceback" not in caplog.text
    figure("saves on a disk that was full", 30 - len(kept))


def test_stopped_without_a_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = nn.Linear(2, 2)
    run = holdtrue.Run(tmp_path / "run", on_error="warn", preemption=True, model=model)
    run.save(1, wait=True)
    refuse(monkeypatch)
    os.kill(os.getpid(), signal.SIGTERM)
    with caplog.at_level(logging.WARNING, "holdtrue"), pytest.raises(SystemExit) as ended:
        run.stop_if_asked(2)
    assert ended.value.code == 143
    assert "step 2 is not saved" in caplog.text
