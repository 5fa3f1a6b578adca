"""The syntax tree of a function without what cannot change what it computes.

Left out: comments, docstrings, annotations, assertions, prints and log calls, `pass`, the names of
local variables, and how a global is spelled (`F.relu` and `relu` may be one function). Default
arguments are left out too: they are compared by value. The text is parsed, never compiled or run.
"""

import ast
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import xxhash

TEXT_CHARACTERS = 100_000  # of one function; a longer one is data rather than code
# Statements that only tell a person something.
_TALKING = frozenset({"print", "warn", "warn_once", "warning", "warning_once", "debug", "info",
                      "log"})  # fmt: skip
_TALKERS = frozenset({"print", "logger", "log", "_log", "_logger", "logging", "warnings"})
_IGNORED = frozenset({"annotation", "returns", "type_comment", "type_params", "ctx", "kind"})
_NAMED = (ast.ExceptHandler, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.MatchAs,
          ast.MatchStar)  # fmt: skip


def tree_hash(node: ast.AST, references: Mapping[str, str]) -> str:
    """xxh3-128 of the normalised tree, the same for every version of Python."""
    return xxhash.xxh3_128_hexdigest(normalised(node, references).encode())


def normalised(node: ast.AST, references: Mapping[str, str]) -> str:
    """The tree as one line of text; `references` says what the names of globals stand for."""
    in_class = isinstance(node, ast.ClassDef)
    return _Normaliser(local_names(node), references, in_class).text(node, top=True)


def parse_file(text: str) -> ast.Module | None:
    """The tree of a file; None where it is not Python that we can read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd literals, which are not our business
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def parse(text: str) -> ast.AST | None:
    """The function or class in a dedented text; None where it is not Python that we can read."""
    tree = parse_file(text) if len(text) <= TEXT_CHARACTERS else None
    body = tree.body if tree is not None else []
    if len(body) != 1:
        return None
    statement = body[0]
    # The text of a lambda is kept as an expression.
    return statement.value if isinstance(statement, ast.Expr) else statement


def global_chains(function: ast.AST) -> list[str]:
    """The longest dotted names in a function that do not start with a local variable, in order."""
    local = local_names(function)
    found: dict[str, None] = {}
    pending: list[ast.AST] = [function]
    while pending:
        node = pending.pop()
        name = dotted(node)
        if name is None:
            pending.extend(reversed(list(ast.iter_child_nodes(node))))
        elif name.partition(".")[0] not in local:
            found.setdefault(name)
    return list(found)


def local_names(function: ast.AST) -> dict[str, str]:
    """Arguments and variables of a function and of those inside it → a name by position."""
    outer: set[str] = set()
    found: dict[str, str] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.Global | ast.Nonlocal):
            outer.update(node.names)
    for name in _bound(function):
        if name not in outer:
            found.setdefault(name, f"v{len(found)}")
    return found


def _bound(function: ast.AST) -> Iterator[str]:
    if isinstance(function, ast.ClassDef):
        return
    for node in ast.walk(function):
        if isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store | ast.Del):
            yield node.id
        elif isinstance(node, _NAMED) and node.name and node is not function:
            yield node.name
        elif isinstance(node, ast.alias):
            yield (node.asname or node.name).partition(".")[0]


def dotted(node: ast.AST) -> str | None:
    """ "F.relu" of such an expression; None of any other."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return None
    return ".".join([node.id, *reversed(names)])


class _Normaliser:
    def __init__(
        self, local: Mapping[str, str], references: Mapping[str, str], in_class: bool
    ) -> None:
        self.local, self.references, self.in_class = local, references, in_class

    def text(self, node: Any, top: bool = False) -> str:
        if isinstance(node, list):
            return "[" + ",".join(self.text(item) for item in node if not is_talk(item)) + "]"
        if not isinstance(node, ast.AST):
            return repr(node)
        name = dotted(node)
        if name is not None and name.partition(".")[0] not in self.local:
            return self.references.get(name) or self._partly(name)
        if isinstance(node, ast.Name):
            return self.local.get(node.id, node.id)
        if isinstance(node, ast.arg):
            return self.local.get(node.arg, node.arg)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and self.in_class:
            return f"{node.name}:{normalised(node, self.references)}"
        if isinstance(node, ast.AnnAssign) and node.value is not None:
            return f"Assign(targets=[{self.text(node.target)}],value={self.text(node.value)})"
        label = type(node).__name__
        parts = []
        for field, value in ast.iter_fields(node):
            if field in _IGNORED or value is None or value == []:
                continue
            if top and field == "args":
                value = self._arguments(value)
            if field == "name" and not isinstance(node, ast.alias):
                # Moving or renaming a function does not change what it computes.
                value = "" if top else self.local.get(value, value)
            parts.append(f"{field}={self.text(value)}")
        return f"{label}({','.join(parts)})"

    def _arguments(self, node: ast.arguments) -> ast.arguments:
        """Without the defaults, whose number must still show."""
        return ast.arguments(
            node.posonlyargs, node.args, node.vararg, node.kwonlyargs, [], node.kwarg, []
        )

    def _partly(self, name: str) -> str:
        """The longest known beginning resolved: `F.relu.__name__`."""
        head, dot, tail = name.rpartition(".")
        while head:
            if head in self.references:
                return self.references[head] + dot + tail
            head, dot, more = head.rpartition(".")
            tail = f"{more}.{tail}"
        return name


def is_talk(node: Any) -> bool:
    """Docstrings, assertions, `pass`, prints, log calls and bare annotations."""
    if isinstance(node, ast.Pass | ast.Assert):
        return True
    if isinstance(node, ast.AnnAssign):
        return node.value is None
    if not isinstance(node, ast.Expr):
        return False
    if isinstance(node.value, ast.Constant):
        return True
    if not isinstance(node.value, ast.Call):
        return False
    names = (dotted(node.value.func) or "").split(".")
    return names[0] in _TALKERS and names[-1] in _TALKING
