"""A save, a restore or a verification that is ended by its progress callback or by Ctrl-C."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import holdtrue
from holdtrue.engine.threads import in_threads
from holdtrue.limits import override

LAYERS = 12


class Ending:
    """Ends what it is told of at the given call, from whatever thread that is."""

    def __init__(self, at: int, error: type[BaseException]) -> None:
        self.calls, self.at, self.error, self.closed = 0, at, error, 0

    def __call__(self, done: int, total: int) -> None:
        self.calls += 1
        if self.calls == self.at:
            raise self.error

    def close(self) -> None:
        self.closed += 1


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(*(nn.Linear(70, 70) for _ in range(LAYERS)))


@pytest.fixture(autouse=True)
def nobody_left_behind() -> Any:
    before = set(threading.enumerate())
    with override(chunk_bytes=4096, threads=3):
        yield
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("there", [False, True])
def test_a_save_that_is_ended_leaves_nothing(
    there: bool, error: type[BaseException], tmp_path: Path
) -> None:
    """At each call in turn, until it has got to its end."""
    target = tmp_path / "c"
    if there:
        holdtrue.save(target, model=network(0))
    ended, at = 0, 1
    while True:
        ending = Ending(at, error)
        try:
            holdtrue.save(target, overwrite=there, progress=ending, model=network(at))
        except error:
            ended += 1
            assert ending.closed == 1
            kept = at if holds(target, at) else 0  # the last call comes when it is published
            assert sorted(p.name for p in tmp_path.iterdir()) == (["c"] if there or kept else [])
            assert not target.exists() or holds(target, kept)
            if kept:
                break
        else:
            break
        at += 1
    assert ended > 20


def holds(path: Path, seed: int) -> bool:
    if not path.exists():
        return False
    assert holdtrue.verify(path).ok
    twin = network(99)
    holdtrue.open(path).restore(model=twin)
    return all(map(torch.equal, twin.parameters(), network(seed).parameters()))


@pytest.mark.parametrize("verify", ["first", "while"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_restore_that_is_ended_leaves_the_target_whole(
    error: type[BaseException], verify: Any, tmp_path: Path
) -> None:
    """As it was, or as it was saved."""
    holdtrue.save(tmp_path / "c", model=network(0))
    target, before, saved = network(1), network(1), network(0)
    seen, at = [], 1
    while True:
        ending = Ending(at, error)
        try:
            holdtrue.open(tmp_path / "c").restore(model=target, progress=ending, verify=verify)
            break
        except error:
            assert ending.closed == 1
        untouched = all(map(torch.equal, target.parameters(), before.parameters()))
        restored = all(map(torch.equal, target.parameters(), saved.parameters()))
        assert untouched or restored
        seen.append(restored)
        target.load_state_dict(before.state_dict())
        at += 1
    assert len(seen) > 20
    assert seen == sorted(seen)
    assert seen[-1]
    assert seen[0] is (verify == "while")


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_damage_is_said_where_a_restore_is_ended(
    error: type[BaseException], tmp_path: Path
) -> None:
    """The target is no longer what it was, and that comes before what ended it."""
    holdtrue.save(tmp_path / "c", model=network(0))
    file = tmp_path / "c" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    with pytest.raises(holdtrue.DamageError) as caught:
        holdtrue.open(tmp_path / "c").restore(
            model=network(1), progress=Ending(2, error), verify="while"
        )
    assert [f.code for f in caught.value.report.findings] == ["target-unusable"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_verification_and_a_save_behind_end_too(
    error: type[BaseException], tmp_path: Path
) -> None:
    holdtrue.save(tmp_path / "c", model=network(0))
    with pytest.raises(error):
        holdtrue.verify(tmp_path / "c", progress=Ending(3, error))
    run = holdtrue.Run(tmp_path / "run", progress=Ending(3, error), model=network(0))
    saving = run.save(1)
    with pytest.raises(error):
        saving.wait()
    with pytest.raises(error):
        run.flush()
    assert run.steps() == []
    run.save(2)
    run.close()
    assert run.steps() == [2]
    assert [p.name for p in (tmp_path / "run").iterdir() if p.is_dir()] == ["step-000000002"]


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("presses", [1, 3])
def test_ctrl_c_while_others_end_their_jobs_waits_for_them(presses: int) -> None:
    """The caller closes the files next: nobody may go on writing into them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    begun, finished = threading.Event(), []

    def work(job: int) -> None:
        if threading.current_thread() is threading.main_thread():
            assert begun.wait(60)
            return
        begun.set()
        for _ in range(presses):
            time.sleep(0.2)  # the main thread has nothing left to do, and waits
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
        finished.append(job)

    try:
        with pytest.raises(KeyboardInterrupt):
            in_threads(work, range(2), most=2)
    finally:
        signal.signal(signal.SIGINT, before)
    assert finished


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_ctrl_c_while_a_run_waits_does_not_end_the_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next save waits for it still: its memory is in use."""
    gate, real = threading.Event(), os.pwrite

    def pwrite(*given: Any) -> int:
        assert gate.wait(60)
        return real(*given)

    monkeypatch.setattr(os, "pwrite", pwrite)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    model = network(0)
    run = holdtrue.Run(tmp_path / "run", busy="skip", model=model)
    saving = run.save(1)
    press = threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT))
    press.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            run.flush()
    finally:
        signal.signal(signal.SIGINT, before)
    press.join()
    assert not saving.done
    assert run.save(2).skipped
    gate.set()
    run.close()
    assert run.steps() == [1]
    assert holds(tmp_path / "run", 0)
