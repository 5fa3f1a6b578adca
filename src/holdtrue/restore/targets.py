"""From the parts of a checkpoint and what the caller wants filled, to one plan."""

import difflib
from collections.abc import Mapping
from typing import Any

import msgspec
import torch
from torch import nn

from holdtrue.capture.parts import RNG, has_own_state, known_tensors
from holdtrue.capture.probe import PROBE
from holdtrue.findings import Finding, grouped
from holdtrue.records.manifest import Part
from holdtrue.records.parts import ModuleState, OptimizerState
from holdtrue.records.trust import class_name
from holdtrue.restore.architecture import plan_architecture
from holdtrue.restore.fresh import Fresh, unusable
from holdtrue.restore.module import plan_module
from holdtrue.restore.optimizer import plan_optimizer
from holdtrue.restore.plan import ALLOWABLE, Choice, Plan
from holdtrue.restore.value import other_class, plan_loader, plan_rng, plan_value


@torch.inference_mode(False)
def plan_restore(
    parts: Mapping[str, Part],
    tensors: Fresh,
    targets: Mapping[str, Any],
    choice: Choice,
    rng: bool,
    written_by: str = "holdtrue",
    *,
    dry: bool = False,
) -> Plan:
    """Compare every target with its part. Nothing is changed; findings are in the plan.

    A `dry` plan is not for carrying out: targets on the meta device are compared as well, and
    values that would be rounded are not measured.

    What is made here stays with the target, so it is made outside of inference mode: an optimizer
    could not step on inference tensors.
    """
    plan = Plan(choice, dry, written_by)
    _check_choice(choice, plan)
    named = any(has_own_state(target) for target in targets.values())
    known = known_tensors(targets) if named else {}  # for optimizers: no other asks for names
    held = {
        id(p): name
        for name, value in targets.items()
        if isinstance(value, torch.optim.Optimizer)
        for group in value.param_groups
        for p in group["params"]
    }
    # Modules first: the optimizers need to know how their parameters are called in the file.
    for name, target in sorted(targets.items(), key=lambda item: _order(item[1])):
        part = parts.get(name)
        if part is None:
            plan.found(_part_missing(name, [p for p in parts if p != RNG]))
        else:
            _plan_part(name, part, target, plan, tensors, known, held)
    _check_patterns(choice, parts, plan)
    if rng and RNG in parts:
        plan_rng(parts[RNG], plan, tensors)
    left = [
        name
        for name, part in parts.items()
        if name not in targets and (name != RNG or not rng) and part.kind != PROBE
    ]
    if left:
        plan.found(grouped("parts-left", "note", "parts of the file were not asked for", left))
    return plan


def _order(target: Any) -> int:
    return 0 if isinstance(target, nn.Module) else 1 if has_own_state(target) else 2


def _plan_part(
    name: str,
    part: Part,
    target: Any,
    plan: Plan,
    tensors: Fresh,
    known: Mapping[int, str],
    held: Mapping[int, str],
) -> None:
    try:
        if part.kind == "module" and isinstance(target, nn.Module):
            state = msgspec.convert(part.state, ModuleState)
            plan_architecture(name, part.architecture, target, plan)
            plan_module(name, state, target, plan, tensors, held)
        elif part.kind == "optimizer" and has_own_state(target):
            kept = msgspec.convert(part.state, OptimizerState)
            plan_optimizer(name, part.class_name or "?", kept, target, plan, tensors, known)
        elif part.kind == "loader":
            plan_loader(name, part, target, plan, tensors)
        elif part.kind == "value" and not isinstance(target, nn.Module):
            plan_value(name, part, target, plan, tensors)
        else:
            plan.found(other_class(name, part.class_name or part.kind, class_name(type(target))))
    except msgspec.ValidationError as error:
        raise unusable(name, f"part of kind {part.kind!r}: {error}") from None
    except KeyError as error:
        raise unusable(name, f"it names {error}, which the manifest does not have") from None


def _check_choice(choice: Choice, plan: Plan) -> None:
    for code in sorted(choice.allow - ALLOWABLE.keys()):
        near = difflib.get_close_matches(code, ALLOWABLE, 1)
        plan.found(
            Finding(
                code="allow-unknown",
                severity="error",
                where=f"allow=[{code!r}]",
                what="there is no such code to allow",
                why="what may be allowed: " + ", ".join(ALLOWABLE),
                fix=f"did you mean {near[0]!r}?" if near else "use one of those",
            )
        )


def _check_patterns(choice: Choice, parts: Mapping[str, Part], plan: Plan) -> None:
    """A pattern that fits nothing is a typing error, and would leave tensors out in silence."""
    if not (choice.only or choice.rename):
        return
    names = [
        f"{part}/{name}"
        for part, record in parts.items()
        if record.kind == "module"
        for name in record.state.get("entries", {})
    ]
    for pattern in choice.only:
        if pattern not in plan.used:
            plan.found(
                Finding(
                    code="only-matches-nothing",
                    severity="error",
                    where=f"only={pattern!r}",
                    what="no tensor of the models has a name like this",
                    why=_names_like(pattern, names),
                    fix='a pattern is a whole name, with * for any text: "fc.*", "model/fc.*"',
                )
            )
    for old, new in choice.rename.items():
        if old not in plan.used:
            plan.found(
                Finding(
                    code="rename-unused",
                    severity="warning",
                    where=f"rename={{{old!r}: {new!r}}}",
                    what="no stored tensor has a name like this, so nothing was renamed by it",
                    why=_names_like(old, names),
                    fix="leave the pattern out, or write it as the file has the names",
                )
            )


def _names_like(pattern: str, names: list[str]) -> str:
    """The names of the file, each subtree as one pattern."""
    plain = names if "/" in pattern else [name.partition("/")[2] for name in names]
    trees = list(dict.fromkeys(n.partition(".")[0] + ".*" * ("." in n) for n in plain))
    shown = ", ".join(trees[:8]) + (", …" if len(trees) > 8 else "")
    return f"the file has {shown or 'no models'}"


def _part_missing(name: str, present: list[str]) -> Finding:
    near = difflib.get_close_matches(name, present, 1)
    return Finding(
        code="part-missing",
        severity="error",
        where=name,
        what=f"the checkpoint has no part {name!r}",
        why=f"it holds {', '.join(present) or 'no parts'}",
        fix=(f"did you mean {near[0]!r}? Or " if near else "")
        + 'leave it as it is: allow=["part-missing"]',
    )
