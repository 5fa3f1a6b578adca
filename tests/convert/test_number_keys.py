import torch

from holdtrue.doctor.convert import convert


def test_keys_that_become_text_are_listed(tmp_path):
    torch.save({1: torch.ones(1), "w": torch.ones(2)}, tmp_path / "a.pt")
    found = convert(tmp_path / "a.pt", tmp_path / "b.pt").report.findings
    assert [(f.code, f.places) for f in found] == [("keys-became-text", ("1",))]
