"""holdtrue doctor PATH --model … --optimizer …: made by functions of the user's own file."""

import json

import pytest
import torch
from click.testing import CliRunner
from trainings import OPTIMIZERS, SCHEDULERS, Net, loud, saved, train

import holdtrue
from holdtrue.cli.doctor import command

CODE = """
import torch
from trainings import Net

def optimizer(model):
    return torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.1)

def both(model):
    made = optimizer(model)
    return made, torch.optim.lr_scheduler.CosineAnnealingLR(made, 200)

def broken(model):
    raise RuntimeError("no such setting")
"""


@pytest.fixture
def project(tmp_path):
    (tmp_path / "project_code.py").write_text(CODE)
    model = Net()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    scheduler = SCHEDULERS["cosine"](optimizer)
    train(model, optimizer, scheduler)
    saved(tmp_path / "f.pt", model, optimizer, scheduler)
    return tmp_path


def doctor(project, factory):
    code = project / "project_code.py"
    arguments = [str(project / "f.pt"), "--model", f"{code}:Net", "--json"]
    return CliRunner().invoke(command, [*arguments, "--optimizer", f"{code}:{factory}"])


def found(result):
    return [f["code"] for f in json.loads(result.stdout)["findings"] if f["severity"] != "note"]


def test_an_optimizer_that_fits(project):
    result = doctor(project, "optimizer")
    assert (result.exit_code, found(result)) == (0, [])


def test_a_scheduler_that_does_not(project):
    result = doctor(project, "both")
    assert (result.exit_code, found(result)) == (1, ["scheduler-settings-from-file"])


def test_a_function_that_raises(project):
    result = doctor(project, "broken")
    assert (result.exit_code, found(result)) == (2, ["optimizer-unavailable"])


def test_our_own_checkpoints_are_compared_as_well(tmp_path):
    model = Net()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    train(model, optimizer)
    holdtrue.save(tmp_path / "ck", model=model, optimizer=optimizer)
    other = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.0)
    report = holdtrue.diagnose(tmp_path / "ck", model=model, optimizer=other)
    assert "settings-from-file" in {f.code for f in loud(report)}
    same = OPTIMIZERS["adamw"](model.parameters())
    assert loud(holdtrue.diagnose(tmp_path / "ck", model=model, optimizer=same)) == []
