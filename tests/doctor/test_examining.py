"""Rules are found by their parameter; one that fails hides nothing."""

import torch

import holdtrue
from holdtrue.doctor import examining
from holdtrue.doctor.rules import devices
from holdtrue.formats.view import View


def test_a_rule_is_registered_by_being_there():
    assert devices.device_tags in examining.rules_for(View)
    assert examining.rules_for(int) == ()


def test_a_rule_that_fails_is_a_finding(tmp_path, monkeypatch):
    def broken(view: View):
        raise KeyError("nothing")

    rules = {View: (broken, devices.device_tags)}
    monkeypatch.setattr(examining, "rules_for", lambda kind: rules.get(kind, ()))
    torch.save({"w": torch.ones(2)}, tmp_path / "f.pt")
    (finding,) = holdtrue.diagnose(tmp_path / "f.pt").findings
    assert finding.code == "rule-failed"
    assert "KeyError" in finding.why
