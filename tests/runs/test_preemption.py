"""Real processes, real signals: the step ends, the state is saved, the exit code says why."""

import logging
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from preempted_training import train

import holdtrue

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="signals of POSIX")
_FORKED = multiprocessing.get_context("fork")  # a fresh interpreter would import torch for seconds


def start(tmp_path: Path, workers: int = 0, pause: float = 0.15) -> Any:
    given = (str(tmp_path / "run"), str(tmp_path / "run.diary"), workers, pause)
    process = _FORKED.Process(target=train, args=given)
    process.start()
    return process


def finish(tmp_path: Path) -> None:
    process = start(tmp_path, pause=0)
    process.join(60)
    assert process.exitcode == 0


def wait_for_step(process: Any, diary: Path, step: int) -> None:
    while not diary.exists() or len(diary.read_text().splitlines()) <= step:
        assert process.exitcode is None
        time.sleep(0.005)


def ended(process: Any) -> int:
    process.join(60)
    code: int = process.exitcode
    return code


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    finish(folder)
    return folder / "run"


@pytest.mark.parametrize(
    ("number", "code"), [("SIGUSR1", 138), ("SIGTERM", 143)], ids=["SLURM warns", "Kubernetes"]
)
def test_saves_exits_and_resumes_bit_equal(
    number: str, code: int, tmp_path: Path, undisturbed: Path
) -> None:
    process = start(tmp_path)
    wait_for_step(process, tmp_path / "run.diary", 3)
    os.kill(process.pid, getattr(signal, number))
    assert ended(process) == code
    begun = [int(line) for line in (tmp_path / "run.diary").read_text().split()]
    saved = holdtrue.open(tmp_path / "run").step
    assert saved == begun[-1] + 1  # the step in progress was ended, and none begun after it
    finish(tmp_path)
    again = [int(line) for line in (tmp_path / "run.diary").read_text().split()]
    assert again == list(range(12))  # no step twice, none left out
    assert holdtrue.diff(undisturbed, tmp_path / "run").equal


def test_a_second_signal_is_obeyed_at_once(tmp_path: Path) -> None:
    process = start(tmp_path)
    wait_for_step(process, tmp_path / "run.diary", 2)
    os.kill(process.pid, signal.SIGUSR1)
    os.kill(process.pid, signal.SIGTERM)
    # Either order of delivery: the later one acted as it would have without a Run.
    assert ended(process) in (-signal.SIGTERM, -signal.SIGUSR1)
    if (tmp_path / "run").exists():
        assert holdtrue.Run(tmp_path / "run").steps() == []


def test_the_end_of_the_grace_period_leaves_a_whole_run(tmp_path: Path, undisturbed: Path) -> None:
    process = start(tmp_path)
    wait_for_step(process, tmp_path / "run.diary", 2)
    os.kill(process.pid, signal.SIGTERM)
    process.kill()  # no grace at all
    ended(process)
    finish(tmp_path)
    assert holdtrue.diff(undisturbed, tmp_path / "run").equal


def test_workers_of_a_loader_do_not_mind_the_warning(tmp_path: Path) -> None:
    process = start(tmp_path, workers=1)
    wait_for_step(process, tmp_path / "run.diary", 2)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    pids = [int(pid) for pid in children.read_text().split()] if children.exists() else []
    for pid in pids:
        os.kill(pid, signal.SIGUSR1)
    time.sleep(0.05)
    os.kill(process.pid, signal.SIGUSR1)
    assert ended(process) == 138
    assert holdtrue.verify(tmp_path / "run").ok


def in_process(tmp_path: Path) -> holdtrue.Run:
    return holdtrue.Run(tmp_path / "run", preemption=True, model=torch.nn.Linear(1, 1))


def test_save_obeys_too_and_handlers_are_given_back(tmp_path: Path) -> None:
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGUSR1)]
    with pytest.raises(SystemExit) as caught, in_process(tmp_path) as run:
        assert not run.stop_asked
        signal.raise_signal(signal.SIGUSR1)
        assert run.stop_asked
        run.save(1, metrics={"loss": 1})
    assert caught.value.code == 138
    assert holdtrue.open(tmp_path / "run").metrics == {"loss": 1}
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGUSR1)] == before


def test_a_step_that_is_saved_already_is_not_saved_again(tmp_path: Path) -> None:
    run = in_process(tmp_path)
    run.save(4)
    signal.raise_signal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        run.stop_if_asked(4)
    assert caught.value.code == 143
    assert run.steps() == [4]


def test_a_handler_of_the_caller_gets_the_second_signal(tmp_path: Path) -> None:
    got: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: got.append(number))
    try:
        with in_process(tmp_path):
            signal.raise_signal(signal.SIGUSR1)
            assert got == []
            signal.raise_signal(signal.SIGUSR1)
            assert got == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_off_the_main_thread_it_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def make() -> None:
        in_process(tmp_path).close()

    with caplog.at_level(logging.WARNING, "holdtrue"):
        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
    assert "only the main thread" in caplog.text
    assert signal.getsignal(signal.SIGTERM) == before
