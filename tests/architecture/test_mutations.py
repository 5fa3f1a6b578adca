"""Models are changed, one thing at a time, and a restore has to say so, with code and place."""

import docs_table
import pytest
import torch
from edited_models import build
from harmless import HARMLESS
from mutations import FOUND, UNSEEN
from torch import nn

import holdtrue
from holdtrue.capture.module import layers


def findings_of(path, model):
    """What a restore into `model` finds, whether it refuses or not."""
    try:
        return holdtrue.open(path).restore(model=model).findings
    except holdtrue.RestoreError as error:
        return error.report.findings


def restore_changed(case, tmp_path):
    original = build(case.model, tmp_path / "saved")
    holdtrue.save(tmp_path / "checkpoint", model=original)
    edits = [(case.file, case.old, case.new)] if case.old else []
    changed = build(case.model, tmp_path / "changed", edits)
    if case.change is not None:
        made = case.change(changed)
        wrapped = isinstance(made, nn.Module) and list(layers(made))[-1] is changed
        changed = made if wrapped or isinstance(made, type(changed)) else changed
    return findings_of(tmp_path / "checkpoint", changed)


@pytest.mark.parametrize("case", FOUND, ids=lambda case: case.name)
def test_a_change_of_the_model_is_found(case, tmp_path, figure):
    findings = restore_changed(case, tmp_path)
    found = [f for f in findings if f.code == case.code and f.severity == case.severity]
    places = [place for f in found for place in (f.places or (f.where,))]
    assert case.where in places, [(f.severity, f.code, f.where, f.what) for f in findings]
    figure("changes of models that a restore found")


@pytest.mark.parametrize("case", HARMLESS, ids=lambda case: case.name)
def test_a_harmless_change_gives_nothing_above_a_note(case, tmp_path, figure):
    findings = restore_changed(case, tmp_path)
    assert [f for f in findings if f.severity != "note"] == []
    figure("harmless changes of models that a restore let pass")


@pytest.mark.parametrize("case", UNSEEN, ids=lambda case: case.name)
def test_what_only_a_run_shows_is_not_claimed_to_be_seen(case, tmp_path, monkeypatch, figure):
    model = build(case.model, tmp_path / "saved")
    before = outputs(model, case)
    holdtrue.save(tmp_path / "checkpoint", model=model, probe=dict(case.inputs()))
    case.change(model, monkeypatch)
    assert not torch.equal(outputs(model, case), before)
    findings = findings_of(tmp_path / "checkpoint", model)
    assert [f for f in findings if f.severity != "note"] == []
    probed = holdtrue.open(tmp_path / "checkpoint").restore(model=model, probe=True)
    assert case.expected in {f.code for f in probed.findings}
    figure("changes that no record shows, found by the probe")


def outputs(model, case):
    with torch.no_grad():
        made = model(**case.inputs())
    return made if isinstance(made, torch.Tensor) else made.last_hidden_state


def test_the_documented_tables_are_those_that_were_tried():
    text = docs_table.PAGE.read_text()
    assert text == docs_table.page_with(text), f"run python {docs_table.__file__}"
    assert len(FOUND) >= 40
    assert len(HARMLESS) >= 25
