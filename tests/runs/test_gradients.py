"""Gradients: kept when asked, put back in a resume, and apart from the weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import holdtrue
from holdtrue import Run


def parts() -> dict[str, Any]:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    model[1].weight.requires_grad_(False)
    return {"model": model, "optimizer": torch.optim.SGD(model.parameters(), 0.1)}


def backward(made: dict[str, Any]) -> None:
    made["model"](torch.randn(4, 3)).square().mean().backward()


def gradients(made: dict[str, Any]) -> list[Any]:
    return [None if p.grad is None else p.grad.clone() for p in made["model"].parameters()]


@pytest.mark.parametrize("wait", [False, True])
def test_kept_and_put_back(wait: bool, tmp_path: Path) -> None:
    made = parts()
    backward(made)
    expected = gradients(made)
    run = Run(tmp_path, gradients=True, **made)
    run.save(1, wait=wait)
    made["optimizer"].zero_grad(set_to_none=False)  # in place, while it may still be written
    run.flush()
    fresh = parts()
    fresh["model"][1].weight.grad = torch.ones(2, 2)  # had none when it was saved
    Run(tmp_path, **fresh).resume()
    for got, want in zip(gradients(fresh), expected, strict=True):
        assert (got is None) == (want is None)
        assert want is None or torch.equal(got, want)
    weights = load_file(tmp_path / "step-000000001" / "model.safetensors")
    assert weights.keys() == fresh["model"].state_dict().keys()
    assert holdtrue.open(tmp_path)["model"].keys() == weights.keys()
    assert holdtrue.verify(tmp_path).ok


def test_not_kept_unless_asked(tmp_path: Path) -> None:
    made = parts()
    backward(made)
    Run(tmp_path, **made).save(1, wait=True)
    fresh = parts()
    Run(tmp_path, **fresh).resume()
    assert gradients(fresh) == [None] * 6


def test_a_load_of_the_model_alone_takes_no_memory_for_them(tmp_path: Path) -> None:
    made = parts()
    backward(made)
    Run(tmp_path, gradients=True, **made).save(1, wait=True)
    model = parts()["model"]
    report = holdtrue.open(tmp_path).restore(model=model)
    assert report.ok
    assert all(p.grad is None for p in model.parameters())


def test_a_tied_parameter_has_one_gradient(tmp_path: Path) -> None:
    def tied() -> dict[str, Any]:
        model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
        model[1].weight = model[0].weight
        return {"model": model, "optimizer": torch.optim.SGD(model.parameters(), 0.1)}

    made = tied()
    made["model"](torch.randn(4, 3)).square().mean().backward()
    Run(tmp_path, gradients=True, **made).save(1, wait=True)
    fresh = tied()
    Run(tmp_path, **fresh).resume()
    assert torch.equal(fresh["model"][1].weight.grad, made["model"][0].weight.grad)


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("here", [False, True])
@pytest.mark.parametrize("pending", [False, True])
def test_a_changed_setting_is_one_note(
    saved: bool, here: bool, pending: bool, tmp_path: Path
) -> None:
    made = parts()
    if pending:
        backward(made)
    with Run(tmp_path, gradients=saved, other=torch.nn.Linear(1, 1), **made) as run:
        run.save(1)
    again = Run(tmp_path, gradients=here, other=torch.nn.Linear(1, 1), **parts())
    again.resume()
    assert again.report is not None
    notes = [f for f in again.report.findings if f.code == "gradients-setting-differs"]
    assert len(notes) == ((here and not saved) or (saved and pending and not here))
    assert all(note.severity == "note" for note in notes)
    assert all(("were restored" in note.what) == saved for note in notes)
