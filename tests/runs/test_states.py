"""best_state and latest_state: what is on disk, and never the live weights."""

from pathlib import Path

import pytest
import torch
from torch import nn

import holdtrue


@pytest.fixture
def run(tmp_path: Path) -> holdtrue.Run:
    model = nn.Linear(3, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    keep = holdtrue.Keep(best=1, by="loss")
    run = holdtrue.Run(tmp_path / "run", keep=keep, model=model, optimizer=optimizer)
    for step, loss in ((1, 2.0), (2, 0.5), (3, 1.0)):
        with torch.no_grad():
            model.weight.fill_(step)
        run.save(step, metrics={"loss": loss})
    return run


def test_they_are_those_of_the_disk(run: holdtrue.Run) -> None:
    assert torch.all(run.best_state()["weight"] == 2)
    assert torch.all(run.latest_state()["weight"] == 3)
    assert torch.all(run.best_state(by="loss", mode="max")["weight"] == 3)  # step 1 is pruned
    assert run.best_state("optimizer")["param_groups"][0]["momentum"] == 0.9


def test_training_on_changes_neither(run: holdtrue.Run) -> None:
    best, latest = run.best_state(), run.latest_state()
    model = run.parts["model"]
    with torch.no_grad():
        model.weight.zero_()
    model.load_state_dict(best)
    with torch.no_grad():
        model.weight.add_(10)
    assert torch.all(best["weight"] == 2)
    assert torch.all(latest["weight"] == 3)
    with torch.no_grad():
        best["weight"].zero_()
    assert torch.all(run.best_state()["weight"] == 2)
    assert torch.all(model.weight == 12)


def test_nothing_saved_yet(tmp_path: Path) -> None:
    run = holdtrue.Run(tmp_path / "run", model=nn.Linear(1, 1))
    assert run.best_state(by="loss") is None
    assert run.latest_state() is None


def test_they_are_detached_as_those_of_torch(tmp_path: Path) -> None:
    def tied() -> nn.Sequential:
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3))
        model[1].weight = model[0].weight
        model[1].bias.requires_grad_(False)
        return model

    model = tied()
    holdtrue.save(tmp_path / "c", model=model)
    state = holdtrue.open(tmp_path / "c")["model"]
    assert state.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert type(state[name]) is type(tensor) is torch.Tensor
        assert not state[name].requires_grad
        assert torch.equal(state[name], tensor)
    assert state["0.weight"].data_ptr() == state["1.weight"].data_ptr()
    here, theirs = tied(), tied()
    here.load_state_dict(state, assign=True)
    theirs.load_state_dict(model.state_dict(), assign=True)
    for got, expected in zip(here.parameters(), theirs.parameters(), strict=True):
        assert type(got) is type(expected) is nn.Parameter
        assert got.requires_grad == expected.requires_grad
    assert holdtrue.open(tmp_path / "c").build().state_dict().keys() == state.keys()


def test_a_parameter_beside_a_module_stays_one(tmp_path: Path) -> None:
    holdtrue.save(tmp_path / "c", scale=nn.Parameter(torch.ones(2)))
    scale = holdtrue.open(tmp_path / "c")["scale"]
    assert isinstance(scale, nn.Parameter)
    assert scale.requires_grad
