"""A file beside live models, for the doctor: what a restore would find, and what it would not."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from holdtrue.capture.live_training import live_training
from holdtrue.doctor.examining import examine
from holdtrue.doctor.fit.comparison import facts
from holdtrue.doctor.subjects import Resuming
from holdtrue.doctor.training_state import saved_training
from holdtrue.errors import HoldtrueError
from holdtrue.findings import Finding
from holdtrue.formats.view import View
from holdtrue.restore.factories import module_of
from holdtrue.restore.fitting import beside, gather, together, with_source
from holdtrue.restore.request import Request, plan_request
from holdtrue.restore.trying import tried


def live_targets(targets: Mapping[str, Any]) -> tuple[dict[str, Any], list[Finding]]:
    """The modules among the targets, made where a factory is given; and why some could not be."""
    made: dict[str, Any] = {}
    findings: list[Finding] = []
    for name, given in targets.items():
        try:
            made[name] = module_of(name, given)
        except HoldtrueError as error:
            findings += error.report.findings
    return made, findings


def compare(request: Request) -> list[Finding]:
    """What a restore with these targets would find, and what it would not see. Nothing changes."""
    try:
        planned = plan_request(request, dry=True)
    except HoldtrueError as error:  # the file is damaged where it had to be read
        return list(error.report.findings)
    found = [f for f in planned.plan.findings if f.code != "parts-left"]
    found = with_source(request, planned, found)
    for fit in gather(request, planned):
        said = examine(fit, fit.part)
        if request.manifest is not None:  # the plan has said it of a record that knows more
            said = [f for f in said if f.code == "restore-call"]
        found = together(found, said, fit)
    return found


def meant_dtypes(request: Request) -> dict[str, str]:
    """For the tensors of the file that fill parameters of the targets, by path: the dtype here."""
    try:
        planned = plan_request(request, dry=True)
    except HoldtrueError:  # the comparison has said why
        return {}
    paths = {id(tensor): path for path, tensor in request.view.tensors.items()}
    found: dict[str, str] = {}
    for fit in beside(request, planned):
        here = facts(fit)
        for old, new in fit.names.items():
            path = paths.get(id(fit.state.names[old]))
            if path is not None and new in here and here[new].parameter:
                found[path] = here[new].dtype
    return found


def compare_training(view: View, targets: Mapping[str, Any], given: str) -> list[Finding]:
    """What a file of another format keeps of a training, beside the objects that are to go on."""
    live = live_training(targets)
    try:
        saved = saved_training(view)
    except HoldtrueError:  # nested past the budgets, which opening it has said
        return []
    found = examine(Resuming(view=view, saved=saved, live=live), view.path)
    request = Request(view=view, manifest=None, targets=targets, given=given)
    return [tried(finding, request) for finding in found]


def is_module_target(name: str, given: Any) -> bool:
    """Whether a target of diagnose is a model: a module, or what is given as one."""
    return isinstance(given, nn.Module) or name == "model"
