"""Files that others wrote, as targets for a restore: which of their state dicts is meant.

Only what is certain and loses nothing is done by itself: descending to a nested state dict, and
taking a wrapper's prefix off every name. Both are said in the report.
"""

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct, field
from torch import nn

from holdtrue.doctor.amounts import counted
from holdtrue.doctor.fit.boxes import of_one_element
from holdtrue.doctor.fit.layouts import LAYOUTS, Rewrite, find_rewrites
from holdtrue.doctor.state_dicts import StateDict, state_dicts
from holdtrue.findings import Finding, grouped
from holdtrue.formats.tree_walk import name_of
from holdtrue.formats.view import LazyTensor, View
from holdtrue.records.inert import Record
from holdtrue.records.manifest import Part
from holdtrue.records.parts import ModuleState
from holdtrue.records.trust import class_name
from holdtrue.restore.candidates import Candidate, Chosen, assign, memory, weigh
from holdtrue.restore.foreign_training import training_parts
from holdtrue.restore.places import Places
from holdtrue.restore.plan import Choice, Plan, renamer


class Foreign(Struct):
    """What each module among the targets is to be filled from, as parts and tensors of our own."""

    parts: dict[str, Part] = field(default_factory=dict)
    tensors: dict[str, LazyTensor] = field(default_factory=dict)
    chosen: dict[str, Candidate] = field(default_factory=dict)
    undecided: dict[str, str] = field(default_factory=dict)  # target → a source it could have
    lost: set[str] = field(default_factory=set)  # targets that the file has nothing for
    findings: list[Finding] = field(default_factory=list)


def foreign_targets(
    view: View, targets: Mapping[str, Any], source: Mapping[str, str], choice: Choice
) -> Foreign:
    """A part and its tensors for each module among the targets, and what was chosen for it."""
    found = state_dicts(view)
    made = Foreign(findings=[_no_target(name) for name in source if name not in targets])
    weighed: dict[str, list[Candidate]] = {}
    training, noted = training_parts(view, targets, made.tensors)
    made.parts |= training
    made.findings += noted
    for name, target in targets.items():
        if name in training:
            continue
        if not isinstance(target, nn.Module):
            made.findings.append(_by_hand(view, name, target))
            made.lost.add(name)
        elif not found:
            packed = _packed_names(view.tree)
            here = any("quantized" in type(m).__module__ for m in target.modules())
            differs = packed and not here
            made.findings.append(
                _quantised(name, packed) if differs else _no_state_dict(view, name)
            )
            made.lost.add(name)
        else:
            places = Places.of(target)
            rename = renamer(Plan(choice), name)
            weighed[name] = [
                weigh(name, state, places.shapes, rename, places.needed) for state in found
            ]
    for name, chosen in assign(weighed, source).items():
        if isinstance(chosen, Chosen):
            made.chosen[name] = chosen.candidate
            names = _laid_out(made, name, targets[name], choice)
            made.parts[name] = _as_part(name, chosen.candidate.state, names, made.tensors)
            made.findings += _said(view, name, chosen)
        else:
            made.findings.append(chosen.finding)
            made.undecided[name] = chosen.source
            made.lost.add(name)
    return made


def _laid_out(made: Foreign, name: str, target: nn.Module, choice: Choice) -> dict[str, LazyTensor]:
    """The tensors under the names that the plan gets, rewritten where the caller allows it."""
    candidate = made.chosen[name]
    names = {candidate.naming(old): lazy for old, lazy in candidate.state.names.items()}
    rename = renamer(Plan(choice), name)
    renamed = {rename(old): (old, lazy) for old, lazy in names.items()}
    places = Places.of(target)
    turned = of_one_element({new: lazy for new, (_, lazy) in renamed.items()}, places.shapes)
    for new, lazy in turned.items():
        names[renamed[new][0]] = lazy
    if turned:
        made.findings.append(_one_element(name, list(turned)))
    allowed = choice.allow & LAYOUTS
    if not allowed:
        return names
    rewrites = find_rewrites(
        {new: lazy for new, (_, lazy) in renamed.items()},
        places.shapes,
        conv1d=places.conv1d,
        matrices=places.matrices,
        parameters=places.parameters,
    )
    for rewrite in rewrites:
        # What is made has the target's name already, which no pattern may change again.
        if rewrite.code in allowed and all(rename(new) == new for new in rewrite.made):
            for new in rewrite.sources:
                names.pop(renamed[new][0])
            names |= rewrite.made
            made.findings.append(_rewritten(name, rewrite))
    return names


def _as_part(
    name: str, state: StateDict, names: Mapping[str, LazyTensor], tensors: dict[str, LazyTensor]
) -> Part:
    """The part that holdtrue would have saved; tied names are one tensor, as in the file."""
    keys: dict[Any, str] = {}
    kept = ModuleState(training=dict(state.training))
    for short, lazy in names.items():
        key = keys.setdefault(memory(lazy), f"{name}/{short}")
        tensors[key] = lazy
        kept.entries[short] = key
    return Part(kind="module", class_name=state.class_name, state=msgspec.to_builtins(kept))


def _said(view: View, name: str, chosen: Chosen) -> list[Finding]:
    state, naming = chosen.candidate.state, chosen.candidate.naming
    where = f"{view.path}: {state.path or 'the top'}"
    findings = []
    if state.path:
        findings.append(
            Finding(
                code="nested-key",
                severity="note",
                where=f"{view.path}: {state.path}",
                what=f"this is what {name!r} is filled from",
                why=chosen.why,
            )
        )
    taken = [*(f"{c + '.'!r}" for c in naming.inside), *([repr(naming.off)] if naming.off else [])]
    if taken:
        findings.append(
            Finding(
                code="prefix-removed",
                severity="note",
                where=where,
                what=f"{' and '.join(taken)} {'are' if len(taken) > 1 else 'is'} taken off the "
                "names by itself",
                why="a wrapper (DataParallel, DDP, torch.compile, a trainer) put it there",
            )
        )
    if naming.on:
        findings.append(
            Finding(
                code="prefix-added",
                severity="note",
                where=where,
                what=f"{naming.on!r} is put before every name by itself",
                why="the target holds the saved model as a child; nothing else of it is left",
            )
        )
    return findings


def _one_element(name: str, turned: list[str]) -> Finding:
    return grouped(
        "shape-mismatch",
        "note",
        f"{counted(len(turned), 'tensor')} of one element, with and without a dimension",
        [f"{name}/{new}" for new in turned],
        why="the one number is put where the target has it, by itself",
    )


def _rewritten(name: str, rewrite: Rewrite) -> Finding:
    return Finding(
        code=rewrite.code,
        severity="note",
        where=f"{name}/{next(iter(rewrite.made))}",
        what=f"{', '.join(rewrite.sources)[:200]} laid out as {', '.join(rewrite.made)[:200]}",
        why="the same numbers, stored another way; it was allowed",
    )


def _by_hand(view: View, name: str, target: Any) -> Finding:
    return Finding(
        code="part-foreign",
        severity="error",
        where=name,
        what=f"a {class_name(type(target))} cannot be restored from a {view.format} file",
        why="modules are restored by name; an optimizer, a scheduler or a scaler where its class "
        "is the same and it is certain which parameter is which; nothing else is",
        fix=f'{name}.load_state_dict(holdtrue.open(path)["{name}"]), if it is what was saved',
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


def _packed_names(tree: Any) -> list[str]:
    """Keys under which torch keeps packed quantised weights: at the top, or one dict below."""
    found: list[str] = []
    for place in (tree, *(tree.values() if isinstance(tree, dict) else ())):
        if isinstance(place, dict):
            found += [k for k in place if isinstance(k, str) and "_packed_params" in k]
    return found


def _quantised(name: str, packed: list[str]) -> Finding:
    return Finding(
        code="quantisation-differs",
        severity="error",
        where=f"{name}/{packed[0]}",
        what="the weights are quantised in the file and floating point in the model",
        why=f"torch packs them into objects of its own ({', '.join(packed[:3])[:200]})",
        fix="quantise the model in the same way before restoring, or save the weights before they "
        "are quantised",
        saved="quantised",
        expected="floating point",
    )


def _contents(view: View) -> str:
    """What stands at the top of a tree without state dicts, in words."""
    tree = view.tree
    if not isinstance(tree, dict) or _is_optimizer(tree):
        return _described(tree)
    shown = [
        f"{name_of(key)[:40]!r} ({_described(value)})" for key, value in list(tree.items())[:6]
    ]
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
