"""The public face is frozen: adding a name is a decision."""

import subprocess
import sys

import holdtrue


def test_public_names():
    assert holdtrue.__all__ == [
        "Checkpoint",
        "Converted",
        "DamageError",
        "Difference",
        "Finding",
        "HoldtrueError",
        "Keep",
        "OpenError",
        "Probe",
        "ProgressBar",
        "Report",
        "RestoreError",
        "ResumableLoader",
        "Run",
        "SaveError",
        "Saved",
        "buildable",
        "convert",
        "diagnose",
        "diff",
        "open",
        "prove_resume",
        "salvage",
        "save",
        "seal",
        "verify",
    ]
    for name in holdtrue.__all__:
        assert getattr(holdtrue, name) is not None
    assert dir(holdtrue) == sorted(holdtrue.__all__)


def test_importing_and_opening_need_no_torch(tmp_path):
    holdtrue.save(tmp_path / "c", classes=["a", "b"], count=3)
    program = f"""
import sys
sys.modules["torch"] = None  # importing it raises ImportError
import holdtrue
ck = holdtrue.open({str(tmp_path / "c")!r})
assert ck["classes"] == ["a", "b"] and ck["count"] == 3
assert holdtrue.verify({str(tmp_path / "c")!r}).ok
"""
    subprocess.run([sys.executable, "-c", program], check=True)
