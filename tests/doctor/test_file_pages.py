"""The examples of the pages on files and folders give what their pages are about."""

import re

import pytest

import holdtrue
from holdtrue.doctor.explain import page

_CODES = (
    "adapter-inside", "adapter-only", "attribute-missing", "best-equals-last", "big-endian",
    "code-in-file", "duplicate-keys", "ema-and-raw", "empty-placeholders", "flat-parameters",
    "index-missing", "latest-dangling", "lightning-checkpoint", "more-than-weights",
    "names-absent", "object-in-file", "optimizer-only", "partition-file", "plain-pickle",
    "put-aside", "quantised-state", "shard-alone", "smaller-than-siblings",
    "storage-waste", "tied-tensors",
    "torchscript-archive", "training-checkpoint", "weights-only-refuses", "weights-repeated",
    "whole-model", "wrong-suffix",
)  # fmt: skip


@pytest.mark.parametrize("code", _CODES)
def test_the_example_gives_the_finding(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = page(code)
    assert found is not None
    (example,) = re.findall(r"```python\n(.*?)```", found.text, re.DOTALL)
    names = {"__name__": "__main__"}
    exec(compile(example, code, "exec"), names)
    report = names["report"]
    assert isinstance(report, holdtrue.Report)
    assert code in {finding.code for finding in report.findings}
    assert "rule-failed" not in {finding.code for finding in report.findings}
