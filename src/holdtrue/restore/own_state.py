"""Plans the restore of what modules keep by code of their own, beside parameters and buffers."""

import contextlib
import copy
from collections.abc import Callable
from typing import Any

from torch import nn

from holdtrue.capture.module import (
    INTERNALS,
    has_custom_state,
    has_extra_state,
    has_getstate,
    restored_state,
    walk,
)
from holdtrue.findings import Finding, grouped
from holdtrue.records.parts import CustomState, ModuleState
from holdtrue.restore.fresh import Fresh, decode_value
from holdtrue.restore.memento import remember_attributes
from holdtrue.restore.plan import Action, Plan
from holdtrue.restore.value import decode_into


def plan_own_state(
    part: str, state: ModuleState, module: nn.Module, plan: Plan, tensors: Fresh
) -> None:
    targets = dict(walk(module))
    kinds = {type(m): m for m in targets.values()}.values()
    if not (state.extra or state.custom or state.getstate or any(map(_keeps_own, kinds))):
        return
    homeless: list[str] = []
    extra = [f"{part}/{p} (extra state)" for p, m in targets.items()
             if has_extra_state(m) and p not in state.extra]  # fmt: skip
    if extra:
        plan.found(_extra_missing(extra, plan.written_by))
    odd = [f"{part}/{p}: {', '.join(own_entries(m))}" for p, m in targets.items()
           if has_custom_state(m) and p not in state.custom and own_entries(m)]  # fmt: skip
    if odd:
        plan.found(_not_carried(odd))
    lacking = [f"{part}/{p} (__getstate__)" for p, m in targets.items()
                if has_getstate(m) and p not in state.getstate]  # fmt: skip
    # No state dict of anyone's has what __getstate__ gives: it is for pickling the module whole.
    if lacking and plan.written_by == "holdtrue":
        plan.found(
            grouped(
                "missing-keys",
                "error",
                "the file lacks the state of their own that modules here have",
                lacking,
                why="the class has changed since, or another one was saved",
                fix='build the model that was saved, or keep their state: allow=["missing-keys"]',
            )
        )
    for path, node in state.extra.items():
        owner = targets.get(path)
        if owner is None or not has_extra_state(owner):
            homeless.append(f"{part}/{path} (extra state)")
            continue
        value = decode_into(node, tensors, None, f"{part}/{path}", plan)
        plan.actions.append(Action(f"{part}/{path}", _set_extra(owner, value)))
    for path, custom in state.custom.items():
        owner = targets.get(path)
        if owner is None or not has_custom_state(owner):
            homeless.append(f"{part}/{path} (its own state_dict)")
            continue
        plan.actions.append(Action(f"{part}/{path}", _load_custom(owner, path, custom, tensors)))
    for path, node in state.getstate.items():
        owner = targets.get(path)
        if owner is None or not has_getstate(owner):
            homeless.append(f"{part}/{path} (__getstate__)")
            continue
        value = decode_into(node, tensors, dict(vars(owner)), f"{part}/{path}", plan)
        plan.actions.append(Action(f"{part}/{path}", _set_state(owner, value)))
    if homeless:
        plan.found(
            grouped(
                "unexpected-keys",
                "error",
                "modules here cannot take the state of their own that was saved",
                homeless,
                why="the class was changed since, or is another one",
                fix='use the class that was saved, or leave it out: allow=["unexpected-keys"]',
            )
        )


def _keeps_own(module: nn.Module) -> bool:
    """Whether modules of this class keep something by code of their own."""
    return has_extra_state(module) or has_custom_state(module) or has_getstate(module)


def _set_extra(owner: nn.Module, value: Any) -> Callable[[], Callable[[], None]]:
    def do() -> Callable[[], None]:
        before, attributes = copy.deepcopy(owner.get_extra_state()), _remember_own(owner)

        def undo() -> None:
            with contextlib.suppress(Exception):  # its own code; the attributes come back anyway
                owner.set_extra_state(before)
            attributes()

        return _guarded(lambda: owner.set_extra_state(value), undo)

    return do


def _remember_own(owner: nn.Module) -> Callable[[], None]:
    """The way back for a module's own attributes. Parameters are no concern: they are filled last,
    when nothing can fail any more."""
    return remember_attributes(owner, without=INTERNALS)


def _guarded(act: Callable[[], object], undo: Callable[[], None]) -> Callable[[], None]:
    try:
        act()
    except BaseException:
        undo()
        raise
    return undo


def _load_custom(
    owner: nn.Module, path: str, custom: CustomState, tensors: Fresh
) -> Callable[[], Callable[[], None]]:
    values = {k: decode_value(n, tensors, path=f"{path}.{k}")[0] for k, n in custom.entries.items()}

    def load(odd: dict[str, Any]) -> None:
        # The module's own loader wants the whole local state; what is standard stays as it is,
        # and is filled bit by bit afterwards.
        standard = {
            k: v
            for k, v in (*owner._parameters.items(), *owner._buffers.items())
            if v is not None and k not in owner._non_persistent_buffers_set
        }
        local = {**{k: v.detach().clone() for k, v in standard.items()}, **odd}
        missing: list[str] = []
        unexpected: list[str] = []
        errors: list[str] = []
        metadata = {"version": custom.version}
        owner._load_from_state_dict(local, "", metadata, True, missing, unexpected, errors)
        if errors or missing or unexpected:
            raise ValueError("; ".join([*errors, *missing, *unexpected]))

    def do() -> Callable[[], None]:
        before: dict[str, Any] = {}
        owner._save_to_state_dict(before, "", False)
        kept = copy.deepcopy({k: v for k, v in before.items() if k in values})
        attributes = _remember_own(owner)

        def undo() -> None:
            with contextlib.suppress(Exception):  # its own code; the attributes come back anyway
                load(kept)
            attributes()

        return _guarded(lambda: load(values), undo)

    return do


def _set_state(owner: nn.Module, value: Any) -> Callable[[], Callable[[], None]]:
    def do() -> Callable[[], None]:
        live: Any = owner
        undo = _remember_own(owner)
        return _guarded(lambda: live.__setstate__(restored_state(owner, value)), undo)

    return do


def any_custom_state(module: nn.Module) -> bool:
    """Whether some module keeps entries that are neither its parameters nor its buffers."""
    return any(has_custom_state(m) and own_entries(m) for _, m in walk(module))


def own_entries(module: nn.Module) -> list[str]:
    """The names of what a `_save_to_state_dict` of its own writes beside the standard entries."""
    own: dict[str, Any] = {}
    module._save_to_state_dict(own, "", True)
    standard = {**module._parameters, **module._buffers}
    return [k for k, v in own.items() if standard.get(k) is not v and k != "_extra_state"]


def _extra_missing(places: list[str], written_by: str) -> Finding:
    foreign = written_by != "holdtrue"
    return grouped(
        "missing-keys",
        "error",
        "the file lacks the extra state of modules here",
        places,
        why="get_extra_state() computes it by code of the class, which is not run to read a file"
        if foreign
        else "the class has changed since, or another one was saved",
        fix='keep the extra state that they have here: allow=["missing-keys"]'
        if foreign
        else 'build the model that was saved, or keep their extra state: allow=["missing-keys"]',
    )


def _not_carried(places: list[str]) -> Finding:
    return grouped(
        "state-not-carried",
        "error",
        "modules here keep state that nothing in the file is restored to",
        places,
        why="their class writes entries of its own (packed or quantised weights, say), which are "
        "neither parameters nor buffers",
        fix="load a state dict by torch itself, model.load_state_dict(…), or restore into the "
        'model before its conversion, or leave it as it is: allow=["state-not-carried"]',
    )
