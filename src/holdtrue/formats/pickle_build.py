"""BUILD: giving a made object its state, as far as that is data."""

from collections import Counter, OrderedDict
from typing import Any

from msgspec.structs import force_setattr

from holdtrue.formats.pickle_constructors import is_inert_class, is_plain_name
from holdtrue.formats.pickle_context import Context
from holdtrue.formats.pickle_numpy import set_array_state
from holdtrue.formats.pickle_tensors import set_state
from holdtrue.formats.view import LazyTensor
from holdtrue.records.inert import NamedReference, Record


def apply_state(context: Context, target: Any, state: Any, *, pending: bool) -> Any:
    """What BUILD leaves on the stack: the target, or the array that a pending one became."""
    if isinstance(target, Record):
        if pending:
            array = set_array_state(context, target, state)
            if array is not None:
                return array
        _set_record_state(context, target, state)
    elif isinstance(target, LazyTensor):
        set_state(context, target, state)
    elif isinstance(target, (OrderedDict, Counter)):
        _set_attributes(context, target, state)
    elif isinstance(target, NamedReference):
        # Loading would set attributes of a class or module that others use.
        if not (is_plain_name(target.name) and is_inert_class(target.name)):
            context.would("call", f"{target.name}.__setstate__", target)
    else:
        raise ValueError(f"BUILD on a {type(target).__name__}, which has no state")
    return target


def _set_record_state(context: Context, record: Record, state: Any) -> None:
    if record.state is None:
        force_setattr(record, "state", state)
    elif isinstance(record.state, dict) and isinstance(state, dict):
        context.spend_nodes(len(record.state) + len(state))
        force_setattr(record, "state", record.state | state)
    else:
        context.note("state-replaced", f"{record.class_name} is given its state twice")
        force_setattr(record, "state", state)


def _set_attributes(context: Context, target: Any, state: Any) -> None:
    """Attributes of a dict: a state dict carries `_metadata` so."""
    if isinstance(state, tuple) and len(state) == 2:
        state = state[0]
    if not isinstance(state, dict):
        raise ValueError("attributes that are no dict")
    for name, value in state.items():
        # An attribute called `items` would hide the method from whoever reads the tree.
        if isinstance(name, str) and not hasattr(type(target), name):
            target.__dict__[name] = value
        else:
            context.note(
                "attribute-left-out", f"an attribute of a dict is named {str(name)[:40]!r}"
            )
