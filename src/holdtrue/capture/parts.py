"""From what a caller hands to `save`, by keyword, to parts and the tensors to be written."""

from collections.abc import Mapping
from typing import Any

import msgspec
import torch
from msgspec import Struct
from msgspec.structs import replace
from torch import Tensor, nn

from holdtrue.capture.architecture import CapturedArchitecture, capture_architecture
from holdtrue.capture.before import Again, CapturedBefore, unchanged
from holdtrue.capture.loader import capture_loader, is_plain_loader
from holdtrue.capture.module import capture_module, entries
from holdtrue.capture.optimizer import capture_optimizer
from holdtrue.capture.probe import PROBE, capture_probe
from holdtrue.capture.rng import capture_rng, sources
from holdtrue.capture.tensors import Source, TensorSet, finish, tensor_set
from holdtrue.capture.values import ValueEncoder
from holdtrue.findings import Finding
from holdtrue.records.manifest import Part, TensorRecord
from holdtrue.records.trust import class_name

RNG = "rng"


class Captured(Struct, frozen=True, eq=False):
    """Everything a save needs; nothing has been written, and nothing copied."""

    parts: dict[str, Part]
    tensors: dict[str, TensorRecord]  # without chunks: not yet laid out
    sources: dict[str, Source]
    findings: list[Finding]
    texts: dict[str, str]  # files of source code
    architectures: dict[str, CapturedArchitecture] = {}  # as they were made, by part
    by_part: dict[str, dict[str, Source]] = {}  # the sources
    again: frozenset[str] = frozenset()  # parts that are as they were at the save before


def known_tensors(parts: Mapping[str, Any]) -> dict[int, str]:
    """id(tensor) → "part/name" for every tensor that a module part or a top-level part holds."""
    known: dict[int, str] = {}
    # In the order of their names: a parameter of two parts is called the same at both ends, in
    # whatever order the parts are given.
    for part, value in sorted(parts.items()):
        if isinstance(value, nn.Module):
            for entry in entries(value):
                known.setdefault(id(entry.tensor), f"{part}/{entry.name}")
        elif isinstance(value, Tensor):
            known.setdefault(id(value), f"{part}/{part}")
    return known


def capture(
    parts: Mapping[str, Any],
    probe: Any = None,
    *,
    gradients: bool = False,
    before: CapturedBefore | None = None,
) -> Captured:
    """Read the state of every part, the random states, and what the probe's inputs give.

    Parts that are proved to be as they were `before` are not described again. Findings say what
    cannot be kept."""
    again = unchanged(before, parts) if before is not None and not gradients else {}
    captured = Captured({}, {}, {}, [], {}, again=frozenset(again))
    fresh = {name: value for name, value in parts.items() if name not in again}
    described_anew = any(isinstance(value, torch.optim.Optimizer) for value in fresh.values())
    known = known_tensors(parts) if described_anew else {}
    # First, and put back: a loader that is asked for its state may draw random numbers, and a save
    # must not change the training that goes on.
    drawn, states = tensor_set(RNG), {name: (s, s.get()) for name, s in sources().items()}
    rng = Part(kind="rng", state=capture_rng(drawn))
    for name, value in parts.items():
        if name in again:
            _take_again(captured, name, again[name])
            continue
        into = tensor_set(name)
        captured.parts[name] = _capture_part(name, value, known, into, gradients)
        _gather(captured, into)
        if isinstance(value, nn.Module):
            _add_architecture(captured, name, value)
    if probe is not None:
        into = tensor_set(PROBE)
        answered = capture_probe(probe, parts, into)
        if answered is not None:
            captured.parts[PROBE] = answered
        _gather(captured, into)
    for source, state in states.values():
        source.set(state)
    captured.parts[RNG] = rng
    _gather(captured, drawn)
    return captured


def _add_architecture(captured: Captured, name: str, model: nn.Module) -> None:
    """Beside the state, and never instead of it: what cannot be described does not stop a save."""
    try:
        made = capture_architecture(model)
    except Exception as error:  # descriptors and attributes of the model's own classes
        captured.findings.append(_not_described(name, error))
        return
    _place_architecture(captured, name, made)


def _take_again(captured: Captured, name: str, again: Again) -> None:
    captured.parts[name] = again.part
    captured.tensors.update(again.records)
    captured.sources.update(again.sources)
    captured.by_part[name] = again.sources
    if again.architecture is not None:
        _place_architecture(captured, name, again.architecture)


def _place_architecture(captured: Captured, name: str, made: CapturedArchitecture) -> None:
    captured.architectures[name] = made
    placed = {_free(file, text, name, captured.texts): text for file, text in made.sources.items()}
    record = replace(made.record, files=tuple(placed))
    captured.parts[name] = replace(captured.parts[name], architecture=record)
    captured.texts.update(placed)


def _free(file: str, text: str, part: str, texts: Mapping[str, str]) -> str:
    """The name for a source file; another where a part before has another text under it."""
    taken = {name.lower(): name for name in texts}
    twin = taken.get(file.lower())
    if twin is None or (twin == file and texts[twin] == text):
        return file
    folder, _, name = file.rpartition("/")
    return _free(f"{folder}/{part}.{name}", text, part, texts)


def _not_described(name: str, error: Exception) -> Finding:
    return Finding(
        code="architecture-not-recorded",
        severity="warning",
        where=name,
        what="the weights are kept, and not what the model is beside them",
        why=f"describing it raised {type(error).__name__}: {error}",
        fix="a restore cannot compare the architecture; check it by hand",
    )


def has_own_state(value: Any) -> bool:
    """True for an optimizer whose state is where torch's own methods look for it.

    One that overrides `state_dict` knows better itself, and is kept as any other object.
    """
    return isinstance(value, torch.optim.Optimizer) and (
        type(value).state_dict is torch.optim.Optimizer.state_dict
        and type(value).load_state_dict is torch.optim.Optimizer.load_state_dict
    )


def _capture_part(
    name: str, value: Any, known: Mapping[int, str], into: TensorSet, gradients: bool
) -> Part:
    cls = class_name(type(value))
    if isinstance(value, nn.Module):
        state: Any = msgspec.to_builtins(capture_module(value, into, gradients=gradients))
        return Part(kind="module", class_name=cls, state=state)
    if has_own_state(value):
        state = msgspec.to_builtins(capture_optimizer(value, known, into))
        return Part(kind="optimizer", class_name=cls, state=state)
    if is_plain_loader(value):
        return Part(kind="loader", class_name=cls, state=capture_loader(value, into))
    # A lone tensor is called like its part.
    path = name if isinstance(value, Tensor) else ""
    return Part(kind="value", class_name=cls, state=ValueEncoder(into).encode(value, path))


def _gather(captured: Captured, into: TensorSet) -> None:
    finish(into)
    captured.tensors.update(into.records)
    captured.sources.update(into.sources)
    captured.by_part[into.part] = into.sources
    captured.findings.extend(into.findings)
