"""The same steps in a fresh process: found by name, by a factory, or said not to be found."""

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import found_by_name
import pytest
import torch

import holdtrue
from holdtrue.runs.fresh_process import NotPossibleError, find_code

MODULE: dict[str, Any] = {"model": found_by_name.model, "optimizer": found_by_name.optimizer}


def prove(tmp_path: Path, train_step: Any, parts: Any = None, **given: Any) -> holdtrue.Report:
    run = holdtrue.Run(tmp_path / "run", **(parts or MODULE))
    return holdtrue.prove_resume(run, train_step, 2, **given)


@pytest.mark.slow
def test_names_of_a_module(tmp_path: Path) -> None:
    report = prove(tmp_path, found_by_name.train_step)
    assert report == holdtrue.Report(subject=str(tmp_path / "run"))


@pytest.mark.slow
def test_a_factory(tmp_path: Path) -> None:
    parts, step = found_by_name.make()
    report = prove(tmp_path, step, parts, factory="found_by_name:make")
    assert report == holdtrue.Report(subject=str(tmp_path / "run"))
    assert find_code(step, parts, found_by_name.make)["factory"] == "make"


@pytest.mark.slow
def test_what_is_done_after_a_resume_is_done_there_too(tmp_path: Path) -> None:
    parts = {**MODULE, "places": found_by_name.places}
    report = prove(tmp_path, found_by_name.by_place, parts, after_resume=found_by_name.begin)
    assert report.findings == ()
    (moved,) = report.not_checked
    assert moved == "by_place.__globals__['iterator'] could not be put back as it was"


def test_attributes_of_a_named_object_are_found() -> None:
    trainer = found_by_name.trainer
    job = find_code(trainer.step, {"model": trainer.net}, None)
    assert job["step"] == "trainer.step"
    assert job["parts"] == {"model": "trainer.net"}


@pytest.mark.slow
def test_what_differs_from_process_to_process(tmp_path: Path) -> None:
    (finding,) = prove(tmp_path, found_by_name.by_hash).findings
    assert finding.code == "resume-differs"
    assert "in a fresh one they do not" in finding.why
    assert "PYTHONHASHSEED" in finding.fix


def test_a_global_that_was_set_before_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(found_by_name, "scale", 3)  # as by a part of the script that ran already
    (finding,) = prove(tmp_path, found_by_name.scaled).findings
    assert finding.code == "state-not-captured"
    assert finding.where == "scaled.__globals__['scale']"
    assert (finding.saved, finding.expected) == ("3", "None")


def test_code_that_no_other_process_finds() -> None:
    with pytest.raises(NotPossibleError, match="factory="):
        find_code(lambda: None, {}, None)
    with pytest.raises(NotPossibleError, match="'model'"):
        find_code(found_by_name.train_step, {"model": torch.nn.Linear(1, 1)}, None)


SCRIPT = """
    import sys, torch, holdtrue
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    def train_step():
        optimizer.zero_grad()
        loss = model(torch.rand(4, 2)).square().mean()
        loss.backward()
        optimizer.step()
        return loss
"""
PROVE = """
    run = holdtrue.Run(sys.argv[1], model=model, optimizer=optimizer)
    report = holdtrue.prove_resume(run, train_step)
    print(report.ok, report.not_checked)
"""


@pytest.mark.parametrize("guarded", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_script(guarded: bool, tmp_path: Path) -> None:
    body = textwrap.dedent(PROVE)
    if guarded:
        body = 'if __name__ == "__main__":\n' + textwrap.indent(body, "    ")
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(SCRIPT) + body)
    command = [sys.executable, str(script), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True)
    said = done.stdout.strip()
    assert said == "True ()" if guarded else "would train anew" in said, done.stderr
