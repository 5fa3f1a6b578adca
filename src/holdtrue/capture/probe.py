"""A probe: what a model answers to a small fixed input, kept beside its weights.

It finds what no record of an architecture can show: another preprocessing, a changed constant, a
kernel that rounds otherwise. The model is left exactly as it was, whatever its forward does to it.
"""

import dataclasses
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import xxhash
from msgspec import Struct
from torch import Tensor, nn

from holdtrue.capture.module import entries, unwrap
from holdtrue.capture.raw import dtype_name, raw_bytes
from holdtrue.capture.rng import sources
from holdtrue.capture.tensors import TensorSet
from holdtrue.capture.values import ValueEncoder
from holdtrue.findings import Finding
from holdtrue.limits import limits
from holdtrue.records.manifest import Part

PROBE = "probe"
_SEED = 20_240_229  # of the random states while a probe runs; any fixed number would do


class Probe(Struct, frozen=True):
    """Inputs for a module part: a tensor, a tuple of arguments, or a dict of keyword arguments.

    `part` is the module that answers, by default the first; `preprocess` names a part that is
    called with the inputs, and whose result is what the module gets.
    """

    inputs: Any
    part: str | None = None
    preprocess: str | None = None


class Answers(Struct, frozen=True):
    """What went into the module and what came out, flattened, on the CPU."""

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


def capture_probe(probe: Any, parts: Mapping[str, Any], into: TensorSet) -> Part | None:
    """Run the probe and encode it as a part. What is wrong with it is among the set's findings."""
    wanted = probe if isinstance(probe, Probe) else Probe(probe)
    given = dict(wanted.inputs) if isinstance(wanted.inputs, Mapping) else wanted.inputs
    modules = [name for name, value in parts.items() if isinstance(value, nn.Module)]
    name = wanted.part or (modules[0] if modules else "")
    if name not in modules:
        into.findings.append(_no_module(name, modules))
        return None
    if wanted.preprocess is not None and not callable(parts.get(wanted.preprocess)):
        into.findings.append(_no_preprocessing(wanted.preprocess))
        return None
    prepare = parts[wanted.preprocess] if wanted.preprocess else None
    try:
        first = answer(parts[name], given, prepare)
        second = answer(parts[name], given, prepare)
    except Exception as error:  # the model's own code
        into.findings.append(_failed(name, error))
        return None
    if not first.outputs:
        into.findings.append(_no_output(name))
        return None
    small = sum(map(_nbytes, flatten(given).values())) <= limits().probe_bytes
    state = {
        "part": name,
        "preprocess": wanted.preprocess,
        "stable": _digests(first.outputs) == _digests(second.outputs),
        "inputs": given if small else None,
        "inputs_kept": small,
        "input_digests": _digests(first.inputs),
        "outputs": _described(first.outputs),
    }
    return Part(kind=PROBE, state=ValueEncoder(into).encode(state, ""))


def answer(module: nn.Module, inputs: Any, prepare: Any = None) -> Answers:
    """Run a module in eval mode, without grad, seeded; it and the random states stay as they are.

    Wrappers are looked through: a forward of DDP would wait for other processes.
    """
    module = unwrap(module)
    device = next((e.tensor.device for e in entries(module)), torch.device("cpu"))
    with _undisturbed(module):
        if prepare is not None:
            inputs = prepare(*inputs) if isinstance(inputs, tuple) else prepare(inputs)
        inputs = _moved(inputs, device)
        kept = {k: v.detach().clone() for k, v in flatten(inputs).items()}
        # The preprocessing may draw random numbers; the model starts from the seed all the same.
        _seed_torch()
        if isinstance(inputs, Mapping):
            said = module(**inputs)
        else:
            said = module(*inputs) if isinstance(inputs, tuple) else module(inputs)
        outputs = {k: v.detach().cpu().clone() for k, v in flatten(said).items()}
    return Answers({k: v.cpu() for k, v in kept.items()}, outputs)


def flatten(value: Any, path: str = "") -> dict[str, Tensor]:
    """Every tensor, array and number in nested containers, by path."""
    if isinstance(value, Tensor):
        return {path: value}
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return {path: torch.from_numpy(value)}
    if isinstance(value, bool | int | float | complex):
        return {path: torch.tensor(value)}
    items: Any = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
    found: dict[str, Tensor] = {}
    for key, item in items:
        found.update(flatten(item, f"{path}/{key}" if path else str(key)))
    return found


def digest(tensor: Tensor) -> str:
    return xxhash.xxh3_128_hexdigest(raw_bytes(tensor))


@contextmanager
def _undisturbed(module: nn.Module) -> Iterator[None]:
    """Eval mode and a fixed seed inside; afterwards flags, attributes, buffers and random states
    are what they were."""
    owners = list(module.modules())
    attributes = [(m, dict(vars(m)), dict(m._buffers), dict(m._parameters)) for m in owners]
    buffers = [(b, b._version, b.detach().clone()) for b in module.buffers()]
    states = {name: source.get() for name, source in sources().items()}
    kinds = {b.device.type for b in module.buffers()} | {p.device.type for p in module.parameters()}
    try:
        for owner in owners:
            owner.training = False  # not eval(): a class may have its own idea of it
        _seed()
        with torch.no_grad(), _without_autocast(kinds | {"cpu"}):
            yield
    finally:
        for owner, held, own_buffers, parameters in attributes:
            vars(owner).clear()
            vars(owner).update(held)
            owner._buffers.clear()
            owner._buffers.update(own_buffers)
            owner._parameters.clear()
            owner._parameters.update(parameters)
        for buffer, before, values in buffers:
            if buffer._version != before:
                with torch.no_grad():
                    buffer.copy_(values)
        for name, source in sources().items():
            if name in states:
                source.set(states[name])


def _seed() -> None:
    random.seed(_SEED)
    np.random.seed(_SEED)
    _seed_torch()


def _seed_torch() -> None:
    # Not torch.manual_seed: that leaves a seed behind for accelerators that are not yet in use.
    torch.default_generator.manual_seed(_SEED)
    if "cuda:0" in sources():  # in use
        torch.cuda.manual_seed_all(_SEED)


@contextmanager
def _without_autocast(kinds: set[str]) -> Iterator[None]:
    before = {k: torch.is_autocast_enabled(k) for k in kinds if k != "meta"}
    for kind in before:
        torch.set_autocast_enabled(kind, False)
    try:
        yield
    finally:
        for kind, enabled in before.items():
            torch.set_autocast_enabled(kind, enabled)


def _moved(value: Any, device: torch.device) -> Any:
    """Inputs on the module's device; containers as the model's forward takes them."""
    if isinstance(value, Tensor):
        return value.detach().clone().to(device)
    if isinstance(value, dict):
        return {k: _moved(v, device) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_moved(v, device) for v in value)
    if isinstance(value, Mapping):  # transformers' BatchEncoding, say
        return {k: _moved(v, device) for k, v in value.items()}
    return value


def _digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    return {name: digest(tensor) for name, tensor in tensors.items()}


def _described(outputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """Digests of all, values of as many as the budget takes."""
    found: dict[str, Any] = {}
    left = limits().probe_bytes
    for name, tensor in outputs.items():
        left -= _nbytes(tensor)
        found[name] = {
            "digest": digest(tensor),
            "dtype": dtype_name(tensor.dtype),
            "shape": list(tensor.shape),
            "values": tensor if left >= 0 else None,
        }
    return found


def _nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.itemsize


def _no_module(name: str, modules: list[str]) -> Finding:
    return Finding(
        code="probe-failed",
        severity="error",
        where=f"probe: {name or 'no part'}",
        what="there is no module of this name to probe" if name else "there is no module to probe",
        why=f"modules among the parts: {', '.join(modules) or 'none'}",
        fix="save(..., model=model, probe=holdtrue.Probe(inputs, part='model'))",
    )


def _no_preprocessing(name: str) -> Finding:
    return Finding(
        code="probe-failed",
        severity="error",
        where=f"probe: {name}",
        what="the preprocessing is not a part that can be called",
        why="it is named as a part, so that it is kept and restored with the model",
        fix=f"save(..., {name}=preprocessing, probe=holdtrue.Probe(inputs, preprocess={name!r}))",
    )


def _failed(name: str, error: Exception) -> Finding:
    return Finding(
        code="probe-failed",
        severity="error",
        where=f"probe: {name}",
        what=f"the model raised {type(error).__name__} for the probe's inputs",
        why=str(error)[:500],
        fix="give inputs as its forward takes them: a tensor, a tuple of arguments, or a dict of "
        "keyword arguments",
    )


def _no_output(name: str) -> Finding:
    return Finding(
        code="probe-failed",
        severity="error",
        where=f"probe: {name}",
        what="the model's answer holds no tensor",
        why="outputs are compared as tensors, arrays and numbers, in containers of any depth",
        fix="probe a part whose forward returns tensors",
    )
