"""What a proof of resuming says: which state no part has, and where the steps differ for it."""

import functools
import random
import re
import types
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from holdtrue.capture.parts import RNG
from holdtrue.findings import Confidence, Finding, several
from holdtrue.runs.held_state import shown
from holdtrue.runs.outside import GRADIENTS, Unit
from holdtrue.runs.traces import Deviation

_VARIABLE = re.compile(r"__(?:globals|closure)__\['(\w+)'\]\Z")  # of the step or its functions
# What is forgotten → what it is called, and how it is kept.
_KINDS: tuple[tuple[Any, str, str], ...] = (
    (
        (torch.Generator, np.random.Generator, np.random.RandomState, np.random.BitGenerator),
        "a generator of random numbers of its own; a checkpoint has the global ones only",
        "give the generator to the Run as a part",
    ),
    (
        random.Random,
        "a generator of random numbers of its own; a checkpoint has the global ones only",
        "give the random.Random to the Run as a part",
    ),
    (
        functools._lru_cache_wrapper,
        "a cache: what it answers depends on what was asked before",
        "do not cache what changes while training, or empty the cache when a training begins",
    ),
    (
        torch.optim.lr_scheduler.LRScheduler,
        "a scheduler that is no part of the run begins anew",
        "give the scheduler to the Run as a part",
    ),
)
_ITERATOR = (
    "an iterator: its position is in no part, and it begins anew in a new process",
    "take the batch by the number of the step, or give the Run a loader that keeps its position",
)
_OTHER = (
    "training changes it and reads it again, and it is in no part of the run",
    "keep it in a part: a dict, a list, or an object with state_dict and load_state_dict",
)
_ATTRIBUTE = (
    "a plain attribute of a part: modules keep parameters and buffers, and what a class gives "
    "in get_extra_state",
    "make it a buffer (register_buffer), or give it in get_extra_state and set_extra_state",
)
_GRADIENT = (
    "gradients are left over from the step before and added to; a checkpoint has none",
    "call optimizer.zero_grad() before backward(), or save where no gradient is pending",
)


def not_captured(
    units: Sequence[Unit], deviation: Deviation, proof: str, confidence: Confidence = "certain"
) -> Finding:
    """One state that is in no part. Its units are what it consists of."""
    # One whose change can be seen says more than one that holds another object.
    unit = min(units, key=lambda u: (shown(u.then) == shown(u.now), len(u.path)))
    mechanism, fix = _kind(unit)
    places = tuple(u.path for u in units)
    return Finding(
        code="state-not-captured",
        severity="error",
        where=unit.path,
        places=several(places),
        what="the training depends on state that no part of the run has",
        why=f"{mechanism}; {deviation}. {proof}",
        fix=fix,
        saved=shown(unit.then),
        expected=shown(unit.now),
        confidence=confidence,
    )


def as_part(units: Sequence[Unit], parts: Sequence[str]) -> str:
    """The keywords of a Run that has this state too; "" for what cannot be a part as it is."""
    variable = _VARIABLE.search(units[0].group)
    owners = [unit.held.owner for unit in units if unit.held.owner is not None]
    moving = any(hasattr(type(o), "__next__") or callable(o) for o in owners)
    if variable is None or not owners or moving or units[0].path.endswith(".grad"):
        return ""
    name = variable[1]
    part = name if name != RNG and name not in parts else f"{name}_too"
    return ", ".join([*(f"{p}={p}" for p in parts), f"{part}={name}"])


def _kind(unit: Unit) -> tuple[str, str]:
    if unit.group == GRADIENTS:
        return _GRADIENT
    owner = unit.held.owner
    for value in (owner, unit.then):
        for kind, mechanism, fix in _KINDS:
            if isinstance(value, kind):
                return mechanism, fix
        if hasattr(type(value), "__next__") or isinstance(value, types.GeneratorType):
            return _ITERATOR
    if isinstance(owner, torch.nn.Module) and unit.path.startswith("run.parts"):
        return _ATTRIBUTE
    return _OTHER


def differs(deviation: Deviation, why: str, fix: str, confidence: Confidence = "likely") -> Finding:
    """The steps differ, and what for is not known for certain."""
    return Finding(
        code="resume-differs",
        severity="error",
        where=f"step {deviation.step}: {deviation.place}",
        what="the same steps give another result after a resume",
        why=f"{why}; {deviation}",
        fix=fix,
        saved=deviation.saved,
        expected=deviation.here,
        confidence=confidence,
    )


def not_deterministic(deviation: Deviation, source: str, fix: str) -> Finding:
    """The steps differ from themselves, so no resume can be exact."""
    why = (
        f"they depend on {source}: with that held still they repeat exactly"
        if source
        else "all state that is in reach was put back, and it went another way; it is none of the "
        "clock, the system's entropy and threads, so something out of reach moves on: a file that "
        "the step writes, an iterator, another process, the network"
    )
    return Finding(
        code="not-deterministic",
        severity="error",
        where=f"step {deviation.step}: {deviation.place}",
        what="the same steps from the same state give another result each time",
        why=f"{why}; {deviation}",
        fix=fix,
        saved=deviation.saved,
        expected=deviation.here,
        confidence="certain" if source else "likely",
    )
