"""Plans the restore of an optimizer: state by parameter name, settings by group.

The groups here are matched with the saved ones by the parameters in them. Settings of the file win,
as everywhere in torch; what that changes is reported.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from holdtrue.capture.optimizer import parameter_names
from holdtrue.doctor.amounts import counted
from holdtrue.findings import Finding, grouped
from holdtrue.formats.view import LazyTensor
from holdtrue.records.parts import OptimizerState
from holdtrue.records.trust import class_name
from holdtrue.restore.casting import dtype_findings
from holdtrue.restore.conflicts import (
    RATES,
    base_rate,
    differing_settings,
    from_code,
    moving_values,
    same,
)
from holdtrue.restore.fresh import Fresh
from holdtrue.restore.moments import Place, decode_state, without_values
from holdtrue.restore.plan import Action, Groups, Plan
from holdtrue.restore.value import by_position, decode_into

# Settings that say how a step is computed, not what: they follow the machine, not the file.
_EXECUTION = frozenset({"foreach", "fused", "capturable"})


def plan_optimizer(
    part: str,
    saved_class: str,
    state: OptimizerState,
    optimizer: torch.optim.Optimizer,
    plan: Plan,
    tensors: Fresh,
    known: Mapping[int, str],
) -> None:
    """Add to the plan what fills `optimizer`; `known` names the parameters of the target parts."""
    if class_name(type(optimizer)) != saved_class:
        plan.found(_other_class(part, saved_class, class_name(type(optimizer))))
    here = parameter_names(optimizer, known)
    saved = _saved_names(state, plan, here)
    if not _compare_parameters(part, saved, here, plan):
        return
    _by_position(part, state, saved, here, plan)
    if not _compare_shapes(part, state, optimizer, here, plan):
        return
    if isinstance(optimizer, torch.optim.LBFGS) and _order(saved) != _order(here):
        plan.found(_lbfgs_order(part))
        return
    empty = without_values(state, tensors.tensors)
    if empty:
        plan.found(_no_values(part, empty))
        return
    settings = _plan_settings(part, state, saved, optimizer, here, plan, tensors)
    kept = _plan_state(state, optimizer, here, plan, tensors)
    live = {k: v for k, v in optimizer.state.items() if not isinstance(k, Tensor)}
    shared = decode_into(state.shared, tensors, live, part, plan) if state.shared else {}
    plan.actions.append(Action(part, _attach(optimizer, settings, kept, shared)))


def _order(groups: list[list[str]]) -> list[str]:
    return [name for group in groups for name in group]


def _anonymous(groups: list[list[str]]) -> bool:
    return all(name.startswith("#") for name in _order(groups))


def _saved_names(state: OptimizerState, plan: Plan, here: list[list[str]]) -> list[list[str]]:
    """The saved groups under the target's names; by position where one side has no model."""
    named = [[plan.renamed.get(n, n) for n in g.params] for g in state.groups]
    alike = bool(_order(here)) and [len(g) for g in named] == [len(g) for g in here]
    if alike and (_anonymous(here) or _anonymous(named)):
        return here
    return named


def _by_position(
    part: str, state: OptimizerState, saved: list[list[str]], here: list[list[str]], plan: Plan
) -> None:
    """Say so where parameters are matched by their place: shapes cannot tell two alike apart."""
    nameless = [n for n in _order(here) if n.startswith("#") and n in _order(saved)]
    if saved is here:
        nameless = _order(here)
    if not nameless:
        return
    in_file = any(not n.startswith("#") for group in state.groups for n in group.params)
    plan.found(
        by_position(
            part,
            f"{counted(len(nameless), 'parameter')} of this optimizer "
            f"{'is matched by its' if len(nameless) == 1 else 'are matched by their'} position",
            why="the file knows their names, but the model that has them is not among the targets"
            if in_file
            else "the file has no names for them: it was saved without the model",
            fix="give the model to the same restore(), so that names are known"
            if in_file
            else "give the model to the same save() and restore(), so that names are known; until "
            "then keep the parameters in the saved order",
        )
    )


def _compare_parameters(
    part: str, saved: list[list[str]], here: list[list[str]], plan: Plan
) -> bool:
    old, new = set(_order(saved)), set(_order(here))
    ok = True
    if new - old:
        ok &= plan.found(
            grouped(
                "optimizer-params-missing",
                "error",
                f"the file has no place for {counted(len(new - old), 'parameter')} of this "
                "optimizer",
                sorted(new - old),
                why="they were added, unfrozen or renamed since; torch would match by position",
                fix="give the model to the same restore(), so that names are known, or start them "
                'fresh: allow=["optimizer-params-missing"]',
            )
        )
    if old - new:
        ok &= plan.found(
            grouped(
                "optimizer-params-unexpected",
                "error",
                f"{counted(len(old - new), 'parameter')} of the saved optimizer "
                f"{'is' if len(old - new) == 1 else 'are'} not in this one",
                sorted(old - new),
                why="they were frozen, removed or renamed since",
                fix='drop their state: allow=["optimizer-params-unexpected"]',
            )
        )
    return ok


def _compare_shapes(
    part: str,
    state: OptimizerState,
    optimizer: torch.optim.Optimizer,
    here: list[list[str]],
    plan: Plan,
) -> bool:
    """A state of another shape loads, and fails or spreads out at the next step."""
    saved = dict(zip(_order(here), _order(_saved_by_file(state, here, plan)), strict=True))
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    wrong = [
        f"{part}: {name}, saved {state.shapes[old]}, here {list(parameter.shape)}"
        for parameter, (name, old) in zip(parameters, saved.items(), strict=True)
        if name not in plan.skipped
        and old in state.state
        and not torch.nn.parameter.is_lazy(parameter)
        and list(parameter.shape) != state.shapes.get(old, list(parameter.shape))
    ]
    if wrong:
        plan.found(
            grouped(
                "optimizer-shapes",
                "error",
                f"{counted(len(wrong), 'parameter')} of this optimizer "
                f"{'has' if len(wrong) == 1 else 'have'} another shape than the saved "
                f"{'one' if len(wrong) == 1 else 'ones'}",
                wrong,
                why="without the model they are matched by position, and the order has changed"
                if _anonymous(here)
                else "the state belongs to parameters of another shape",
                fix="give the model to the same restore(), so that names are known",
            )
        )
    return not wrong


def _plan_settings(
    part: str,
    state: OptimizerState,
    saved: list[list[str]],
    optimizer: torch.optim.Optimizer,
    here: list[list[str]],
    plan: Plan,
    tensors: Fresh,
) -> list[dict[str, Any]]:
    """For each group here, the settings it will have from the file."""
    home = {name: i for i, names in enumerate(saved) for name in names}
    # Each group decodes its own copy: a group that was split must not share a tensor learning rate.
    chosen: list[dict[str, Any]] = []
    matched = Groups(len(saved), [], [])
    plan.groups[id(optimizer)] = matched
    differing: list[str] = []
    drifted: list[str] = []  # rates that the code may have changed, or the training itself
    regrouped = {frozenset(g) for g in saved if g} != {frozenset(g) for g in here if g}
    for i, (group, names) in enumerate(zip(optimizer.param_groups, here, strict=True)):
        sources = sorted({home[n] for n in names if n in home})
        if not names and i < len(saved) and not saved[i]:
            sources = [i]  # a group without parameters is matched by its place
        fresh = Fresh(tensors.tensors, tensors.agreed)
        found = [
            decode_into(state.groups[j].settings, fresh, group, f"{part}.groups[{j}]", plan)
            for j in sources
        ]
        if len(found) > 1 and any(not _alike(found[0], f) for f in found[1:]):
            plan.found(_merged(part, i, sources))
            found = []
        settings = dict(found[0]) if found else {}
        if _other_device(names, group, plan, tensors):
            settings = {k: v for k, v in settings.items() if k not in _EXECUTION}
        at = f"{part}.groups[{i}]"
        for key in differing_settings(settings, group):
            differing.append(f"{at}.{key}: saved {settings[key]!r}, here {group[key]!r}")
            if plan.choice.code_wins:
                del settings[key]
        rates = base_rate(settings), base_rate(group)
        if "lr" in settings and not same(*rates):
            scheduled = "initial_lr" in settings
            places = differing if scheduled or plan.choice.code_wins else drifted
            places.append(f"{at}.{'initial_lr' if scheduled else 'lr'}: "
                          f"saved {rates[0]!r}, here {rates[1]!r}")  # fmt: skip
            if plan.choice.code_wins:
                matched.base_changed = True
                settings = {k: v for k, v in settings.items() if k not in RATES}
        matched.here.append(moving_values(group))
        matched.sources.append(sources)
        matched.settled.append("lr" in settings)
        chosen.append({k: _beside(group.get(k), v) for k, v in settings.items()})
    if drifted:
        plan.found(_rates_from_file(drifted))
    if differing and plan.choice.code_wins:
        plan.found(from_code(differing))
    elif differing:
        plan.found(
            grouped(
                "settings-from-file",
                "warning",
                "settings of the optimizer differ; those of the file are used",
                differing,
                why="the groups were divided anew, and each takes what its parameters had"
                if regrouped
                else "the code was changed since the save; a resume goes on as it was",
                fix='to use the code\'s: on_conflict="code"',
            )
        )
    return chosen


def _beside(live: Any, value: Any) -> Any:
    """A tensor learning rate goes where the one here is."""
    both = isinstance(live, Tensor) and isinstance(value, Tensor)
    return value.to(live.device) if both else value


def _alike(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)


def _other_device(names: list[str], group: Mapping[str, Any], plan: Plan, tensors: Fresh) -> bool:
    back = {new: old for old, new in plan.renamed.items()}
    for name, parameter in zip(names, group["params"], strict=True):
        lazy = tensors.tensors.get(back.get(name, name))
        if lazy is not None:
            return bool(lazy.device.partition(":")[0] != parameter.device.type)
    return False


def _plan_state(
    state: OptimizerState,
    optimizer: torch.optim.Optimizer,
    here: list[list[str]],
    plan: Plan,
    tensors: Fresh,
) -> dict[Tensor, Any]:
    """parameter → its new state; tensors in it are filled later, by the plan's copies."""
    positions = dict(zip(_order(here), _order(_saved_by_file(state, here, plan)), strict=False))
    kept: dict[Tensor, Any] = {}
    differing: list[tuple[str, LazyTensor, str]] = []
    for group, names in zip(optimizer.param_groups, here, strict=True):
        for parameter, name in zip(group["params"], names, strict=True):
            old = positions.get(name, name)
            node = state.state.get(old)
            if name in plan.skipped and parameter in optimizer.state:
                # A parameter that keeps its value keeps the moments that belong to it.
                kept[parameter] = optimizer.state[parameter]
            if node is None or name in plan.skipped:
                continue
            at = Place(parameter, group, state.dtypes.get(old), plan, tensors, differing)
            live = optimizer.state.get(parameter, {})
            kept[parameter] = decode_state(node, live, old, at)
    for finding in dtype_findings(differing):
        plan.found(finding)
    return kept


def _saved_by_file(state: OptimizerState, here: list[list[str]], plan: Plan) -> list[list[str]]:
    """For each name here, in order, the name under which the file keeps its state."""
    renamed = _saved_names(state, plan, here)
    if renamed is here:
        return [g.params for g in state.groups]
    back = {plan.renamed.get(n, n): n for g in state.groups for n in g.params}
    return [[back.get(n, n) for n in names] for names in here]


def _attach(
    optimizer: torch.optim.Optimizer,
    settings: list[dict[str, Any]],
    kept: dict[Tensor, Any],
    shared: dict[Any, Any],
) -> Callable[[], Callable[[], None]]:
    def do() -> Callable[[], None]:
        attributes = dict(vars(optimizer))
        before = [dict(group) for group in optimizer.param_groups]
        groups, state = list(optimizer.param_groups), dict(optimizer.state)

        def undo() -> None:
            vars(optimizer).clear()
            vars(optimizer).update(attributes)
            for group, old in zip(groups, before, strict=True):
                group.clear()
                group.update(old)
            optimizer.param_groups[:] = groups
            optimizer.state.clear()
            optimizer.state.update(state)

        try:
            for group, new in zip(optimizer.param_groups, settings, strict=True):
                for key, value in new.items():
                    group[key] = value
            optimizer.state.clear()
            optimizer.state.update(kept)
            optimizer.state.update(shared)
            # Fills in settings that an older torch did not have, as load_state_dict does.
            optimizer.__setstate__({"state": optimizer.state, "param_groups": groups})
        except BaseException:
            undo()
            raise
        return undo

    return do


def _other_class(part: str, saved: str, here: str) -> Finding:
    return Finding(
        code="class-changed",
        severity="error",
        where=part,
        what="this optimizer is of another class than the saved one",
        why="the state of one is not the state of the other: moments, steps and settings differ",
        fix="build the optimizer that was saved, start fresh by leaving this part out, or accept "
        'it where the two are akin: allow=["class-changed"]',
        saved=saved,
        expected=here,
    )


def _rates_from_file(places: list[str]) -> Finding:
    return grouped(
        "settings-from-file",
        "note",
        "learning rates differ; those of the file are used",
        places,
        why="without a schedule nothing tells whether the code was changed, or the training "
        "lowered them itself",
        fix='to use the code\'s: on_conflict="code"',
    )


def _merged(part: str, group: int, sources: list[int]) -> Finding:
    return Finding(
        code="optimizer-groups-merged",
        severity="error",
        where=f"{part}.groups[{group}]",
        what=f"its parameters come from groups {sources} of the file, whose settings differ",
        why="one group can have one learning rate, weight decay, … only",
        fix="build the groups as they were saved, or keep the code's settings for this one: "
        'allow=["optimizer-groups-merged"]',
    )


def _no_values(part: str, empty: list[str]) -> Finding:
    return grouped(
        "values-missing",
        "error",
        f"{counted(len(empty), 'tensor')} of the optimizer "
        f"{'has' if len(empty) == 1 else 'have'} no values in the file",
        [f"{part}: {name}" for name in empty],
        why="they were on the meta device when saved: a shape and a dtype, no numbers",
        fix="save the optimizer once it has values, or leave this one as it is: "
        'allow=["values-missing"]',
    )


def _lbfgs_order(part: str) -> Finding:
    return Finding(
        code="optimizer-order-changed",
        severity="error",
        where=part,
        what="LBFGS was saved with its parameters in another order",
        why="it keeps one flat vector over all parameters, which cannot be taken apart by name",
        fix="give the parameters in the saved order, or start this optimizer fresh",
    )
