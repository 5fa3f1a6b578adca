"""What an object gives of itself, and by which road it goes back."""

from typing import Any

import msgspec


class ObjectState(msgspec.Struct, frozen=True):
    """What an object gives of itself: `via` says by which road it goes back."""

    via: str  # state_dict · setstate · dict
    state: Any
    args: tuple[Any, ...] = ()
    items: Any = None


def take_state(value: Any) -> ObjectState:
    """An object's own state. Raises TypeError where it has none that could be put back."""
    cls = type(value)
    if callable(getattr(value, "state_dict", None)) and callable(
        getattr(value, "load_state_dict", None)
    ):
        return ObjectState("state_dict", value.state_dict())
    via = "setstate" if hasattr(cls, "__setstate__") else "dict"
    getstate: Any = cls.__getstate__
    if getstate is not object.__getstate__:
        return ObjectState(via, value.__getstate__(), (), _items(value))
    reducers: tuple[Any, Any] = (cls.__reduce__, cls.__reduce_ex__)
    if reducers != (object.__reduce__, object.__reduce_ex__):
        raise TypeError(f"{cls.__name__} can only be copied by calling {cls.__name__}.__reduce__")
    # The interpreter's own default: refuses objects whose state lives in C (locks, files, …).
    _, made, state, items, pairs = (*value.__reduce_ex__(2), None, None, None)[:5]
    content = dict(pairs) if pairs is not None else list(items) if items is not None else None
    return ObjectState(via, state, made[1:], content)


def _items(value: Any) -> Any:
    if isinstance(value, dict):
        return dict(value)
    return list(value) if isinstance(value, list | set) else None
