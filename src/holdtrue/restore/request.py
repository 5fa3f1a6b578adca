"""What a caller wants restored, and the plan that comes of it; to be carried out, or to be seen."""

from collections.abc import Mapping
from typing import Any

from msgspec import Struct, field

from holdtrue.capture.environment import running
from holdtrue.doctor.environments import compare_environments
from holdtrue.findings import Finding
from holdtrue.formats.view import View
from holdtrue.records.manifest import Manifest
from holdtrue.records.trust import Trust
from holdtrue.restore.foreign import Foreign, foreign_targets
from holdtrue.restore.fresh import Fresh
from holdtrue.restore.plan import Choice, Plan
from holdtrue.restore.targets import plan_restore


class Request(Struct, frozen=True, kw_only=True):
    """One restore, as the caller asked for it."""

    view: View
    manifest: Manifest | None  # None for files of other formats
    targets: Mapping[str, Any]
    given: str  # the path as the caller wrote it
    choice: Choice = field(default_factory=Choice)
    source: Mapping[str, str] = field(default_factory=dict)
    agreed: Trust = field(default_factory=Trust)
    rng: bool = False


class Planned(Struct, kw_only=True):
    """A plan, and for a file of another format what each target is filled from."""

    plan: Plan
    foreign: Foreign | None = None


def plan_request(request: Request, *, dry: bool = False) -> Planned:
    """Everything that the restore would do, and what is in its way. Nothing is changed."""
    view, choice, targets = request.view, request.choice, request.targets
    fresh = Fresh(view.tensors, request.agreed)
    if request.manifest is None:
        foreign = foreign_targets(view, targets, request.source, choice)
        fresh.foreign, fresh.tensors = True, foreign.tensors
        named = {name: target for name, target in targets.items() if name not in foreign.lost}
        plan = plan_restore(foreign.parts, fresh, named, choice, False, view.format, dry=dry)
        for finding in foreign.findings:
            plan.found(finding)
        return Planned(plan=plan, foreign=foreign)
    parts = request.manifest.parts
    plan = plan_restore(parts, fresh, targets, choice, request.rng, dry=dry)
    saved, here = request.manifest.environment, running()
    plan.findings += compare_environments(saved, here, plan.moved, resume=request.rng)
    plan.findings += [_has_parts(*item) for item in request.source.items()]
    return Planned(plan=plan)


def _has_parts(target: str, part: str) -> Finding:
    return Finding(
        code="source-unused",
        severity="error",
        where=f"source={{{target!r}: {part!r}}}",
        what="this checkpoint's parts have names; source is for files of other formats",
        why="a target is filled from the part of its own name",
        fix="name the target as the part is called: restore(part=target)",
    )
