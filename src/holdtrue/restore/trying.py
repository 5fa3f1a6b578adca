"""Restores that findings propose: planned before they are told, and not told where they fail."""

import ast
from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from holdtrue.errors import HoldtrueError
from holdtrue.findings import Finding
from holdtrue.restore.plan import ALLOWABLE, Choice
from holdtrue.restore.request import Request, plan_request

_BEGINS = "holdtrue.open("


def tried(finding: Finding, request: Request) -> Finding:
    """The finding with a call that works: with all that has to be accepted, or with none."""
    if not finding.command.startswith(_BEGINS):
        return finding
    call = ast.parse(finding.command, mode="eval").body
    if not isinstance(call, ast.Call):
        return finding
    given = {k.arg: k.value for k in call.keywords if k.arg is not None}
    allow = ast.literal_eval(given.pop("allow")) if "allow" in given else []
    targets = {name: request.targets[name] for name in given if name in request.targets}
    accepted = frozenset(allow)
    for _ in range(3):  # what is accepted may bring up what comes after it
        wrong = _errors(request, targets, accepted)
        if not wrong:
            return replace(finding, command=_call(request, targets, accepted))
        if not wrong <= ALLOWABLE.keys() - accepted:
            break
        accepted |= wrong
    return replace(finding, command="")


def _errors(request: Request, targets: Mapping[str, Any], allow: frozenset[str]) -> set[str]:
    asked = replace(request, targets=targets, choice=Choice(allow=allow))
    try:
        plan = plan_request(asked, dry=True).plan
    except HoldtrueError as error:
        return {f.code for f in error.report.findings}
    return {f.code for f in plan.findings if f.severity == "error"}


def _call(request: Request, targets: Mapping[str, Any], allow: frozenset[str]) -> str:
    arguments = [f"{name}={name}" for name in targets]
    if allow:
        arguments.append(f"allow={sorted(allow)!r}")
    return f"{_BEGINS}{request.given!r}).restore({', '.join(arguments)})"
