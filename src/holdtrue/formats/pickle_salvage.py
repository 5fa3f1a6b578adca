"""The tree of a pickle that breaks off: what the stacks hold, put together as far as it is known.

A pickler writes a container before its contents, so what is open when the bytes end is a chain
from the top of the tree down to the last value.
"""

from collections import deque
from typing import Any

from holdtrue.formats.pickle_build import apply_state
from holdtrue.formats.pickle_containers import add_elements, add_pairs, extend
from holdtrue.formats.pickle_context import Context
from holdtrue.formats.view import LazyTensor
from holdtrue.records.inert import NamedReference, Record


def close_stacks(context: Context, metastack: list[list[Any]], stack: list[Any]) -> Any:
    """One value from stacks that STOP never closed. None where nothing was built."""
    levels = [*metastack, stack]
    while len(levels) > 1:
        items = levels.pop()
        _attach(context, levels[-1], _join(context, items))
    rest = _join(context, levels[0])
    return rest[0] if len(rest) == 1 else (rest or None)


def _join(context: Context, stack: list[Any]) -> list[Any]:
    """Without marks: dict key value, list element, object state; taken together from the top."""
    held = list(stack)
    while len(held) >= 2:
        target, value = held[-2], held[-1]
        if isinstance(target, list):
            target.append(value)
            del held[-1]
        elif isinstance(target, Record) and target.state is None and isinstance(value, dict):
            apply_state(context, target, value, pending=False)
            del held[-1]
        elif len(held) >= 3 and isinstance(held[-3], dict) and isinstance(target, str):
            add_pairs(context, held[-3], [target, value])
            del held[-2:]
        elif isinstance(target, dict):
            del held[-1]  # a key whose value never came
        else:
            break
    return held


def _attach(context: Context, below: list[Any], items: list[Any]) -> None:
    """Give what stood above a mark to the container beneath it."""
    target = below[-1] if below else None
    if isinstance(target, dict):
        whole = items[: len(items) - len(items) % 2]
        add_pairs(context, target, whole)
    elif isinstance(target, (list, deque)):
        extend(context, target, items)
    elif isinstance(target, set):
        add_elements(context, target, [item for item in items if not isinstance(item, list)])
    elif isinstance(target, Record) and target.items is None and len(items) % 2 == 0:
        add_pairs(context, target, items)
    else:
        # The tuple of arguments of a call that never came: keep what a tree could be made of.
        below.extend(
            item for item in items if isinstance(item, (dict, list, Record)) or _is_tensor(item)
        )
        while below and isinstance(below[-1], NamedReference):
            below.pop()


def _is_tensor(value: Any) -> bool:
    return isinstance(value, LazyTensor) and not (value.class_name or "").endswith("Storage")
