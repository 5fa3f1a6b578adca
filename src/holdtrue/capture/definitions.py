"""Where functions and classes of user code are defined: their files, parsed once a process."""

import ast
import functools
import inspect
import linecache
import sys
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msgspec import Struct

from holdtrue.records.syntax_tree import parse_file, tree_hash


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


def function_definition(code: types.CodeType, namespace: dict[str, Any]) -> Definition | None:
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


_definitions: dict[int, Definition] = {}  # by the id of their node, which they hold


def _defined(node: Any, file: SourceFile) -> Definition:
    """Asked at each save, of files that are parsed once: made once for each node."""
    if id(node) not in _definitions:
        _definitions[id(node)] = _define(node, file)
    return _definitions[id(node)]


def _define(node: Any, file: SourceFile) -> Definition:
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


_trees: dict[int, tuple[Definition, str]] = {}  # by the id of their node, which is held


def class_tree(definition: Definition) -> str:
    """The hash of what is written there, made once for each definition."""
    node = id(definition.node)
    if node not in _trees:
        _trees[node] = definition, tree_hash(definition.node, {})
    return _trees[node][1]


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


def file_name(module: str, path: str) -> str:
    """A file's name within its project: from its module, so that no directory of this machine is
    told."""
    if module in ("__main__", None) or path.startswith("<"):
        name = Path(path).name
        return name if name.endswith(".py") else "main.py"
    stem = module.replace(".", "/")
    return f"{stem}/__init__.py" if Path(path).name == "__init__.py" else f"{stem}.py"
