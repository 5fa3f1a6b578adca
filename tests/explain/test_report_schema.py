"""The published schema is that of the reports, and reports follow it."""

import json
from importlib.resources import files

import jsonschema
import pytest
import torch
from torch import nn

import holdtrue
from holdtrue.doctor.explain import report_schema
from holdtrue.findings import report_to_builtins

SCHEMA = json.loads((files("holdtrue") / "report.schema.json").read_text())


def test_the_published_schema_is_the_generated_one():
    assert json.loads(json.dumps(report_schema())) == SCHEMA
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def _clean(place):
    torch.save({"w": torch.ones(2)}, place / "a.pt")
    return holdtrue.diagnose(place / "a.pt")


def _cut(place):
    torch.save({"w": torch.ones(2000)}, place / "a.pt")
    (place / "a.pt").write_bytes((place / "a.pt").read_bytes()[:3000])
    return holdtrue.diagnose(place / "a.pt")


def _pointer(place):
    (place / "a.pt").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:x\nsize 9\n"
    )
    return holdtrue.diagnose(place / "a.pt")


def _refused(place):
    holdtrue.save(place / "c", model=nn.Sequential(nn.Linear(2, 3), nn.ReLU()))
    with pytest.raises(holdtrue.RestoreError) as caught:
        holdtrue.open(place / "c").restore(model=nn.Sequential(nn.Linear(2, 4), nn.GELU()))
    return caught.value.report


def _verified(place):
    holdtrue.save(place / "c", w=torch.ones(2))
    return holdtrue.verify(place / "c")


@pytest.mark.parametrize("make", [_clean, _cut, _pointer, _refused, _verified])
def test_reports_follow_the_schema(make, tmp_path):
    value = json.loads(json.dumps(report_to_builtins(make(tmp_path))))
    jsonschema.validate(value, SCHEMA)


def test_the_schema_refuses_what_is_no_report():
    for wrong in ({}, {"ok": True}, {"ok": 1, "subject": "x"},
                  {"ok": False, "subject": "x", "findings": [{"code": "a"}]}):  # fmt: skip
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, SCHEMA)
