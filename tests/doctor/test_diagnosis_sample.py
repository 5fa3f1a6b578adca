"""A sample of the cases that the diagnosis is measured by: what was right stays right.

All of them, and the tools that they are compared with, are run by `make bench-diagnosis`.
"""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.diagnosis.broken import Mended, all_cases  # noqa: E402
from benchmarks.diagnosis.healthy import all_samples  # noqa: E402
from benchmarks.diagnosis.judging import judge  # noqa: E402

RECORDED = json.loads((ROOT / "benchmarks/results/diagnosis.json").read_text())
CASES = all_cases()[::6]
SAMPLES = all_samples()[::5]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.family}/{case.name}")
def test_what_is_told_of_a_broken_checkpoint(case, figure):
    verdict = judge(case, RECORDED["seed"])
    if verdict.skipped:
        pytest.skip(verdict.skipped)
    recorded = _recorded(case)
    if not verdict.right and not recorded:
        pytest.xfail(f"never was right: {verdict.why}")
    figure("broken checkpoints diagnosed")
    assert verdict.right, (verdict.why, verdict.told)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.family}/{case.name}")
def test_no_mend_is_there_before_it_is_made(case, tmp_path):
    try:
        broken = case.build(tmp_path, RECORDED["seed"])
    except ModuleNotFoundError as error:
        pytest.skip(f"{error.name} is not installed")
    if isinstance(broken.mend, Mended):
        missing = tmp_path / "not-written.safetensors"
        with pytest.raises((FileNotFoundError, AssertionError)):
            assert broken.mend.check({**broken.targets, "written": str(missing)})


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_nothing_is_told_of_a_healthy_one(sample, figure):
    try:
        alarms = sample.alarms(RECORDED["seed"])
    except ModuleNotFoundError as error:
        pytest.skip(f"{error.name} is not installed")
    figure("healthy checkpoints diagnosed")
    assert not alarms


def test_the_record_is_of_the_cases_that_there_are():
    recorded = {(case["family"], case["name"]) for case in RECORDED["cases"]}
    assert recorded == {(case.family, case.name) for case in all_cases()}
    assert len(recorded) >= 150
    assert RECORDED["healthy"]["tried"] >= 100


def _recorded(case):
    found = [c for c in RECORDED["cases"] if (c["family"], c["name"]) == (case.family, case.name)]
    return all(c["found"] and c["placed"] and c["mended"] for c in found) and bool(found)
