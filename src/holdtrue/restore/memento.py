"""The way back for an object, whatever its own methods do before they fail."""

import contextlib
import copy
from collections import deque
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from torch import Tensor

from holdtrue.capture.objects import take_state
from holdtrue.limits import limits
from holdtrue.records.revival import Revival, set_state

Undo = Callable[[], None]


def remember(revival: Revival) -> Undo:
    """Takes the target's state now; the function returned puts it back."""
    target, via = revival.target, revival.via
    if via == "generator":
        state = target.get_state()
    elif via == "random":
        state = target.getstate()
    elif via == "np.random":
        legacy = isinstance(target, np.random.RandomState)
        bits = getattr(target, "bit_generator", target)
        state = target.get_state(legacy=False) if legacy else copy.deepcopy(bits.state)
    elif via == "state_dict":
        return _both(target, copy.deepcopy(target.state_dict()))
    else:
        return _attributes(target)
    return lambda: set_state(target, via, state, None)


def remember_attributes(target: Any, without: Collection[str]) -> Undo:
    """Puts all attributes back, and what is in them, but for the content of those in `without`."""
    attributes = dict(vars(target))
    inside = _contents({k: v for k, v in attributes.items() if k not in without}, set(), 0)

    def undo() -> None:
        _refill_dict(vars(target), attributes)
        inside()

    return undo


def _both(target: Any, state: Any) -> Undo:
    """By its own method, which may reach into C or other objects; then the attributes themselves.

    Its method alone was rejected: it has just failed once, and it makes new lists of equal content
    where others may hold the old ones.
    """
    attributes = _attributes(target)

    def undo() -> None:
        with contextlib.suppress(Exception):
            target.load_state_dict(state)
        attributes()

    return undo


def _attributes(target: Any) -> Undo:
    undos: list[Undo] = []
    slots: dict[str, Any] = {}
    if hasattr(target, "__dict__"):
        undos.append(_contents(vars(target), set(), 0))
    with contextlib.suppress(TypeError):
        state = take_state(target).state if not hasattr(target, "state_dict") else None
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):
            slots = state[1]
    if isinstance(target, dict | list | set | deque):
        undos.append(_contents(target, set(), 0))

    def undo() -> None:
        for back in undos:
            back()
        for name, value in slots.items():
            object.__setattr__(target, name, value)

    return undo


def _contents(value: Any, seen: set[int], depth: int) -> Undo:
    """Puts the present content back into a container or array, and into those inside it."""
    if id(value) in seen or depth > limits().value_depth:
        return _nothing
    seen.add(id(value))
    if isinstance(value, Tensor | np.ndarray):
        return _numbers(value)
    put: Callable[[Any, Any], None]
    kept: Any
    if isinstance(value, dict):
        inside, put, kept = list(value.values()), _refill_dict, dict(value)
    elif isinstance(value, list | deque | set):
        inside, put, kept = list(value), _refill, list(value)
    elif isinstance(value, tuple):
        inside, put, kept = list(value), _leave, None
    else:
        return _nothing
    undos = [_contents(item, seen, depth + 1) for item in inside]

    def undo() -> None:
        put(value, kept)
        for back in undos:
            back()

    return undo


def _numbers(value: Any) -> Undo:
    if isinstance(value, np.ndarray):
        kept = value.copy()
        return lambda: np.copyto(value, kept)
    copied, version = value.detach().clone(), value._version

    def undo() -> None:
        if value._version != version:
            value.detach().copy_(copied)

    return undo


def _refill_dict(into: Any, kept: Any) -> None:
    dict.clear(into)
    dict.update(into, kept)


def _refill(into: Any, kept: Any) -> None:
    into.clear()
    into.update(kept) if isinstance(into, set) else into.extend(kept)


def _leave(into: Any, kept: Any) -> None:
    """A tuple cannot change; what it holds can."""


def _nothing() -> None:
    """For what cannot change."""
