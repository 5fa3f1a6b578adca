"""The code of a model: which functions its forward runs, their text, and what they refer to.

Taken from the live functions, so that a method that was replaced at run time is seen as it is. Only
files are read and parsed; nothing of the model is called.
"""

import builtins
import functools
import inspect
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import xxhash

from holdtrue.capture.definitions import (
    Definition,
    file_name,
    function_definition,
    plain_functions,
)
from holdtrue.capture.installed import is_installed, is_installed_module
from holdtrue.records.architecture import PROJECT, FunctionRecord
from holdtrue.records.syntax_tree import TEXT_CHARACTERS, global_chains, tree_hash
from holdtrue.records.trust import class_name

_static: dict[int, tuple[types.CodeType, Definition | None, tuple[str, ...]]] = {}
_trees: dict[tuple[int, tuple[tuple[str, str], ...]], str] = {}


class SourceCode:
    """The functions of one model's project, gathered once each."""

    def __init__(self) -> None:
        self.functions: dict[str, FunctionRecord] = {}
        self.used: dict[str, set[str]] = {}  # path on disk → names at its top that are used
        self.modules: dict[str, str] = {}  # path on disk → module
        self.describe: Callable[[Any], Any] = lambda value: None  # value → attribute node
        self._keys: dict[int, str] = {}
        self._namesakes: dict[str, list[str]] = {}
        self._held: list[Any] = []

    def add_function(self, function: Any) -> str | None:
        """The key of a function of user code, recorded with what it calls; None for any other."""
        function = inspect.unwrap(function) if hasattr(function, "__wrapped__") else function
        if not isinstance(function, types.FunctionType) or is_installed(function):
            return None
        if id(function) in self._keys:
            return self._keys[id(function)]
        name = key = class_name(function)
        namesakes = self._namesakes.setdefault(name, [])
        if namesakes:
            key = f"{name}#{len(namesakes) + 1}"
        self._keys[id(function)] = key
        self._held.append(function)
        self.functions[key] = FunctionRecord()  # its place, should it call itself
        record = self._record(function)
        # Each module may hold a function of its own from one and the same line.
        for twin in namesakes:
            if self.functions[twin] == record:
                del self.functions[key]
                self._keys[id(function)] = twin
                return twin
        self.functions[key] = record
        namesakes.append(key)
        return key

    def _record(self, function: types.FunctionType) -> FunctionRecord:
        code = function.__code__
        found, chains = _definition(code, function.__globals__)
        references: dict[str, str] = {}
        constants: dict[str, Any] = {}
        for chain in chains or code.co_names:
            self._refer(chain, function, references, constants)
        defaults = {n: self.describe(v) for n, v in _defaults(function).items()}
        if found is None:
            return FunctionRecord(
                tree=_bytecode_hash(code),
                references=references,
                constants=constants,
                defaults=defaults,
            )
        self.used.setdefault(code.co_filename, set()).update(
            {function.__qualname__.partition(".")[0], *(c.partition(".")[0] for c in chains)}
        )
        self.modules.setdefault(code.co_filename, function.__module__ or "")
        spelled = _unnamed(references, constants)
        known = tuple(spelled.items())
        tree = _trees.get((id(code), known))
        if tree is None:
            tree = _trees[id(code), known] = tree_hash(found.node, spelled)
        return FunctionRecord(
            file=file_name(function.__module__, code.co_filename),
            line=found.line,
            text=found.text if len(found.text) <= TEXT_CHARACTERS else None,
            tree=tree,
            references=references,
            constants=constants,
            defaults=defaults,
        )

    def _refer(
        self,
        chain: str,
        function: types.FunctionType,
        references: dict[str, str],
        constants: dict[str, Any],
    ) -> None:
        """Put what a dotted name stands for where it belongs."""
        used, value = _resolve(chain, function)
        if used is None:
            return
        if isinstance(value, types.ModuleType):
            references[used] = value.__name__
        elif isinstance(value, type):
            references[used] = class_name(value)
            if not is_installed(value):
                self._add_class(value)
        elif inspect.isroutine(value) or isinstance(value, functools.partial | np.ufunc):
            key = self.add_function(value)
            references[used] = f"{PROJECT}{key}" if key else class_name(value)
        else:
            constants[used] = self.describe(value)

    def _add_class(self, cls: type) -> None:
        if cls in self._held:
            return
        self._held.append(cls)
        for value in vars(cls).values():
            for function in plain_functions(value):
                self.add_function(function)


def _unnamed(references: dict[str, str], constants: dict[str, Any]) -> dict[str, str]:
    """The project's own functions and constants by position: they may be renamed and moved."""
    own = [name for name, target in references.items() if target.startswith(PROJECT)]
    numbered = {name: f"project#{i}" for i, name in enumerate(own)}
    return {**references, **numbered, **{n: f"constant#{i}" for i, n in enumerate(constants)}}


def _bytecode_hash(code: types.CodeType) -> str:
    """Stands for the tree where there is no source. Bytecode differs between versions of Python."""
    parts: list[Any] = [code.co_code, code.co_names, code.co_argcount]
    for constant in code.co_consts:
        inner = isinstance(constant, types.CodeType)
        parts.append(_bytecode_hash(constant) if inner else repr(constant))
    version = f"{sys.implementation.name}-{sys.version_info[0]}.{sys.version_info[1]}"
    return f"{version}:{xxhash.xxh3_128_hexdigest(repr(parts).encode())}"


def _defaults(function: types.FunctionType) -> dict[str, Any]:
    code = function.__code__
    values = function.__defaults__ or ()
    names = code.co_varnames[: code.co_argcount][code.co_argcount - len(values) :]
    return {**dict(zip(names, values, strict=True)), **(function.__kwdefaults__ or {})}


def _resolve(chain: str, function: types.FunctionType) -> tuple[str | None, Any]:
    """(the part of a dotted name that was followed, what it stands for), without running code.

    Modules and classes are read through their `__dict__`: their `__getattr__` may be anything.
    """
    root, *rest = chain.split(".")
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=False))
    if root == "__class__":
        return None, None
    if root in cells:
        try:
            value: Any = cells[root].cell_contents
        except ValueError:  # not yet filled
            return None, None
    elif root in function.__globals__:
        value = function.__globals__[root]
    elif hasattr(builtins, root):
        return None, None
    else:
        return None, None
    used = root
    for name in rest:
        if isinstance(value, types.ModuleType):
            if is_installed_module(value) and not _is_code(vars(value).get(name)):
                break  # settings of a library, `os.environ`: the process's, not the model's
            found = vars(value).get(name, _ABSENT)
        elif isinstance(value, type):
            found = next((vars(c)[name] for c in value.__mro__ if name in vars(c)), _ABSENT)
            found = found.__func__ if isinstance(found, staticmethod | classmethod) else found
        elif isinstance(getattr(value, "__dict__", None), dict) and not callable(value):
            found = value.__dict__.get(name, _ABSENT)
        else:
            break
        if found is _ABSENT:
            break
        value, used = found, f"{used}.{name}"
    return used, value


_ABSENT = object()


def _is_code(value: Any) -> bool:
    return isinstance(value, type | types.ModuleType) or callable(value)


def _definition(
    code: types.CodeType, namespace: dict[str, Any]
) -> tuple[Definition | None, tuple[str, ...]]:
    """Where a function is defined, and the dotted names of globals in it."""
    kept = _static.get(id(code))
    if kept is not None:
        return kept[1], kept[2]
    found = function_definition(code, namespace)
    chains = tuple(global_chains(found.node)) if found is not None else ()
    _static[id(code)] = (code, found, chains)
    return found, chains
