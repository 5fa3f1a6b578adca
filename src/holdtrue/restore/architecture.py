"""Compares the architecture that was saved with the target's, before anything is planned."""

from collections.abc import Callable

from torch import nn

from holdtrue.capture.architecture import capture_architecture
from holdtrue.doctor.architecture import compare_architectures, same_model
from holdtrue.findings import Finding
from holdtrue.records.architecture import Architecture
from holdtrue.restore.plan import Plan, renamer, selects


def plan_architecture(part: str, saved: Architecture | None, module: nn.Module, plan: Plan) -> None:
    """Put what differs between the saved model and `module` into the plan's findings."""
    if saved is None:
        return
    try:
        here = capture_architecture(module).record
    except Exception as error:  # descriptors and attributes of the model's own classes
        plan.found(_not_compared(part, error))
        return
    if not plan.choice.rename and same_model(saved, here):
        return
    # A plan of its own: whether a pattern was of use is for the tensors to say.
    apart = Plan(plan.choice)
    rename = renamer(apart, part)
    found = compare_architectures(
        saved,
        here,
        part,
        selects=lambda path: selects(apart, part, f"{path}."),
        rename=lambda path: _renamed(rename, path, saved),
    )
    for finding in found:
        plan.found(finding)


def _renamed(rename: Callable[[str], str], path: str, saved: Architecture) -> str:
    """Patterns are for names of tensors, "old.*": a module goes where its own tensors go."""
    if not path:
        return path
    for name in (*saved.kinds[saved.modules[path]].tensors, ""):
        new = rename(f"{path}.{name}")
        if new != f"{path}.{name}" and new.endswith(f".{name}"):
            return new.removesuffix(f".{name}")
    return path


def _not_compared(part: str, error: Exception) -> Finding:
    return Finding(
        code="architecture-not-compared",
        severity="warning",
        where=part,
        what="the architecture of the target could not be described, so it was not compared",
        why=f"{type(error).__name__}: {error}",
        fix="check by hand that the model is the one that was saved",
    )
