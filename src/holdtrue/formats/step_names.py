"""The names of a run's checkpoints, which say the step: step-000000400."""

import re
from pathlib import Path

from holdtrue.findings import Finding

_STEP = re.compile(r"step-([0-9]{9,})\Z")


def step_name(step: int) -> str:
    """The directory of a step: step-000000400."""
    return f"step-{step:09d}"


def step_of(name: str) -> int | None:
    """The step that a directory's name says; None for any other name."""
    found = _STEP.match(name)
    step = int(found[1]) if found else -1
    return step if step_name(step) == name else None


def compare_step(directory: Path, step: int | None) -> list[Finding]:
    """A finding where a whole checkpoint stands under the name of another step: each byte of it is
    as it was written, and yet it is not what a resume or a comparison asks for."""
    named = step_of(directory.absolute().name)
    if step is None or named is None or step == named:
        return []
    return [
        Finding(
            code="step-differs",
            severity="error",
            where=str(directory),
            what="the checkpoint of another step stands under this name",
            why="each byte is as it was written, and the manifest says which step it is of; the "
            "directory was renamed, or another one was put in its place",
            fix=f"rename it to {step_name(step)}, if it was you who renamed it; else copy the run "
            "again from where it is whole",
            saved=f"step {step}",
            expected=f"step {named}",
        )
    ]
