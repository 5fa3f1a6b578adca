"""Records are equal only to themselves; tests compare what they tell."""

from typing import Any

from holdtrue.records.inert import Record


def told(value: Any) -> Any:
    """A small acyclic value with each record as what it holds."""
    if isinstance(value, Record):
        parts = (value.args, value.kwargs, value.state, value.items)
        return ("record", value.class_name, *map(told, parts))
    if isinstance(value, dict):
        return {key: told(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(told(item) for item in value)
    return value
