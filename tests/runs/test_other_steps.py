"""Steps that are not what their place says: of another training, or under other names."""

import logging
import os
from pathlib import Path

import pytest
import torch
from torch import nn

import holdtrue
from holdtrue.errors import DamageError, SaveError
from holdtrue.formats.step_names import step_name, step_of


def training(run: Path, *saved: int, **more: object) -> nn.Linear:
    """A run with these steps, the weights of each filled with its number."""
    model = nn.Linear(2, 2)
    with holdtrue.Run(run, on_error="raise", model=model, **more) as made:  # type: ignore[arg-type]
        for step in saved:
            nn.init.constant_(model.weight, step)
            made.save(step, wait=True)
    return model


def refused(run: Path, step: int, keep: holdtrue.Keep | None = None) -> holdtrue.Finding:
    again = holdtrue.Run(run, keep=keep, on_error="raise", model=nn.Linear(2, 2))
    with pytest.raises(SaveError) as caught, again:
        again.save(step, wait=True)
    (finding,) = caught.value.report.findings
    return finding


# -- of another training ---------------------------------------------------------------------------


def test_a_training_begun_anew_does_not_lose_its_saves_to_the_old_one(tmp_path: Path) -> None:
    run = tmp_path / "run"
    training(run, 500, 1000)
    finding = refused(run, 1, holdtrue.Keep(last=2))
    assert finding.code == "later-steps-there"
    assert "steps 500, 1000 are here" in finding.what
    assert finding.command == "run.resume()"
    assert sorted(os.listdir(run)) == [step_name(500), step_name(1000)]


def test_one_that_went_back_saves_beside_what_it_puts_aside(tmp_path: Path) -> None:
    training(tmp_path / "run", 5, 10, 15)
    model = nn.Linear(2, 2)
    with holdtrue.Run(tmp_path / "run", on_error="raise", model=model) as run:
        assert run.resume(at=5) == 5
        run.save(7, wait=True)
        assert run.steps() == [5, 7]
    assert (tmp_path / "run" / f"abandoned-{step_name(15)}").is_dir()


def test_damaged_steps_are_no_reason(tmp_path: Path) -> None:
    """An empty directory of an absurd name would otherwise end all saving."""
    run = tmp_path / "run"
    training(run, 5)
    (run / f"step-{'9' * 30}").mkdir()
    (run / step_name(9)).mkdir()
    with holdtrue.Run(run, keep=holdtrue.Keep(last=1), model=nn.Linear(2, 2)) as again:
        assert again.resume() == 5
        again.save(6, wait=True)
    assert holdtrue.verify(run / step_name(6)).ok


# -- under another name ----------------------------------------------------------------------------


def exchange(run: Path, one: int, other: int) -> None:
    first, second = run / step_name(one), run / step_name(other)
    first.rename(run / "between")
    second.rename(first)
    (run / "between").rename(second)


def test_exchanged_steps_are_found_and_not_loaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    training(run, 1, 2, 3)
    exchange(run, 2, 3)
    model = nn.Linear(2, 2)
    for step in (2, 3):
        assert [f.code for f in holdtrue.verify(run / step_name(step)).errors] == ["step-differs"]
        with pytest.raises(DamageError, match="step-differs"):
            holdtrue.open(f"{run}@{step}")
    with caplog.at_level(logging.WARNING, "holdtrue"):
        assert holdtrue.Run(run, model=model).resume() == 1
    assert model.weight.unique().tolist() == [1.0]
    assert holdtrue.open(f"{run}@whole").step == 1


def test_a_renamed_step_says_how_to_name_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    training(run, 1)
    (run / step_name(1)).rename(run / step_name(9))
    (finding,) = holdtrue.verify(run).errors
    assert (finding.saved, finding.expected) == ("step 1", "step 9")
    assert step_name(1) in finding.fix
    (run / step_name(9)).rename(run / step_name(1))
    assert holdtrue.verify(run).ok


def test_out_of_a_run_it_may_have_any_name(tmp_path: Path) -> None:
    training(tmp_path / "run", 1)
    (tmp_path / "run" / step_name(1)).rename(tmp_path / "the one")
    assert holdtrue.verify(tmp_path / "the one").ok
    path = holdtrue.save(tmp_path / step_name(4), weights=torch.ones(2)).path  # without a step
    assert holdtrue.verify(path).ok


@pytest.mark.parametrize("best", [False, True])
def test_neither_best_nor_pruning_goes_by_a_step_of_another_name(
    best: bool, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    keep = holdtrue.Keep(last=1, best=1 if best else None, by="loss")
    model = nn.Linear(2, 2)
    with holdtrue.Run(run, keep=keep, model=model) as made:
        made.save(1, {"loss": 0.0}, wait=True)
    (run / step_name(1)).rename(run / step_name(2))
    with holdtrue.Run(run, keep=keep, model=model) as made:
        made.save(3, {"loss": 1.0}, wait=True)
        made.save(4, {"loss": 2.0}, wait=True)
    assert holdtrue.open(f"{run}@best").step == (3 if best else 4)
    assert (run / step_name(2)).is_dir()  # what cannot be read is its owner's to remove


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("step-000000001", 1),
        ("step-1234567890", 1234567890),
        ("step-0000000001", None),  # one step has one name
        ("step-00000001", None),
        ("step-000000001 ", None),
        ("step-٠٠٠٠٠٠٠٠١", None),
        ("damaged-step-000000001", None),
    ],
)
def test_names_of_steps(name: str, step: int | None) -> None:
    assert step_of(name) == step
