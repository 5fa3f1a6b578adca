"""What the forward of a class runs and reads, told from bytecode: nothing is called.

A method counts as run when its name is mentioned in what runs already. That is more than is really
run, never less, except through names that are made up at run time.
"""

import dis
import functools
import types
from collections.abc import Iterator
from typing import Any

from msgspec import Struct
from torch import nn

from holdtrue.capture.definitions import plain_functions
from holdtrue.capture.installed import is_installed

# torch's own machinery around forward; what it mentions says nothing of the model.
_MACHINERY = (nn.Module, object)
_DYNAMIC = frozenset({"getattr", "__dict__", "vars", "__getattr__"})


class Forward(Struct, frozen=True):
    """The code behind one class's forward."""

    functions: tuple[types.FunctionType, ...]  # of user code, forward first
    base: type | None  # the nearest installed class, where its forward runs
    names: frozenset[str]  # every attribute and global that is mentioned
    changing: frozenset[str]  # attributes that are assigned
    dynamic: bool  # attributes may be read under names that are not mentioned


def forward_of(cls: type) -> Forward:
    """What runs when a module of this class is called."""
    if is_installed(cls) and is_installed(_provider(cls) or cls):
        return _of_installed(cls, getattr(cls, "forward", None))
    return _closure(cls)


@functools.lru_cache(maxsize=4096)
def _of_installed(cls: type, forward: Any) -> Forward:
    # `forward` is part of the key: it may be replaced while the process lives.
    return _closure(cls)


def _provider(cls: type) -> Any:
    for owner in cls.__mro__:
        if "forward" in vars(owner):
            return next(plain_functions(vars(owner)["forward"]), owner)
    return None


def _closure(cls: type) -> Forward:
    own: list[types.FunctionType] = []
    base: type | None = None
    names: set[str] = set()
    changing: set[str] = set()
    handed_on = False
    pending = ["forward", "__call__"]
    seen = set(pending)
    while pending:
        name = pending.pop(0)
        for function in _found(cls, name):
            if is_installed(function):
                base = _nearest_installed(cls) if name == "forward" else base
            else:
                own.append(function)
            mentioned, assigned = _mentions(function.__code__)
            handed_on = handed_on or _hands_on_self(function.__code__)
            names |= mentioned
            changing |= assigned
            fresh = sorted(n for n in mentioned if n not in seen)
            seen.update(fresh)
            pending += [n for n in fresh if _holds_function(cls, n)]
    return Forward(
        functions=tuple(own),
        base=base,
        names=frozenset(names),
        changing=frozenset(changing),
        dynamic=handed_on or not names.isdisjoint(_DYNAMIC),
    )


_OWN_STATE = ("get_extra_state", "set_extra_state", "__getstate__", "__setstate__",
              "_save_to_state_dict", "_load_from_state_dict")  # fmt: skip


def state_names(cls: type) -> frozenset[str] | None:
    """What the methods by which a user's class keeps its state mention; None for everything."""
    names: set[str] = set()
    for name in _OWN_STATE:
        for function in _found(cls, name):
            if not is_installed(function):
                names |= _mentions(function.__code__)[0]
    return None if not names.isdisjoint(_DYNAMIC) else frozenset(names)


def _found(cls: type, name: str) -> Iterator[types.FunctionType]:
    """The functions of this name: the first, and those that it reaches through super()."""
    for owner in cls.__mro__:
        if owner in _MACHINERY or name not in vars(owner):
            continue
        goes_on = False
        for function in plain_functions(vars(owner)[name]):
            yield function
            goes_on = goes_on or "__class__" in function.__code__.co_freevars
        if not goes_on:
            return


def _nearest_installed(cls: type) -> type | None:
    return next((owner for owner in cls.__mro__ if is_installed(owner)), None)


def _holds_function(cls: type, name: str) -> bool:
    return any(
        next(plain_functions(vars(owner)[name]), None) is not None
        for owner in cls.__mro__
        if owner not in _MACHINERY and name in vars(owner)
    )


_ON_SELF = frozenset({"LOAD_ATTR", "LOAD_METHOD", "STORE_ATTR", "DELETE_ATTR", "LOAD_SUPER_ATTR"})


@functools.lru_cache(maxsize=8192)
def _hands_on_self(code: types.CodeType) -> bool:
    """Whether a method gives the module itself to something else, which may read all of it."""
    if not code.co_argcount:
        return False
    instructions = [i for i in dis.get_instructions(code) if i.opname != "CACHE"]
    for i, instruction in enumerate(instructions[:-1]):
        loads_self = instruction.opname.startswith("LOAD_FAST") and (
            instruction.argval == code.co_varnames[0]
        )
        if loads_self and instructions[i + 1].opname not in _ON_SELF:
            return True
    return False


_mentioned: dict[int, tuple[types.CodeType, frozenset[str], frozenset[str]]] = {}


def _mentions(code: types.CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """Names in the code and in what is defined inside it; those that are assigned as attributes."""
    kept = _mentioned.get(id(code))
    if kept is not None:
        return kept[1], kept[2]
    names = set(code.co_names) | set(code.co_freevars)
    # `getattr(self, "scale")` mentions the name as a constant.
    names |= {c for c in code.co_consts if isinstance(c, str) and c.isidentifier()}
    stored = {i.argval for i in dis.get_instructions(code) if i.opname == "STORE_ATTR"}
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            mentioned, assigned = _mentions(inner)
            names |= mentioned
            stored |= assigned
    _mentioned[id(code)] = (code, frozenset(names), frozenset(stored))
    return _mentioned[id(code)][1:]
