"""Resuming at a step, at the best one, and what becomes of the steps after it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import holdtrue
from holdtrue import Keep, Run


def parts() -> dict[str, Any]:
    return {"model": torch.nn.Linear(2, 2)}


def saved(path: Path, losses: dict[int, float | None], keep: Keep | None = None) -> None:
    made = parts()
    run = Run(path, on_error="raise", keep=keep or Keep(by="loss"), **made)
    for step, loss in losses.items():
        torch.nn.init.constant_(made["model"].weight, float(step))
        run.save(step, {} if loss is None else {"loss": loss}, wait=True)


def resumed(path: Path, **given: Any) -> tuple[int, Run]:
    made = parts()
    run = Run(path, on_error="raise", **made)
    step = run.resume(**given)
    if step:
        assert made["model"].weight[0, 0] == step
    return step, run


def codes(run: Run) -> list[str]:
    assert run.report is not None
    return [f.code for f in run.report.findings]


def damage(path: Path, step: int) -> None:
    file = path / f"step-{step:09d}" / "model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)


def test_at_latest_best_or_a_step(tmp_path: Path) -> None:
    saved(tmp_path, {100: 0.5, 300: 0.1, 400: None, 500: 0.4})
    assert resumed(tmp_path)[0] == 500
    assert resumed(tmp_path, at="best")[0] == 300
    assert resumed(tmp_path, at=100)[0] == 100
    assert resumed(tmp_path, at=np.int64(300))[0] == 300


def test_what_is_not_there_is_said_with_what_is(tmp_path: Path) -> None:
    saved(tmp_path, {100: None, 300: None})
    with pytest.raises(holdtrue.OpenError) as caught:
        resumed(tmp_path, at=250)
    (finding,) = caught.value.report.errors
    assert (finding.code, finding.command) == ("step-missing", "run.resume(at=300)")
    assert "100, 300" in finding.why
    with pytest.raises(holdtrue.OpenError) as caught:
        resumed(tmp_path, at="best")
    assert caught.value.report.errors[0].code == "best-unknown"
    assert "'loss'" in caught.value.report.errors[0].why
    for odd in ("newest", True, -1, 1.0, None):
        with pytest.raises(ValueError, match="latest"):
            resumed(tmp_path, at=odd)


def test_a_fresh_run_starts_at_zero_unless_a_step_is_named(tmp_path: Path) -> None:
    assert resumed(tmp_path / "run", at="best")[0] == 0
    with pytest.raises(holdtrue.OpenError) as caught:
        resumed(tmp_path / "run", at=3)
    assert "none at all" in caught.value.report.errors[0].why


def test_best_falls_back_to_the_next_best(tmp_path: Path) -> None:
    saved(tmp_path, {1: 0.3, 2: 0.1, 3: 0.2, 4: 0.4})
    damage(tmp_path, 2)
    step, run = resumed(tmp_path, at="best")
    assert step == 3
    assert codes(run)[:2] == ["later-steps-given-up", "checkpoint-passed-over"]


def test_a_named_step_is_never_replaced_by_another(tmp_path: Path) -> None:
    saved(tmp_path, {1: 0.3, 2: 0.1, 3: 0.2})
    damage(tmp_path, 2)
    with pytest.raises(holdtrue.DamageError):
        resumed(tmp_path, at=2)


def test_steps_after_the_one_resumed_are_put_aside_by_the_next_save(tmp_path: Path) -> None:
    saved(tmp_path, {300: 0.1, 400: 0.2, 500: 0.3})
    step, run = resumed(tmp_path, at="best")
    assert codes(run)[0] == "later-steps-given-up"
    assert run.steps() == [300, 400, 500]  # resuming alone changes nothing
    run.save(step + 100)
    run.flush()
    assert run.steps() == [300, 400]
    aside = sorted(p.name for p in tmp_path.glob("abandoned-*"))
    assert aside == ["abandoned-step-000000400", "abandoned-step-000000500"]
    assert holdtrue.open(tmp_path / aside[1]).step == 500
    assert holdtrue.verify(tmp_path / aside[0]).ok
    latest = run.latest()
    assert latest is not None
    assert latest.metrics == {}
    with pytest.raises(holdtrue.SaveError):
        run.save(400, wait=True)  # once more is refused, as ever
    assert resumed(tmp_path, at=300)[0] == 300
    run = resumed(tmp_path, at=300)[1]
    run.save(400, wait=True)
    assert (tmp_path / "abandoned-step-000000400-2").is_dir()


def test_a_save_that_cannot_be_kept_leaves_them(tmp_path: Path) -> None:
    saved(tmp_path, {300: 0.1, 400: 0.2})
    run = resumed(tmp_path, at=300)[1]
    run.parts["odd"] = (i for i in range(3))
    with pytest.raises(holdtrue.SaveError):
        run.save(400)
    assert run.steps() == [300, 400]


def test_resuming_at_the_latest_gives_nothing_up(tmp_path: Path) -> None:
    saved(tmp_path, {1: None, 2: None})
    run = resumed(tmp_path)[1]
    run.save(3, wait=True)
    assert run.steps() == [1, 2, 3]


def no_best(tmp_path: Path, by: str, metrics: dict[int, dict[str, float]]) -> list[Any]:
    """What the run, and the path `run@best`, say."""
    keep = holdtrue.Keep(by=by)
    run = holdtrue.Run(tmp_path / "run", on_error="raise", keep=keep, value=[1])
    for step, given in metrics.items():
        run.save(step, given, wait=True)
    said = []
    for ask in (lambda: run.resume(at="best"), lambda: holdtrue.open(f"{run.path}@best")):
        with pytest.raises(holdtrue.OpenError) as caught:
            ask()
        (finding,) = caught.value.report.errors
        assert finding.code == "best-unknown"
        said.append(finding)
    assert said[0].command == "run.resume()"
    return said


def test_a_metric_that_is_nan_everywhere_is_said_to_be(tmp_path: Path) -> None:
    nan = float("nan")
    for finding in no_best(tmp_path, "loss", {1: {"loss": nan}, 2: {"loss": nan}, 3: {}}):
        assert "NaN" in finding.why
        assert "step 1: nan, step 2: nan; 1 more lacks it" in finding.why
        assert "Keep(" not in finding.fix


def test_a_metric_of_another_name_is_pointed_at(tmp_path: Path) -> None:
    for finding in no_best(tmp_path, "loss", {1: {"acc": 0.5}}):
        assert finding.why == "none has the metric 'loss'; they have 'acc'"
        assert "Keep(by='acc')" in finding.fix
        assert "best=1" not in finding.fix


def test_one_later_step_comes_and_several_come(tmp_path: Path) -> None:
    for later, text in (([8], "step 8 comes after it"), ([8, 9], "steps 8, 9 come after it")):
        run = holdtrue.Run(tmp_path / str(len(later)), value=[1])
        for step in (7, *later):
            run.save(step, wait=True)
        run.resume(at=7)
        assert run.report is not None
        assert text in run.report.findings[0].what


def test_each_damaged_checkpoint_is_one_line_of_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = holdtrue.Run(tmp_path / "run", on_error="raise", value=[1], weights=torch.ones(3))
    for step in (1, 2, 3):
        run.parts["weights"].fill_(step)
        run.save(step, wait=True)
    for place in (tmp_path / "run").glob("step-*/weights*"):
        place.write_bytes(place.read_bytes()[:-1] + b"\xff")
    with caplog.at_level("WARNING", "holdtrue"), pytest.raises(holdtrue.DamageError) as caught:
        run.resume()
    assert [r.getMessage().count("\n") for r in caplog.records] == [0, 0, 0]
    assert "step 3 is passed over, it is damaged: " in caplog.text
    assert "step-000000003" in str(caught.value)
