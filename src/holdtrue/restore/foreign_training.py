"""Optimizers, schedulers and scalers of files that others wrote, as parts of our own.

An optimizer state is taken over where it is known which parameter is which: the file names them,
or the moments' shapes are found in order in the model of the same file. torch would match by
position alone. Nothing is guessed: what is not certain stays with the caller.
"""

from collections.abc import Mapping
from typing import Any

import msgspec
import torch
from torch import nn

from holdtrue.capture.live_training import live_training
from holdtrue.capture.tensors import tensor_set
from holdtrue.capture.values import ValueEncoder
from holdtrue.doctor.live_training import LiveTraining
from holdtrue.doctor.optimizer_classes import same_kind
from holdtrue.doctor.optimizer_match import Matched, matched, pair
from holdtrue.doctor.optimizer_states import parameter_shape
from holdtrue.doctor.training_state import SavedTraining, saved_training
from holdtrue.findings import Finding
from holdtrue.formats.tree_walk import name_of
from holdtrue.formats.view import LazyTensor, View
from holdtrue.records.manifest import Part
from holdtrue.records.parts import GroupState, OptimizerState
from holdtrue.records.trust import class_name
from holdtrue.records.values import TAG


def training_parts(
    view: View, targets: Mapping[str, Any], tensors: dict[str, LazyTensor]
) -> tuple[dict[str, Part], list[Finding]]:
    """A part for each target that goes on with a training, where that is certain.

    Their tensors are added to `tensors`. The findings say what each is filled from.
    """
    parts: dict[str, Part] = {}
    findings: list[Finding] = []
    if all(isinstance(target, nn.Module) for target in targets.values()):
        return parts, findings
    saved, live = saved_training(view), live_training(targets)
    for match in matched(saved, live):
        part = _optimizer_part(match, live, saved, targets, tensors)
        if part is not None:
            parts[match.live.target] = part
            findings.append(_taken(view, match))
    for name, state in _plain_states(saved, live):
        node = _encoded(name, state, tensors)
        if node is not None:
            parts[name] = Part(
                kind="value",
                class_name=class_name(type(targets[name])),
                state={
                    TAG: "object",
                    "class": class_name(type(targets[name])),
                    "via": "state_dict",
                    "state": node,
                },
            )
    return parts, findings


def _plain_states(saved: SavedTraining, live: LiveTraining) -> list[tuple[str, dict[Any, Any]]]:
    """Schedulers and scalers with the state that is meant for each, where the class is the same."""
    schedulers = pair([s.target for s in live.schedulers], [s.path for s in saved.schedulers])
    found: list[tuple[str, dict[Any, Any]]] = []
    for scheduler in live.schedulers:
        if scheduler.target in schedulers:
            state = saved.schedulers[schedulers[scheduler.target]].state
            own = {k: v for k, v in state.items() if k in scheduler.state}
            if own.keys() >= scheduler.state.keys() - {"_is_initial", "_get_lr_called_within_step"}:
                found.append((scheduler.target, state))
    scalers = pair(live.scalers, list(saved.scalers))
    states = list(saved.scalers.values())
    found += [(target, states[place]) for target, place in scalers.items()]
    return found


def _optimizer_part(
    match: Matched,
    live: LiveTraining,
    saved: SavedTraining,
    targets: Mapping[str, Any],
    tensors: dict[str, LazyTensor],
) -> Part | None:
    """The optimizer as our own writer would have kept it; None where names are not certain."""
    names = _keys(match, live)
    if names is None or not same_kind(match):
        return None
    optimizer, target = targets[match.live.target], match.live.target
    dtypes = {f"{t}/{n}": str(lazy.dtype) for t, n, lazy in _weights(live, saved)}
    groups: list[GroupState] = []
    kept = OptimizerState(groups)
    start = 0
    for group in match.saved.groups:
        own = names[start : start + len(group.params)]
        start += len(group.params)
        node = _encoded(f"{target}/group", group.settings, tensors)
        if node is None:
            return None
        groups.append(GroupState(own, node))
        for number, name in zip(group.params, own, strict=True):
            state = match.saved.state.get(number)
            shape = parameter_shape(state)
            if shape is not None:
                kept.shapes[name] = list(shape)
            if name in dtypes:
                kept.dtypes[name] = dtypes[name]
            if isinstance(state, dict):
                node = _encoded(f"{target}/{name}", state, tensors)
                if node is None:
                    return None
                kept.state[name] = node
    if not isinstance(optimizer, torch.optim.Optimizer):
        return None
    name = class_name(type(optimizer))
    return Part(kind="optimizer", class_name=name, state=msgspec.to_builtins(kept))


def _keys(match: Matched, live: LiveTraining) -> list[str] | None:
    """Part and name for each saved parameter, as the plan knows the live ones; None in doubt."""
    homes = {name: model.target for model in live.models for name in model.shapes}
    if not homes or len(homes) != sum(len(m.shapes) for m in live.models):
        return None  # no model is given, or two have a name in common
    if None in match.names or len(set(match.names)) != len(match.names):
        return None
    first = live.models[0].target
    return [f"{homes.get(name, first)}/{name}" for name in match.names if name is not None]


def _weights(live: LiveTraining, saved: SavedTraining) -> list[tuple[str, str, LazyTensor]]:
    """(target, name, saved weight): a moment of the weight's dtype follows it to another."""
    return [
        (model.target, name, state.names[name])
        for model in live.models
        for name in model.shapes
        for state in saved.models[:1]
        if name in state.names
    ]


def _encoded(at: str, state: Mapping[Any, Any], tensors: dict[str, LazyTensor]) -> Any:
    """The value node of a flat dict, its tensors under keys of their own; None if it has none."""
    node: dict[str, Any] = {}
    for key, value in state.items():
        name = name_of(key)
        if isinstance(value, LazyTensor):
            tensors[f"{at}/{name}"] = value
            node[name] = {TAG: "tensor", "v": f"{at}/{name}"}
            continue
        into = tensor_set(at)
        node[name] = ValueEncoder(into).encode_state(value, name)
        if into.findings or name.startswith(TAG):
            return None
    return node


def _taken(view: View, match: Matched) -> Finding:
    return Finding(
        code="optimizer-by-name",
        severity="note",
        where=f"{view.path}: {match.saved.path or 'the top'}",
        what=f"this is what {match.live.target!r} is filled from, parameter by parameter",
        why="the file names them"
        if match.told
        else "the shapes of its moments are found, in order, in the model of the same file",
    )
