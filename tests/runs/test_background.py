"""Saving behind the training: what `save` returned for is what is on disk, whatever comes after."""

import logging
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from torch import nn

import holdtrue
from holdtrue.formats.checkpoint_directory import read_manifest
from holdtrue.formats.step_names import step_name
from holdtrue.limits import override
from holdtrue.records.manifest import NAME, encode_manifest


def training(**settings: Any) -> dict[str, Any]:
    model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Linear(64, 4))
    return {"model": model, "optimizer": torch.optim.AdamW(model.parameters(), **settings)}


def advance(parts: dict[str, Any]) -> None:
    parts["optimizer"].zero_grad()
    parts["model"](torch.randn(16, 64)).square().mean().backward()
    parts["optimizer"].step()


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Nothing is written before this is set: what happens meanwhile happens during the save."""
    gate, real = threading.Event(), os.pwrite

    def pwrite(*given: Any) -> int:
        assert gate.wait(60)
        return real(*given)

    monkeypatch.setattr(os, "pwrite", pwrite)
    return gate


def by_data(parts: dict[str, Any]) -> None:
    for parameter in parts["model"].parameters():
        parameter.data.fill_(float("nan"))


def by_storage(parts: dict[str, Any]) -> None:
    for parameter in parts["model"].parameters():
        parameter.untyped_storage().fill_(0x55)


def by_steps(parts: dict[str, Any]) -> None:
    for _ in range(3):
        advance(parts)


@pytest.mark.parametrize("change", [by_data, by_storage, by_steps])
@pytest.mark.parametrize("settings", [{}, {"fused": True}, {"foreach": True}], ids=str)
def test_what_is_changed_after_save_returned_is_not_kept(
    change: Any, settings: dict[str, Any], tmp_path: Path, held: threading.Event
) -> None:
    parts = training(**settings)
    advance(parts)
    expected = {k: v.clone() for k, v in parts["model"].state_dict().items()}
    moments = [s["exp_avg"].clone() for s in parts["optimizer"].state.values()]
    run = holdtrue.Run(tmp_path / "run", **parts)
    saving = run.save(1)
    assert not saving.done
    change(parts)
    held.set()
    saving.wait()
    twin = training(**settings)
    holdtrue.open(tmp_path / "run").restore(**twin)
    for name, value in twin["model"].state_dict().items():
        assert torch.equal(value, expected[name]), name
    for state, moment in zip(twin["optimizer"].state.values(), moments, strict=True):
        assert torch.equal(state["exp_avg"], moment)


def test_the_next_save_waits_or_is_skipped(
    tmp_path: Path, held: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    parts = training()
    run = holdtrue.Run(tmp_path / "run", busy="skip", **parts)
    first = run.save(1)
    with caplog.at_level(logging.WARNING, "holdtrue"):
        second = run.save(2)
    assert second.skipped
    assert second.wait() is None
    assert "step 2 is not saved" in caplog.text
    threading.Timer(0.2, held.set).start()
    run.busy = "wait"
    run.save(3)
    assert first.done
    run.flush()
    assert run.steps() == [1, 3]


def test_a_save_that_is_waited_for_is_never_skipped(tmp_path: Path, held: threading.Event) -> None:
    run = holdtrue.Run(tmp_path / "run", busy="skip", **training())
    first = run.save(1)
    assert run.save(2).skipped
    threading.Timer(0.2, held.set).start()
    last = run.save(3, wait=True)
    assert first.done
    assert not last.skipped
    assert run.steps() == [1, 3]


def test_an_error_behind_is_logged_at_once_and_raised_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    parts = training()
    run = holdtrue.Run(tmp_path / "run", on_error="raise", **parts)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        saving = run.save(1)
        with pytest.raises(holdtrue.SaveError):
            saving.wait()
    assert "step 1 was not saved" in caplog.text
    with pytest.raises(holdtrue.SaveError) as caught:
        run.save(2)
    assert caught.value.report.errors[0].code == "disk-full"
    run.save(2)
    run.close()
    assert run.steps() == [2]


def test_close_raises_what_failed_and_leaving_by_an_exception_does_not_hide_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pwrite", broken)
    with (
        pytest.raises(holdtrue.SaveError),
        holdtrue.Run(tmp_path / "a", on_error="raise", **training()) as run,
    ):
        run.save(1)
    with (
        pytest.raises(ZeroDivisionError),
        holdtrue.Run(tmp_path / "b", on_error="raise", **training()) as run,
    ):
        run.save(1)
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("ending", "verify"),
    [
        ("", None),
        ("raise SystemExit(3)", None),
        ("raise RuntimeError('training broke')", None),
        ("", "after"),
    ],
)
def test_the_process_exit_waits(ending: str, verify: str | None, tmp_path: Path) -> None:
    program = f"""
        import torch, holdtrue
        from holdtrue.limits import override
        model = torch.nn.Linear(2000, 2000)
        run = holdtrue.Run({str(tmp_path / "run")!r}, verify={verify!r}, model=model)
        with override(chunk_bytes=4096, threads=3):
            run.save(7)
        {ending}
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "not saved" not in done.stderr
    assert holdtrue.verify(tmp_path / "run@7").findings == ()


def test_the_handle_says_what_it_cost(tmp_path: Path) -> None:
    parts = training()
    run = holdtrue.Run(tmp_path / "run", **parts)
    saving = run.save(1)
    saved = saving.wait()
    assert saved is not None
    assert 0 < saving.stall <= saved.seconds
    assert saving.staging >= saving.nbytes > 64 * 64 * 4
    assert saving.linked == ()
    cost = holdtrue.open(tmp_path / "run").manifest.cost
    assert cost.stall == pytest.approx(saving.stall, abs=1e-4)
    assert cost.staging == saving.staging
    assert run.save(2, wait=True).staging == 0


@pytest.mark.parametrize("verify", ["after", None])
def test_the_stall_of_a_save_that_is_waited_for_is_all_of_it(verify: Any, tmp_path: Path) -> None:
    run = holdtrue.Run(tmp_path / "run", verify=verify, **training())
    before = time.perf_counter()
    saving = run.save(1, wait=True)
    whole = time.perf_counter() - before
    saved = saving.wait()
    assert saved is not None
    assert 0 < saved.seconds <= saved.stall == saving.stall <= whole
    manifest = holdtrue.open(tmp_path / "run").manifest
    assert manifest is not None
    assert manifest.cost.stall == manifest.cost.seconds > 0
    assert holdtrue.save(tmp_path / "alone", x=1).stall > 0


def test_staging_memory_is_used_again(tmp_path: Path) -> None:
    parts = training()
    run = holdtrue.Run(tmp_path / "run", **parts)
    sizes = {run.save(step).staging for step in range(1, 5)}
    run.close()
    assert len(sizes) == 1


@pytest.mark.parametrize("chunk", [1, 100, 4096, 1 << 20])
@pytest.mark.parametrize("threads", [1, 2, 7])
def test_copies_are_the_same_whatever_the_chunks_and_threads(
    chunk: int, threads: int, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    parts = {"model": nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 30)).half(), "x": torch.arange(9)}
    with override(chunk_bytes=chunk, threads=threads):
        run = holdtrue.Run(tmp_path / "run", **parts)
        run.save(1)
        run.close()
    assert holdtrue.verify(tmp_path / "run").findings == ()
    names = parts["model"].state_dict()
    for name, value in holdtrue.open(tmp_path / "run")["model"].items():
        assert torch.equal(value, names[name])


def test_several_threads_save_into_one_run(tmp_path: Path) -> None:
    run = holdtrue.Run(tmp_path / "run", **training())
    failed: list[BaseException] = []

    def save(steps: range) -> None:
        try:
            for step in steps:
                run.save(step, wait=step % 3 == 0)
                run.flush()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=save, args=(range(n, 24, 4),)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    run.close()
    assert failed == []
    assert run.steps() == list(range(24))
    assert all(holdtrue.verify(f"{run.path}@{step}").findings == () for step in run.steps())


def test_a_run_that_is_dropped_ends_its_save_and_frees_the_lock(
    tmp_path: Path, held: threading.Event
) -> None:
    run = holdtrue.Run(tmp_path / "run", **training())
    saving = run.save(1)
    del run
    held.set()
    assert saving.wait() is not None
    deadline = time.monotonic() + 30
    while (tmp_path / "run" / ".lock").exists() and time.monotonic() < deadline:
        time.sleep(0.01)  # the thread lets go of the run just after the save has ended
    assert not (tmp_path / "run" / ".lock").exists()
    assert holdtrue.verify(tmp_path / "run@1").findings == ()


def test_a_save_in_an_exit_handler_is_kept(tmp_path: Path) -> None:
    program = f"""
        import atexit, holdtrue
        run = holdtrue.Run({str(tmp_path / "run")!r}, value=[1, 2])
        atexit.register(lambda: run.save(2))
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True)
    assert holdtrue.verify(tmp_path / "run@2").findings == ()


@pytest.mark.parametrize("overlap", [False, True])
def test_where_no_thread_can_be_had_the_save_is_done_at_once(
    overlap: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    parts = training()
    advance(parts)
    run = holdtrue.Run(tmp_path / "run", on_error="raise", overlap=overlap, **parts)
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "holdtrue"):
        patch.setattr(threading.Thread, "start", start)
        saving = run.save(1)
        assert saving.done
    assert saving.error is None
    assert "holdtrue-save-1 goes on in the foreground: can't start new thread" in caplog.text
    expected = {k: v.clone() for k, v in parts["model"].state_dict().items()}
    advance(parts)  # no step waits for a save that is not going on
    twin = training()
    holdtrue.open(tmp_path / "run").restore(**twin)
    for name, value in twin["model"].state_dict().items():
        assert torch.equal(value, expected[name]), name
    with monkeypatch.context() as patch:  # what it fails with is told as of any save
        patch.setattr(threading.Thread, "start", start)
        patch.setattr(os, "pwrite", full)
        saving = run.save(2)
        assert saving.error is not None
    advance(parts)
    with pytest.raises(holdtrue.SaveError):
        run.close()
    assert run.steps() == [1]


def full(*_: Any) -> int:
    raise OSError(28, "No space left on device")


def test_a_resume_expects_the_memory_that_the_save_before_took(tmp_path: Path) -> None:
    weights = torch.rand(300_000)
    with holdtrue.Run(tmp_path / "run", weights=weights) as run:
        run.resume()
        assert run._staging.nbytes == 0  # nothing is known yet
        took = run.save(1).staging
        run.flush()
        run.save(2, wait=True)
    with holdtrue.Run(tmp_path / "run", weights=weights) as run:
        run.resume(1)
        assert run._staging.nbytes == took > weights.nbytes
        assert run.save(3).staging == took
        run.flush()
    with holdtrue.Run(tmp_path / "run", weights=weights) as run:
        run.save(4, wait=True)
        run.resume()  # that save needed none
        assert run._staging.nbytes == 0


def test_a_resume_expects_no_more_than_lies_on_the_disk(tmp_path: Path) -> None:
    """A manifest may say anything, as long as its own digest fits."""
    weights = torch.rand(300_000)
    with holdtrue.Run(tmp_path / "run", weights=weights) as run:
        took = run.save(1).staging
        run.flush()
    path = tmp_path / "run" / step_name(1)
    manifest = read_manifest(path)
    lying = replace(manifest, cost=replace(manifest.cost, staging=1 << 45))
    (path / NAME).write_bytes(encode_manifest(lying))
    with holdtrue.Run(tmp_path / "run", weights=weights) as run:
        run.resume()
        assert took <= run._staging.nbytes < 2 * took
