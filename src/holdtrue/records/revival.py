"""Putting a decoded state into a live object: the second step, taken once all is checked."""

from typing import Any

from msgspec import Struct

from holdtrue.on_demand import numpy as np


class Revival(Struct, frozen=True, kw_only=True):
    """A state to be put into a live object, once everything else has been checked."""

    target: Any
    via: str  # state_dict · setstate · dict · random · np.random · generator
    state: Any
    items: Any = None
    path: str


def set_state(target: Any, via: str, state: Any, items: Any) -> None:
    """Put a decoded state into an object, as copying protocols do."""
    if via == "state_dict":
        target.load_state_dict(state)
    elif via == "setstate":
        target.__setstate__(state)
    elif via == "random":
        target.setstate(state)
    elif via == "generator":
        target.set_state(state)
    elif via == "np.random":
        if isinstance(target, np.random.RandomState):
            target.set_state(state)
        else:
            getattr(target, "bit_generator", target).state = state
    else:
        attributes, slots = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
        if attributes:
            # Attributes set since are forgotten: the object is what it was when saved.
            target.__dict__.clear()
            target.__dict__.update(attributes)
        for name, value in (slots or {}).items():
            object.__setattr__(target, name, value)
    if isinstance(items, dict):
        dict.clear(target)
        dict.update(target, items)
    elif isinstance(items, list):
        if isinstance(target, set):
            set.clear(target)
            set.update(target, items)
        else:
            list.clear(target)
            list.extend(target, items)
