"""Plans the restore of a module: names, shapes, dtypes, ties and flags compared, then filled."""

import contextlib
import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from holdtrue.capture.module import (
    INTERNALS,
    Entry,
    entries,
    has_custom_state,
    has_extra_state,
    has_getstate,
    restored_state,
    walk,
)
from holdtrue.capture.raw import dtype_name
from holdtrue.findings import Finding
from holdtrue.formats.view import LazyTensor
from holdtrue.records.parts import CustomState, ModuleState
from holdtrue.restore.casting import dtype_findings
from holdtrue.restore.fresh import Fresh, decode_value
from holdtrue.restore.memento import remember_attributes
from holdtrue.restore.place import plan_tensor
from holdtrue.restore.plan import Action, Plan, grouped, renamer, selects
from holdtrue.restore.ties import plan_ties
from holdtrue.restore.value import decode_into


def plan_module(
    part: str,
    state: ModuleState,
    module: nn.Module,
    plan: Plan,
    tensors: Fresh,
    held: Mapping[int, str],
) -> None:
    """Add to the plan what fills `module`; `held` names tensors that optimizers hold, by id."""
    every = {e.name: e for e in entries(module)}
    target = {n: e for n, e in every.items() if selects(plan, part, n)}
    plan.skipped.update(f"{part}/{n}" for n in every.keys() - target.keys())
    saved = _renamed(part, state, plan)
    chosen = {n: k for n, k in saved.items() if selects(plan, part, n)}
    _compare_names(part, chosen, target, tensors, plan)
    matched = {n: k for n, k in chosen.items() if n in target}
    _compare_shapes(part, matched, target, tensors, plan)
    plan_ties(part, matched, target, tensors, plan, held)
    _plan_entries(part, matched, target, tensors, plan)
    if not plan.choice.only:
        _plan_flags(state, module, plan)
        _plan_extras(part, state, module, plan, tensors)


def _renamed(part: str, state: ModuleState, plan: Plan) -> dict[str, str]:
    """The saved tensors by the names that the caller gives them."""
    rename = renamer(plan, part)
    saved: dict[str, str] = {}
    homes: dict[str, str] = {}
    colliding: list[str] = []
    for old, key in state.entries.items():
        new = rename(old)
        if new in saved and saved[new] != key:
            colliding.append(f"{part}/{old} and {part}/{homes[new]} both become {new}")
        saved[new], homes[new] = key, old
        # Of tied names the first, which is the one that `known_tensors` takes.
        plan.renamed.setdefault(key, f"{part}/{new}")
    if colliding:
        plan.found(
            grouped(
                "rename-collides",
                "error",
                "two stored tensors are given one name",
                colliding,
                why="one place can take one tensor only",
                fix="write the patterns of rename more closely",
            )
        )
    return saved


def _compare_names(
    part: str,
    saved: Mapping[str, str],
    target: Mapping[str, Entry],
    tensors: Fresh,
    plan: Plan,
) -> None:
    covered = {id(target[n].tensor) for n in saved if n in target}
    missing = [e for n, e in target.items() if n not in saved and id(e.tensor) not in covered]
    for entry in missing:
        plan.skipped.add(f"{part}/{entry.name}")
    lacking = [f"{part}/{e.name}" for e in missing if e.persistent]
    if lacking:
        plan.found(
            grouped(
                "missing-keys",
                "error",
                f"the file lacks {len(lacking)} of the {len(target)} tensors of the target",
                lacking,
                why="they would keep the values they happen to have",
                fix='map their names with rename={"old.*": "new.*"}, or keep them as they are: '
                'allow=["missing-keys"]',
            )
        )
    volatile = [f"{part}/{e.name}" for e in missing if not e.persistent]
    if volatile:
        plan.found(
            grouped(
                "buffers-kept",
                "note",
                f"{len(volatile)} buffers that are not part of the state keep their values",
                volatile,
                why="the target declares them non-persistent, and the file does not have them",
            )
        )
    left = [n for n in saved if n not in target]
    known = [f"{part}/{n}" for n in left if tensors.tensors[saved[n]].persistent]
    if known:
        plan.found(
            grouped(
                "unexpected-keys",
                "error",
                f"the target has no place for {len(known)} of the {len(saved)} stored tensors",
                known,
                why="the file was written by another architecture, or under other names",
                fix='map their names with rename={"old.*": "new.*"}, or leave them out: '
                'allow=["unexpected-keys"]',
            )
        )


def _compare_shapes(
    part: str,
    matched: dict[str, str],
    target: Mapping[str, Entry],
    tensors: Fresh,
    plan: Plan,
) -> None:
    wrong: list[str] = []
    differing: list[tuple[str, LazyTensor, str]] = []
    for name, key in list(matched.items()):
        lazy, tensor = tensors.tensors[key], target[name].tensor
        lazy_target = torch.nn.parameter.is_lazy(tensor)
        if lazy.layout == "uninitialized" and lazy_target:
            del matched[name]
        elif lazy.layout == "uninitialized":
            wrong.append(f"{part}/{name}: saved before its first batch, here {_shape(tensor)}")
        elif not lazy_target and tuple(tensor.shape) != lazy.shape:
            wrong.append(f"{part}/{name}: saved {list(lazy.shape)}, here {_shape(tensor)}")
        elif not lazy_target and tensor.device.type == "meta":
            plan.found(_on_meta(f"{part}/{name}"))
        elif lazy.layout == "quantized" or tensor.is_quantized:
            continue  # compared as a whole, with its scheme
        elif not lazy_target and dtype_name(tensor.dtype) != lazy.dtype:
            differing.append((f"{part}/{name}", lazy, dtype_name(tensor.dtype)))
            continue
        else:
            continue
        if name in matched:
            plan.skipped.add(f"{part}/{name}")
            del matched[name]
    if wrong:
        plan.found(
            grouped(
                "shape-mismatch",
                "error",
                f"{len(wrong)} tensors have another shape here",
                wrong,
                why="the model was built with other sizes: classes, vocabulary, channels or layers",
                fix="build the target with the saved sizes, or keep its own values: "
                'allow=["shape-mismatch"]',
            )
        )
    for finding in dtype_findings(differing):
        plan.found(finding)


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)


def _plan_entries(
    part: str,
    matched: Mapping[str, str],
    target: Mapping[str, Entry],
    tensors: Fresh,
    plan: Plan,
) -> None:
    filled: set[int] = set()
    thawed: list[str] = []
    for name, key in matched.items():
        entry, lazy = target[name], tensors.tensors[key]
        if id(entry.tensor) in filled:
            continue
        filled.add(id(entry.tensor))
        plan_tensor(f"{part}/{name}", key, entry, plan, tensors)
        wanted = lazy.requires_grad
        if entry.is_parameter and lazy.parameter and entry.tensor.requires_grad != wanted:
            thawed.append(f"{part}/{name}: requires_grad={wanted}")
            plan.actions.append(Action(f"{part}/{name}", _set_requires_grad(entry.tensor, wanted)))
    if thawed:
        plan.found(
            grouped(
                "requires-grad-restored",
                "note",
                f"{len(thawed)} parameters are frozen or trained again as they were",
                thawed,
            )
        )


def _set_requires_grad(tensor: Tensor, wanted: bool) -> Callable[[], Callable[[], None]]:
    def do() -> Callable[[], None]:
        before = tensor.requires_grad
        tensor.requires_grad_(wanted)
        return lambda: void(tensor.requires_grad_(before))

    return do


def void(_: object) -> None:
    """Drops a value, where a function must return nothing."""


def _plan_flags(state: ModuleState, module: nn.Module, plan: Plan) -> None:
    wanted: list[tuple[nn.Module, bool]] = []
    for path, owner in walk(module, wrappers=True):
        at = path
        while at and at not in state.training:
            at = at.rpartition(".")[0]
        if at in state.training and owner.training != state.training[at]:
            wanted.append((owner, state.training[at]))

    def do() -> Callable[[], None]:
        before = [(owner, owner.training) for owner, _ in wanted]
        for owner, flag in wanted:
            owner.training = flag

        def undo() -> None:
            for owner, flag in before:
                owner.training = flag

        return undo

    if wanted:
        plan.actions.append(Action("training flags", do))


def _plan_extras(
    part: str, state: ModuleState, module: nn.Module, plan: Plan, tensors: Fresh
) -> None:
    targets = dict(walk(module))
    homeless: list[str] = []
    lacking = [f"{part}/{p} (extra state)" for p, m in targets.items()
               if has_extra_state(m) and p not in state.extra]  # fmt: skip
    lacking += [f"{part}/{p} (__getstate__)" for p, m in targets.items()
                if has_getstate(m) and p not in state.getstate]  # fmt: skip
    if lacking:
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


def _set_extra(owner: nn.Module, value: Any) -> Callable[[], Callable[[], None]]:
    def do() -> Callable[[], None]:
        before, attributes = copy.deepcopy(owner.get_extra_state()), remember_own(owner)

        def undo() -> None:
            with contextlib.suppress(Exception):  # its own code; the attributes come back anyway
                owner.set_extra_state(before)
            attributes()

        return _guarded(lambda: owner.set_extra_state(value), undo)

    return do


def remember_own(owner: nn.Module) -> Callable[[], None]:
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
        attributes = remember_own(owner)

        def undo() -> None:
            with contextlib.suppress(Exception):  # its own code; the attributes come back anyway
                load(kept)
            attributes()

        return _guarded(lambda: load(values), undo)

    return do


def _set_state(owner: nn.Module, value: Any) -> Callable[[], Callable[[], None]]:
    def do() -> Callable[[], None]:
        live: Any = owner
        undo = remember_own(owner)
        return _guarded(lambda: live.__setstate__(restored_state(owner, value)), undo)

    return do


def _on_meta(where: str) -> Finding:
    return Finding(
        code="target-on-meta",
        severity="error",
        where=where,
        what="the target is on the meta device: there is no memory to fill",
        why="a module built under torch.device('meta') has shapes and no storage",
        fix='model.to_empty(device="cpu") before restoring',
    )
