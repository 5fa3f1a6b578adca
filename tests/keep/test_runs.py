"""Runs: resuming, choosing, retention, and what is left when a save is killed or fails."""

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xxhash
from msgspec.structs import replace
from torch import nn

import holdtrue
from holdtrue import Keep, Run
from holdtrue.storage import commit, staging_area

ROOT = Path(__file__).resolve().parents[2]


def training(seed: int = 0) -> dict[str, Any]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50)
    return {"model": model, "optimizer": optimizer, "scheduler": scheduler}


def advance(parts: dict[str, Any]) -> float:
    parts["optimizer"].zero_grad()
    loss = parts["model"](torch.randn(8, 4)).square().mean()
    loss.backward()
    parts["optimizer"].step()
    parts["scheduler"].step()
    return float(loss.detach())


def small(path: Path, keep: Keep | None = None) -> Run:
    return Run(path, on_error="raise", keep=keep, value=[1])


def listed(path: Path) -> list[str]:
    """What is in a directory, but for the lock of its writer."""
    return sorted(set(os.listdir(path)) - {".lock"})


def save_all(run: Run, metrics: dict[int, Any]) -> list[int]:
    for step, metric in metrics.items():
        if isinstance(run.parts.get("model"), nn.Module):  # else its files would be linked
            nn.init.constant_(next(run.parts["model"].parameters()), float(step))
        run.save(step, {} if metric is None else {"loss": metric}, wait=True)
    return run.steps()


# -- save, resume, latest, best -------------------------------------------------------------------


def test_a_fresh_run_starts_at_zero_and_writes_nothing(tmp_path: Path) -> None:
    with Run(tmp_path / "run", on_error="raise", **training()) as run:
        assert run.resume() == 0
        assert run.latest() is None
        assert run.steps() == []
        assert run.best("loss") is None
    assert not (tmp_path / "run").exists()


def test_resuming_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole = training()
    losses = [advance(whole) for _ in range(12)]

    first = training()
    run = Run(tmp_path / "run", on_error="raise", **first)
    assert run.resume() == 0
    before = [advance(first) for _ in range(5)]
    run.save(5, wait=True)

    second = training(seed=99)
    run = Run(tmp_path / "run", on_error="raise", **second)
    assert run.resume() == 5
    after = [advance(second) for _ in range(7)]
    assert before + after == losses
    for p, q in zip(whole["model"].parameters(), second["model"].parameters(), strict=True):
        assert torch.equal(p, q)


def test_places_in_a_run(tmp_path: Path) -> None:
    run = small(tmp_path / "run", Keep(by="loss"))
    save_all(run, {100: 0.3, 400: 0.1, 500: 0.2})
    at = str(tmp_path / "run")
    assert holdtrue.open(at).step == 500
    assert holdtrue.open(at + "@latest").step == 500
    assert holdtrue.open(at + "@best").step == 400
    assert holdtrue.open(at + "@400").step == 400
    assert holdtrue.open(at + "/step-000000100").step == 100
    latest, best = run.latest(), run.best()
    assert latest is not None
    assert latest.step == 500
    assert best is not None
    assert (best.step, best.metrics) == (400, {"loss": 0.1})
    highest = run.best("loss", "max")
    assert highest is not None
    assert highest.step == 100
    with pytest.raises(holdtrue.OpenError) as caught:
        holdtrue.open(at + "@300")
    assert "100, 400, 500" in str(caught.value)


def test_best_needs_a_metric(tmp_path: Path) -> None:
    run = small(tmp_path / "run")
    save_all(run, {1: None})
    with pytest.raises(holdtrue.OpenError) as caught:
        holdtrue.open(f"{tmp_path}/run@best")
    assert caught.value.report.errors[0].code == "best-unknown"
    with pytest.raises(ValueError, match="which metric"):
        run.best()
    assert run.best("loss") is None
    with pytest.raises(ValueError, match="mode"):
        run.best("loss", "lowest")


@pytest.mark.parametrize("step", [-1, 1.0, "1", True, None, np.int64(-3), np.float32(1), [1]])
def test_a_step_is_a_whole_number(step: Any, tmp_path: Path) -> None:
    with pytest.raises(holdtrue.SaveError) as caught:
        small(tmp_path / "run").save(step, wait=True)
    assert caught.value.report.errors[0].code == "step-invalid"
    assert not (tmp_path / "run").exists()
    if step is not None:
        with pytest.raises(holdtrue.SaveError) as caught:
            holdtrue.save(tmp_path / "kept", step=step, value=1)
        assert caught.value.report.errors[0].code == "step-invalid"
        assert not (tmp_path / "kept").exists()


def test_whole_numbers_of_other_libraries_are_steps(tmp_path: Path) -> None:
    run = small(tmp_path / "run")
    run.save(np.int64(3), wait=True)  # type: ignore[arg-type]
    assert run.steps() == [3]
    holdtrue.save(tmp_path / "kept", step=np.int64(4), value=1)  # type: ignore[arg-type]
    assert holdtrue.open(tmp_path / "kept").step == 4


def test_arguments_of_the_wrong_kind_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(holdtrue.SaveError) as caught:
        holdtrue.save(tmp_path / "kept", metrics=[1], value=1)  # type: ignore[arg-type]
    assert caught.value.report.errors[0].code == "metric-not-a-number"
    for overwrite in (False, True):
        with pytest.raises(holdtrue.SaveError) as caught:
            holdtrue.save(f"{tmp_path}/a\0b", value=1, overwrite=overwrite)
        assert caught.value.report.errors[0].code == "path-invalid"
    with pytest.raises(holdtrue.HoldtrueError) as refused:
        Run(tmp_path / "run", on_error="raise", keep=3, value=1)  # type: ignore[arg-type]
    assert refused.value.report.errors[0].code == "keep-invalid"
    assert os.listdir(tmp_path) == []


def test_a_step_is_saved_once(tmp_path: Path) -> None:
    run = small(tmp_path / "run")
    run.save(1, wait=True)
    with pytest.raises(holdtrue.SaveError) as caught:
        run.save(1, wait=True)
    assert caught.value.report.errors[0].code == "already-exists"
    assert "overwrite" not in str(caught.value)


def test_a_run_stays_where_it_is_when_the_process_goes_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = small(Path("run"))
    run.save(1, wait=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run.save(2, wait=True)
    assert run.steps() == [1, 2]
    assert os.listdir() == []


ODD_METRICS = [torch.ones(1), torch.ones(2, 2), np.ones(1), [1], "low", {"a": 1}, 10**400, None]
ODD_METRICS += [
    torch.tensor(1j),
    torch.empty((), device="meta"),
    Fraction(10**400),
    Decimal("sNaN"),
]


@pytest.mark.parametrize("metric", ODD_METRICS, ids=lambda m: repr(m)[:20])
def test_a_metric_is_a_number(metric: Any, tmp_path: Path) -> None:
    with pytest.raises(holdtrue.SaveError) as caught:
        small(tmp_path / "run").save(1, {"loss": metric}, wait=True)
    assert caught.value.report.errors[0].code in ("metric-not-a-number", "value-unsupported")
    assert holdtrue.Run(tmp_path / "run").steps() == []


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (torch.tensor(3.0), 3.0),
        (torch.tensor(2), 2),
        (torch.tensor(0.5, requires_grad=True), 0.5),
        (torch.tensor(0.1, dtype=torch.bfloat16), torch.tensor(0.1, dtype=torch.bfloat16).item()),
        (np.array(1.5), 1.5),
    ],
    ids=repr,
)
def test_a_tensor_without_dimensions_is_its_number(given: Any, kept: Any, tmp_path: Path) -> None:
    run = small(tmp_path / "run", Keep(best=1, by="loss"))
    run.save(1, {"loss": given}, wait=True)
    found = run.best()
    assert found is not None
    assert found.metrics == {"loss": kept}
    assert type(found.metrics["loss"]) is type(kept)


# -- retention ------------------------------------------------------------------------------------

LOSSES = {1: 0.5, 2: 0.1, 3: 0.4, 4: 0.1, 5: 0.9, 6: 0.8, 7: 0.7}


@pytest.mark.parametrize(
    ("keep", "metrics", "left"),
    [
        (Keep(), LOSSES, [1, 2, 3, 4, 5, 6, 7]),
        (Keep(last=2), LOSSES, [6, 7]),
        (Keep(last=99), LOSSES, [1, 2, 3, 4, 5, 6, 7]),
        (Keep(best=1, by="loss"), LOSSES, [4, 7]),
        (Keep(best=2, by="loss"), LOSSES, [2, 4, 7]),
        (Keep(best=1, by="loss", mode="max"), LOSSES, [5, 7]),
        (Keep(every=3), LOSSES, [3, 6, 7]),
        (Keep(last=2, best=1, by="loss", every=5), LOSSES, [4, 5, 6, 7]),
        (Keep(best=1, by="loss"), {1: 0.1, 2: math.nan, 3: math.nan}, [1, 3]),
        (Keep(best=1, by="loss"), {1: 0.1, 2: None, 3: 0.2}, [1, 3]),
        (Keep(best=2, by="loss"), {1: None, 2: None, 3: None}, [3]),
        (Keep(best=1, by="loss"), {1: math.inf, 2: -math.inf, 3: 0}, [2, 3]),
        (Keep(best=1, by="other"), LOSSES, [7]),
        (Keep(last=1), {9: 1, 5: 1}, [9]),
    ],
    ids=repr,
)
def test_what_is_kept(keep: Keep, metrics: Any, left: list[int], tmp_path: Path) -> None:
    run = small(tmp_path / "run", keep)
    assert save_all(run, metrics) == left
    assert listed(tmp_path / "run") == [f"step-{s:09d}" for s in left]
    for step in left:
        assert holdtrue.verify(f"{tmp_path}/run@{step}").findings == ()


@pytest.mark.parametrize(
    "wrong",
    [{"last": 0}, {"best": -1, "by": "x"}, {"every": 0}, {"last": True}, {"last": 1.5},
     {"best": 1}, {"mode": "low"}],
    ids=repr,
)  # fmt: skip
def test_rules_that_make_no_sense_are_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="Keep"):
        Keep(**wrong)


def test_a_new_process_prunes_what_an_older_one_saved(tmp_path: Path) -> None:
    save_all(small(tmp_path / "run"), LOSSES)
    run = small(tmp_path / "run", Keep(last=1, best=1, by="loss"))
    run.save(8, {"loss": 0.6}, wait=True)
    assert run.steps() == [4, 8]


def test_what_cannot_be_read_is_never_removed(tmp_path: Path) -> None:
    run = small(tmp_path / "run")
    save_all(run, {1: 0.1, 2: 0.2})
    (tmp_path / "run" / "step-000000001" / "manifest.json").write_bytes(b"{")
    again = small(tmp_path / "run", Keep(last=1))
    again.save(3)
    assert again.steps() == [1, 3]


def test_strangers_in_the_directory_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run" / "tensorboard").mkdir(parents=True)
    (tmp_path / "run" / "step-12").write_text("mine")
    run = small(tmp_path / "run", Keep(last=1))
    save_all(run, LOSSES)
    assert listed(tmp_path / "run") == ["step-000000007", "step-12", "tensorboard"]


def test_removal_never_leaves_half_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small(tmp_path / "run", Keep(last=1))
    run.save(1, wait=True)

    def killed(path: Path, **_: Any) -> None:
        victim = next(p for p in Path(path).iterdir())
        victim.unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        run.save(2, wait=True)
    monkeypatch.undo()
    assert run.steps() == [2]
    assert holdtrue.verify(tmp_path / "run").findings == ()
    assert small(tmp_path / "run").resume() == 2


# -- killed, and failing saves --------------------------------------------------------------------

KILLED = """
    import os, sys, torch, holdtrue
    from torch import nn
    torch.manual_seed(int(sys.argv[2]))
    model = nn.Linear(1000, 1000)
    optimizer = torch.optim.AdamW(model.parameters())
    run = holdtrue.Run(sys.argv[1], on_error="raise", model=model, optimizer=optimizer)
    step = run.resume()
    while True:
        optimizer.zero_grad()
        model(torch.randn(2, 1000)).square().mean().backward()
        optimizer.step()
        step += 1
        digest = float(sum(p.double().sum() for p in model.parameters()))
        print("saving", step, digest.hex(), flush=True)
        run.save(step, wait=True)
        print("saved", step, flush=True)
"""


@pytest.mark.slow
def test_killed_saves_leave_every_finished_checkpoint_whole(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(KILLED))
    place, sums = tmp_path / "run", {}
    interrupted = 0
    chance = random.Random(4)
    for round_ in range(4):
        process = subprocess.Popen(
            [sys.executable, str(script), str(place), str(round_)],
            env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        finished = 0
        for line in process.stdout:
            word, step, *rest = line.split()
            if word == "saving":
                sums[int(step)] = float.fromhex(rest[0])
                if len(sums) % 3 == 0 and int(step) > finished:
                    break
            else:
                finished = int(step)
        # In the middle of a save: as soon as something is being staged, or a little later.
        while not (place / ".staging").exists() and process.poll() is None:
            time.sleep(0.0001)
        time.sleep(chance.random() * 0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        interrupted += (place / ".staging").exists()

        for step in holdtrue.Run(place).steps():
            assert holdtrue.verify(f"{place}@{step}").findings == ()
        assert not (place / ".staging").exists()
        model = nn.Linear(1000, 1000)
        optimizer = torch.optim.AdamW(model.parameters())
        reached = Run(place, model=model, optimizer=optimizer).resume()
        assert float(sum(p.double().sum() for p in model.parameters())) == sums[reached]
        sums = {s: v for s, v in sums.items() if s <= reached}
    print(f"4 processes killed, {interrupted} of them with a save half-way on disk")
    assert interrupted


def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path: Path) -> None:
    parts = training()
    run = Run(tmp_path / "run", on_error="raise", **parts)
    for step in (1, 2):
        advance(parts)
        run.save(step, wait=True)
    with (tmp_path / "run" / "step-000000002" / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    other = training(5)
    run = Run(tmp_path / "run", on_error="raise", **other)
    assert run.resume() == 1
    assert run.report is not None
    assert run.report.findings[0].code == "checkpoint-passed-over"
    assert "step-000000002" in run.report.findings[0].where

    # Training goes on from there. What was damaged is kept, out of the way.
    advance(other)
    run.save(2, wait=True)
    assert holdtrue.verify(tmp_path / "run" / "step-000000002").findings == ()
    assert not holdtrue.verify(tmp_path / "run" / "damaged-step-000000002").ok
    assert Run(tmp_path / "run", **training(6)).resume() == 2


def test_a_damaged_checkpoint_neither_counts_nor_goes(tmp_path: Path) -> None:
    run = Run(
        tmp_path / "run",
        on_error="raise",
        keep=Keep(last=1, best=1, by="loss"),
        model=nn.Linear(2, 2),
    )
    save_all(Run(tmp_path / "run", on_error="raise", model=nn.Linear(2, 2)), {1: 0.5, 5: 0.1})
    (tmp_path / "run" / "damaged-step-000000005").mkdir()
    spoil(tmp_path / "run" / "step-000000005")
    assert run.resume() == 1
    run.save(2, {"loss": 0.4}, wait=True)
    assert run.steps() == [2, 5]
    best = run.best()
    assert best is not None
    assert best.step == 2
    run.save(5, {"loss": 0.3}, wait=True)
    assert listed(tmp_path / "run") == [
        "damaged-step-000000005", "damaged-step-000000005-2", "step-000000005",
    ]  # fmt: skip


def spoil(step: Path) -> None:
    """A file of the checkpoint is cut short; its manifest is whole."""
    file = next(step.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1])


def test_a_failing_save_leaves_the_damaged_one_in_its_place(tmp_path: Path) -> None:
    run = small(tmp_path / "run")
    save_all(run, {1: 0.5, 2: 0.1})
    (tmp_path / "run" / "step-000000002" / "manifest.json").unlink()
    assert run.resume() == 1
    run.parts["value"] = lambda: None
    with pytest.raises(holdtrue.SaveError):
        run.save(2, wait=True)
    assert listed(tmp_path / "run") == ["step-000000001", "step-000000002"]


@pytest.mark.parametrize("left", ["empty", "manifest gone", "staging", "file"])
def test_a_step_that_is_not_there_in_full_is_damage(left: str, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", on_error="raise", model=nn.Linear(2, 2))
    run.save(1, wait=True)
    step = tmp_path / "run" / "step-000000001"
    (step / "manifest.json").unlink()
    if left != "manifest gone":
        for file in step.iterdir():
            file.unlink()
    if left == "staging":
        (step / ".staging").mkdir()
    if left == "file":
        step.rmdir()
        step.write_text("")
    with pytest.raises(holdtrue.DamageError) as caught:
        run.resume()
    assert caught.value.report.errors[0].code == "manifest-missing"
    run.save(1, wait=True)
    assert run.resume() == 1


def refuse_to_open(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The system says no for paths that end in `name`. (chmod does not stop root.)"""
    real = Path.open

    def denied(self: Path, *given: Any, **named: Any) -> Any:
        if str(self).endswith(name):
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, *given, **named)

    monkeypatch.setattr(Path, "open", denied)


@pytest.mark.parametrize("file", ["manifest.json", "model.safetensors"])
def test_what_may_not_be_read_is_not_passed_over(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path / "run", on_error="raise", model=nn.Linear(2, 2))
    save_all(run, {1: None, 2: None})
    refuse_to_open(monkeypatch, f"step-000000002/{file}")
    with pytest.raises(holdtrue.HoldtrueError) as caught:
        run.resume()
    assert caught.value.report.errors[0].code == "permission-denied"


def test_a_checkpoint_of_a_newer_holdtrue_is_not_passed_over(tmp_path: Path) -> None:
    run = small(tmp_path / "run")
    save_all(run, {1: None, 2: None})
    path = tmp_path / "run" / "step-000000002" / "manifest.json"
    body = json.loads(path.read_bytes())
    del body["xxh3_128"]
    raw = json.dumps({**body, "version": 99}, separators=(",", ":")).encode()[:-1]
    path.write_bytes(raw + b',"xxh3_128":"' + xxhash.xxh3_128_hexdigest(raw).encode() + b'"}\n')
    with pytest.raises(holdtrue.OpenError) as caught:
        run.resume()
    assert caught.value.report.errors[0].code == "format-newer"


def test_a_run_that_may_not_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = small(tmp_path / "run", Keep(last=1, by="loss"))
    run.save(1, wait=True)

    def denied(path: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "run" / ".staging").mkdir()
    monkeypatch.setattr(os, "listdir", denied)
    at = str(tmp_path / "run")
    for act in (lambda: small(Path(at)), run.steps, run.latest, run.best, run.resume,
                lambda: holdtrue.open(f"{at}@best"), lambda: holdtrue.open(f"{at}@latest"),
                lambda: holdtrue.verify(f"{at}@1")):  # fmt: skip
        with pytest.raises(holdtrue.OpenError) as caught:
            act()
        assert caught.value.report.errors[0].code == "permission-denied"
    assert run.save(2, wait=True).seconds  # it is durable; only pruning could not be done


def test_a_step_that_cannot_be_removed_is_told_and_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = small(tmp_path / "run", Keep(last=1))
    run.save(1, wait=True)
    real = Path.rename

    def denied(self: Path, target: Any) -> Any:
        if self.name == "step-000000001":
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, target)

    monkeypatch.setattr(Path, "rename", denied)
    run.save(2, wait=True)
    assert run.steps() == [1, 2]
    assert "cannot be removed" in caplog.text
    monkeypatch.undo()
    run.save(3, wait=True)
    assert run.steps() == [3]


def test_threads_may_save_into_one_run(tmp_path: Path) -> None:
    run = small(tmp_path / "run", Keep(last=2))

    def work(number: int) -> None:
        for turn in range(12):
            run.save(turn * 4 + number, wait=True)

    assert together(work, 4) == []
    assert run.steps()[-1] == 47
    for step in run.steps():
        assert holdtrue.verify(f"{run.path}@{step}").findings == ()


def test_when_nothing_is_whole_nothing_is_touched(tmp_path: Path) -> None:
    parts = training()
    run = Run(tmp_path / "run", on_error="raise", **parts)
    run.save(1, wait=True)
    (tmp_path / "run" / "step-000000001" / "model.safetensors").unlink()
    before = {k: v.clone() for k, v in parts["model"].state_dict().items()}
    with pytest.raises(holdtrue.DamageError):
        run.resume()
    assert all(torch.equal(v, before[k]) for k, v in parts["model"].state_dict().items())


def test_parts_that_do_not_fit_stop_a_resume(tmp_path: Path) -> None:
    Run(tmp_path / "run", on_error="raise", model=nn.Linear(2, 2)).save(1, wait=True)
    with pytest.raises(holdtrue.RestoreError):
        Run(tmp_path / "run", model=nn.Linear(3, 2)).resume()


def test_a_value_that_cannot_be_kept_leaves_all_as_it_was(tmp_path: Path) -> None:
    parts = training()
    run = Run(tmp_path / "run", on_error="raise", **parts, keep=Keep(last=1))
    run.save(1, wait=True)
    run.parts["log"] = lambda: None
    with pytest.raises(holdtrue.SaveError) as caught:
        run.save(2, wait=True)
    assert caught.value.report.errors[0].code == "value-unsupported"
    assert "log" in caught.value.report.errors[0].where
    assert listed(tmp_path / "run") == ["step-000000001"]
    assert holdtrue.verify(tmp_path / "run").findings == ()


@pytest.mark.parametrize("at", ["truncate", "pwrite", "fsync", "rename"])
def test_a_system_call_that_fails_leaves_all_as_it_was(
    at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small(tmp_path / "run", Keep(last=1))
    run.parts["model"] = nn.Linear(3, 3)
    run.save(1, wait=True)

    def fails(*_: Any, **__: Any) -> Any:
        raise OSError(5, "Input/output error")

    nn.init.zeros_(run.parts["model"].weight)  # else its file would be linked
    target = Path if at == "rename" else os
    monkeypatch.setattr(target, at, fails)
    with pytest.raises(holdtrue.SaveError) as caught:
        run.save(2, wait=True)
    monkeypatch.undo()
    assert caught.value.report.errors[0].code == "write-failed"
    assert listed(tmp_path / "run") == ["step-000000001"]
    assert holdtrue.verify(tmp_path / "run").findings == ()


# -- overwriting ----------------------------------------------------------------------------------


def test_overwriting_is_asked_for(tmp_path: Path) -> None:
    holdtrue.save(tmp_path / "kept", value=1)
    with pytest.raises(holdtrue.SaveError) as caught:
        holdtrue.save(tmp_path / "kept", value=2)
    assert caught.value.report.errors[0].code == "already-exists"
    holdtrue.save(tmp_path / "kept", value=2, overwrite=True)
    assert holdtrue.open(tmp_path / "kept")["value"] == 2
    assert os.listdir(tmp_path) == ["kept"]


def test_overwriting_spares_what_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("years of work")
    (tmp_path / "notes").write_text("a file")
    for name in ("thesis", "notes"):
        with pytest.raises(holdtrue.SaveError) as caught:
            holdtrue.save(tmp_path / name, value=2, overwrite=True)
        assert caught.value.report.errors[0].code == "not-a-checkpoint"
    assert (tmp_path / "thesis" / "chapter1.txt").read_text() == "years of work"
    assert (tmp_path / "notes").read_text() == "a file"


def test_an_interrupted_overwrite_keeps_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holdtrue.save(tmp_path / "kept", value=1)
    real, calls = Path.rename, []

    def second_fails(self: Path, target: Any) -> Any:
        calls.append(self)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "rename", second_fails)
    with pytest.raises(KeyboardInterrupt):
        holdtrue.save(tmp_path / "kept", value=2, overwrite=True)
    monkeypatch.undo()
    assert holdtrue.open(tmp_path / "kept")["value"] == 1
    assert os.listdir(tmp_path) == ["kept"]


def test_an_overwrite_killed_between_its_renames_can_be_mended(tmp_path: Path) -> None:
    holdtrue.save(tmp_path / "kept", value=1)
    script = textwrap.dedent(f"""
        import os, pathlib, signal, holdtrue
        real = pathlib.Path.rename
        def rename(self, target):
            if ".staging" in str(self) and ".staging" not in str(target):
                os.kill(os.getpid(), signal.SIGKILL)
            return real(self, target)
        pathlib.Path.rename = rename
        holdtrue.save({str(tmp_path / "kept")!r}, value=2, overwrite=True)
    """)
    subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(ROOT / "src")}
    )
    with pytest.raises(holdtrue.OpenError) as caught:
        holdtrue.open(tmp_path / "kept")
    (finding,) = caught.value.report.errors
    assert "interrupted" in finding.why
    assert staging_area.clear_leftovers(tmp_path)
    word, source, target = finding.fix.split()
    assert word == "mv"
    Path(source).rename(target)
    assert holdtrue.open(tmp_path / "kept")["value"] == 1


# -- names and neighbours -------------------------------------------------------------------------


def together(act: Any, count: int = 8) -> list[BaseException]:
    """What is raised where several threads act at once."""
    raised: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            act(number)
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=guarded, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


def test_saves_side_by_side_do_not_pull_the_staging_area_away(tmp_path: Path) -> None:
    def work(number: int) -> None:
        for turn in range(60):
            target = tmp_path / f"{number}-{turn}"
            with commit.publish(target) as staged:
                (staged / "a").write_text("a")
            with commit.publish_file(tmp_path / f"{number}-{turn}.txt") as file:
                file.write_text("a")
            commit.remove(target)

    assert together(work) == []
    assert len(os.listdir(tmp_path)) == 8 * 60


def test_removing_what_another_removed_is_fine(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    assert together(lambda _: commit.remove(tmp_path / "gone")) == []
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", ["file", "dangling"])
def test_a_file_where_a_directory_is_needed(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.write_text("") if kind == "file" else place.symlink_to("nowhere")
    for act in (
        lambda: holdtrue.save(place / "x", value=1),
        lambda: holdtrue.save(place / "x" / "y", value=1),
        lambda: small(place).save(1, wait=True),
    ):
        with pytest.raises(holdtrue.SaveError) as caught:
            act()
        assert [f.code for f in caught.value.report.errors] == ["not-a-directory"]


def test_a_name_as_long_as_the_file_system_takes(tmp_path: Path) -> None:
    for name in ("x" * 255, "x" * 254 + "y", "é" * 127):
        holdtrue.save(tmp_path / name, value=name)
        holdtrue.save(tmp_path / name, value=[name], overwrite=True)
        assert holdtrue.open(tmp_path / name)["value"] == [name]


def test_an_old_copy_is_found_by_its_own_name_only(tmp_path: Path) -> None:
    for name in ("a[1]", "x" * 200 + "y"):
        (tmp_path / ".staging").mkdir(exist_ok=True)
        (tmp_path / ".staging" / f"{staging_area.stem(name)}.replaced.12345678").mkdir()
        assert len(staging_area.put_aside(tmp_path / name)) == 1
    assert staging_area.put_aside(tmp_path / ("x" * 200)) == []


def test_what_was_overwritten_since_it_was_opened_is_told(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    holdtrue.save(tmp_path / "kept", model=model)
    opened = holdtrue.open(tmp_path / "kept")
    holdtrue.save(tmp_path / "kept", overwrite=True, model=nn.Linear(2, 2))
    for ask in (
        lambda: opened.restore(model=model),
        lambda: opened["model"],
        lambda: opened.tensors["model/weight"].torch(),
        lambda: opened.tensors["model/weight"].numpy(),
    ):
        with pytest.raises(holdtrue.DamageError) as caught:
            ask()
        assert [f.code for f in caught.value.report.errors] == ["replaced-while-read"]


def test_a_metric_too_large_for_a_float_is_no_best(tmp_path: Path) -> None:
    run = small(tmp_path / "run", Keep(best=1, by="loss", last=1))
    save_all(run, {1: 0.5})
    manifest = run._shelf.summaries()[1]
    huge = {"$": "dict", "v": [["loss", {"$": "int", "v": str(10**400)}]]}
    run._shelf._summaries[1] = replace(manifest, metrics=huge)
    save_all(run, {2: 0.7})
    assert run.steps() == [2]
