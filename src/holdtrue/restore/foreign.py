"""Files that others wrote, as targets for a restore: which of their state dicts is meant.

Only what is certain and loses nothing is done by itself: descending to a nested state dict, and
taking a wrapper's prefix off every name. Both are said in the report.
"""

from collections.abc import Mapping
from typing import Any

import msgspec
from torch import nn

from holdtrue.capture.module import entries
from holdtrue.doctor.state_dicts import StateDict, state_dicts
from holdtrue.findings import Finding
from holdtrue.formats.view import LazyTensor, View
from holdtrue.records.inert import Record
from holdtrue.records.manifest import Part
from holdtrue.records.parts import ModuleState
from holdtrue.records.trust import class_name
from holdtrue.restore.candidates import Candidate, Chosen, assign, memory, weigh
from holdtrue.restore.foreign_training import training_parts
from holdtrue.restore.plan import Choice, Plan, renamer


def foreign_targets(
    view: View, targets: Mapping[str, Any], source: Mapping[str, str], choice: Choice
) -> tuple[dict[str, Part], dict[str, LazyTensor], list[Finding]]:
    """A part and its tensors for each module among the targets, and what was chosen for it."""
    found = state_dicts(view)
    parts: dict[str, Part] = {}
    tensors: dict[str, LazyTensor] = {}
    findings = [_no_target(name) for name in source if name not in targets]
    weighed: dict[str, list[Candidate]] = {}
    training, noted = training_parts(view, targets, tensors)
    parts |= training
    findings += noted
    for name, target in targets.items():
        if name in training:
            continue
        if not isinstance(target, nn.Module):
            findings.append(_by_hand(view, name, target))
        elif not found:
            findings.append(_no_state_dict(view, name))
        else:
            shapes = {entry.name: _shape(entry.tensor) for entry in entries(target)}
            rename = renamer(Plan(choice), name)
            weighed[name] = [weigh(name, state, shapes, rename) for state in found]
    for name, chosen in assign(weighed, source).items():
        if isinstance(chosen, Chosen):
            state, prefix = chosen.candidate.state, chosen.candidate.prefix
            parts[name] = _as_part(name, state, prefix, tensors)
            findings += _said(view, name, chosen)
        else:
            findings.append(chosen)
    return parts, tensors, findings


def _shape(tensor: Any) -> tuple[int, ...] | None:
    """None where any shape fits: before the first batch of a lazy module."""
    return None if nn.parameter.is_lazy(tensor) else tuple(tensor.shape)


def _as_part(name: str, state: StateDict, prefix: str, tensors: dict[str, LazyTensor]) -> Part:
    """The part that holdtrue would have saved; tied names are one tensor, as in the file."""
    keys: dict[Any, str] = {}
    kept = ModuleState(training=dict(state.training))
    for full, lazy in state.names.items():
        short = full.removeprefix(prefix)
        key = keys.setdefault(memory(lazy), f"{name}/{short}")
        tensors[key] = lazy
        kept.entries[short] = key
    return Part(kind="module", class_name=state.class_name, state=msgspec.to_builtins(kept))


def _said(view: View, name: str, chosen: Chosen) -> list[Finding]:
    state, prefix = chosen.candidate.state, chosen.candidate.prefix
    findings = []
    if state.path:
        findings.append(
            Finding(
                code="nested-key",
                severity="note",
                where=f"{view.path}: {state.path}",
                what=f"this is what {name!r} was restored from",
                why=chosen.why,
            )
        )
    if prefix:
        findings.append(
            Finding(
                code="prefix-removed",
                severity="note",
                where=f"{view.path}: {state.path or 'the top'}",
                what=f"{prefix!r} was taken off every name",
                why="a wrapper (DataParallel, DDP, torch.compile, a trainer) put it there",
            )
        )
    return findings


def _by_hand(view: View, name: str, target: Any) -> Finding:
    return Finding(
        code="part-foreign",
        severity="error",
        where=name,
        what=f"a {class_name(type(target))} cannot be restored from a {view.format} file",
        why="the file does not say which parameter is which, nor what it was built from; "
        "only modules are restored by name",
        fix=f'{name}.load_state_dict(holdtrue.open(path)["{name}"]), if the order is the same',
    )


def _no_target(name: str) -> Finding:
    return Finding(
        code="source-unused",
        severity="error",
        where=f"source[{name!r}]",
        what="no target has this name",
        why="source says for each target which state dict of the file is meant",
        fix=f"restore({name}=…, source=…), or leave it out of source",
    )


def _no_state_dict(view: View, name: str) -> Finding:
    held = _contents(view)
    return Finding(
        code="part-missing",
        severity="error",
        where=name,
        what=f"the file holds no state dict for {name!r}",
        why=f"it holds {held}",
        fix="name the file that the model was saved to; `holdtrue inspect` shows what is in this "
        'one; or leave the target as it is: allow=["part-missing"]',
    )


def _contents(view: View) -> str:
    """What stands at the top of a tree without state dicts, in words."""
    tree = view.tree
    if not isinstance(tree, dict) or _is_optimizer(tree):
        return _described(tree)
    shown = [f"{str(key)[:40]!r} ({_described(value)})" for key, value in list(tree.items())[:6]]
    more = f" and {len(tree) - 6} more" if len(tree) > 6 else ""
    return ", ".join(shown) + more if shown else "an empty dict"


def _described(value: Any) -> str:
    if _is_optimizer(value):
        return "an optimizer's state"
    if isinstance(value, LazyTensor):
        return f"a tensor of shape {list(value.shape)}"
    if isinstance(value, Record):
        return f"an object of {value.class_name[:80]}"
    return "nothing" if value is None else f"a value of type {type(value).__name__}"


def _is_optimizer(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() >= {"state", "param_groups"}
