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
from holdtrue.records.manifest import Part
from holdtrue.records.parts import ModuleState
from holdtrue.records.trust import class_name

# What wrappers and trainers put before every name; see the field's own documentation of each.
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "_forward_module.", "_fsdp_wrapped_module.",
             "state_dict.")  # fmt: skip


def foreign_targets(
    view: View, targets: Mapping[str, Any]
) -> tuple[dict[str, Part], dict[str, LazyTensor], list[Finding]]:
    """A part and its tensors for each module among the targets, and what was chosen for it."""
    found = state_dicts(view)
    parts: dict[str, Part] = {}
    tensors: dict[str, LazyTensor] = {}
    findings: list[Finding] = []
    for name, target in targets.items():
        if not isinstance(target, nn.Module):
            findings.append(_by_hand(view, name, target))
        elif found:
            chosen, prefix = _choose(name, target, found)
            parts[name] = _as_part(name, chosen, prefix, tensors)
            findings += _said(view, name, chosen, prefix)
    return parts, tensors, findings


def _choose(part: str, module: nn.Module, found: list[StateDict]) -> tuple[StateDict, str]:
    """The state dict, and the prefix to take off, that name most of the module's tensors."""
    wanted = {entry.name for entry in entries(module)}

    def score(candidate: tuple[StateDict, str]) -> tuple[int, bool, int]:
        state, prefix = candidate
        named = {n.removeprefix(prefix) for n in state.names}
        return len(wanted & named), state.path.rpartition("/")[2] == part, -len(prefix)

    return max(((state, p) for state in found for p in _prefixes(state)), key=score)


def _prefixes(state: StateDict) -> list[str]:
    """ "" and each stack of known prefixes that stands before every name."""
    stacks, stack = [""], ""
    while state.names:
        step = next((p for p in _PREFIXES if all(n.startswith(stack + p) for n in state.names)), "")
        if not step:
            break
        stack += step
        stacks.append(stack)
    return stacks


def _as_part(name: str, state: StateDict, prefix: str, tensors: dict[str, LazyTensor]) -> Part:
    """The part that holdtrue would have saved; tied names are one tensor, as in the file."""
    keys: dict[Any, str] = {}
    kept = ModuleState(training=dict(state.training))
    for full, lazy in state.names.items():
        short = full.removeprefix(prefix)
        key = keys.setdefault(_memory(lazy), f"{name}/{short}")
        tensors[key] = lazy
        kept.entries[short] = key
    return Part(kind="module", class_name=state.class_name, state=msgspec.to_builtins(kept))


def _memory(lazy: LazyTensor) -> Any:
    if len(lazy.pieces) != 1 or not lazy.pieces[0].storage.nbytes:
        return id(lazy)
    piece = lazy.pieces[0]
    return piece.storage.key, piece.offset, piece.stride, piece.shape, lazy.dtype


def _said(view: View, name: str, state: StateDict, prefix: str) -> list[Finding]:
    findings = []
    if state.path:
        findings.append(
            Finding(
                code="nested-key",
                severity="note",
                where=f"{view.path}: {state.path}",
                what=f"this is what {name!r} was restored from",
                why="of the state dicts in the file it names most of the target's tensors",
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
