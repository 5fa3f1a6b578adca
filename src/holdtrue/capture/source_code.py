"""The code of a model: which functions its forward runs, their text, and what they refer to.

Taken from the live functions, so that a method that was replaced at run time is seen as it is. Only
files are read and parsed; nothing of the model is called.
"""

import ast
import builtins
import functools
import inspect
import linecache
import os
import re
import sys
import sysconfig
import textwrap
import types
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from msgspec import Struct

from holdtrue.records.architecture import PROJECT, FunctionRecord
from holdtrue.records.syntax_tree import TEXT_CHARACTERS, global_chains, parse_file, tree_hash
from holdtrue.records.trust import class_name

_LIBRARIES = tuple(
    os.path.realpath(sysconfig.get_path(name)) + os.sep
    for name in ("stdlib", "platstdlib", "purelib", "platlib")
)
_INSTALLED = re.compile(r"[\\/](site|dist)-packages[\\/]")


class Definition(Struct, frozen=True):
    """Where a function or class stands in its file, and what stands there."""

    node: Any
    line: int
    text: str
    path: str  # on this machine; never kept
    names: frozenset[str] = frozenset()  # of a class: all that it mentions


class SourceFile(Struct, frozen=True):
    """A parsed source file."""

    path: str
    lines: list[str]
    functions: dict[int, list[Any]]  # first line, decorators included → nodes
    classes: dict[str, Any]  # qualified name → node
    statements: list[Any]


_files: dict[str, SourceFile | None] = {}
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


def plain_functions(value: Any) -> Iterator[types.FunctionType]:
    """The Python functions behind a class attribute: methods, properties and their kin."""
    candidates: tuple[Any, ...]
    if isinstance(value, property):
        candidates = (value.fget, value.fset)
    elif isinstance(value, staticmethod | classmethod):
        candidates = (value.__func__,)
    elif isinstance(value, functools.cached_property | functools.partialmethod):
        candidates = (value.func,)
    else:
        candidates = (value,)
    for candidate in candidates:
        function: Any = candidate
        if hasattr(candidate, "__wrapped__"):
            wrapped: Any = candidate
            function = inspect.unwrap(wrapped)
        if isinstance(function, types.FunctionType):
            yield function


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
    found = _find(code, namespace)
    chains = tuple(global_chains(found.node)) if found is not None else ()
    _static[id(code)] = (code, found, chains)
    return found, chains


def _find(code: types.CodeType, namespace: dict[str, Any]) -> Definition | None:
    file = source_file(code.co_filename, namespace)
    if file is None:
        return None
    nodes = file.functions.get(code.co_firstlineno, [])
    nodes = [n for n in nodes if getattr(n, "name", "<lambda>") == code.co_name]
    if len(nodes) > 1:  # several lambdas in one line
        columns = {start for _, _, start, _ in code.co_positions() if start}
        nodes = [n for n in nodes if any(n.col_offset <= c <= n.end_col_offset for c in columns)]
    if not nodes:
        return None
    return _defined(nodes[0], file)


def _defined(node: Any, file: SourceFile) -> Definition:
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
    if isinstance(node, ast.Lambda):
        return Definition(node, first, ast.unparse(node), file.path)
    names = frozenset(n.id for n in ast.walk(node) if isinstance(n, ast.Name))
    return Definition(node, first, statement_text(node, file), file.path, names)


def statement_text(node: Any, file: SourceFile) -> str:
    """A statement as it stands in its file, decorators included, moved to the left."""
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
    return textwrap.dedent("".join(file.lines[first - 1 : node.end_lineno]))


def class_definition(cls: type) -> Definition | None:
    """Where a class of user code is defined; None where its source is not to be found."""
    module = sys.modules.get(cls.__module__)
    path = getattr(module, "__file__", None)
    file = source_file(path, vars(module)) if path and module else None
    if file is None:  # a notebook: through one of its methods
        functions = [f for v in vars(cls).values() for f in plain_functions(v)]
        files = [source_file(f.__code__.co_filename, f.__globals__) for f in functions]
        file = next((f for f in files if f and cls.__qualname__ in f.classes), None)
    node = file.classes.get(cls.__qualname__) if file else None
    return _defined(node, file) if node is not None and file is not None else None


def source_file(path: str, namespace: dict[str, Any] | None = None) -> SourceFile | None:
    """A file of user code, parsed once; None where it is not to be had or not Python."""
    if path not in _files:
        lines = linecache.getlines(path, namespace)
        tree = parse_file("".join(lines)) if lines else None
        if tree is None:
            return None  # not remembered: a notebook's cell may come yet
        _files[path] = _index(path, lines, tree)
    return _files[path]


def _index(path: str, lines: list[str], tree: ast.Module) -> SourceFile:
    functions: dict[int, list[Any]] = {}
    classes: dict[str, Any] = {}
    pending: list[tuple[Any, str]] = [(tree, "")]
    while pending:
        node, prefix = pending.pop()
        inner = prefix
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
            functions.setdefault(first, []).append(node)
            inner = f"{prefix}{getattr(node, 'name', '<lambda>')}.<locals>."
        elif isinstance(node, ast.ClassDef):
            classes.setdefault(prefix + node.name, node)
            inner = f"{prefix}{node.name}."
        pending.extend((child, inner) for child in ast.iter_child_nodes(node))
    return SourceFile(path, lines, functions, classes, tree.body)


def is_installed_module(module: types.ModuleType) -> bool:
    home = getattr(module, "__file__", None)
    if home is None:  # __main__ of a shell is the user's; what is built in is not
        return module.__name__ != "__main__"
    return _in_library(home)


def is_installed(item: Any) -> bool:
    """True for a class or function of the standard library or of an installed package."""
    if isinstance(item, types.FunctionType):
        path = item.__code__.co_filename
        if not path.startswith("<"):
            return _in_library(path)
    module = sys.modules.get(getattr(item, "__module__", None) or "")
    return module is not None and is_installed_module(module)


@functools.cache
def _in_library(path: str) -> bool:
    real = os.path.realpath(path)
    return bool(_INSTALLED.search(real)) or real.startswith(_LIBRARIES)


@functools.cache
def distribution_of(package: str) -> tuple[str, str] | None:
    """(distribution, version) of an installed top-level package."""
    try:
        return package, metadata.version(package)
    except metadata.PackageNotFoundError:
        pass
    # Reads the file lists of all distributions, so only for packages that are called otherwise.
    names = metadata.packages_distributions().get(package)
    return (names[0], metadata.version(names[0])) if names else None


def file_name(module: str, path: str) -> str:
    """A file's name within its project: from its module, so that no directory of this machine is
    told."""
    if module in ("__main__", None) or path.startswith("<"):
        name = Path(path).name
        return name if name.endswith(".py") else "main.py"
    stem = module.replace(".", "/")
    return f"{stem}/__init__.py" if Path(path).name == "__init__.py" else f"{stem}.py"
