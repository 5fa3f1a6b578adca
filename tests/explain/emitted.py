"""The codes that the sources can emit, found by reading their syntax trees."""

import ast
import re
from pathlib import Path

SOURCES = Path(__file__).parent.parent.parent / "src" / "holdtrue"
KEBAB = re.compile(r"[a-z0-9]+(-[a-z0-9]+)+\Z")


def _trees():
    return [ast.parse(path.read_text()) for path in sorted(SOURCES.rglob("*.py"))]


def _texts(node):
    """The kebab-case texts below a node."""
    for part in ast.walk(node):
        text = part.value if isinstance(part, ast.Constant) else None
        if isinstance(text, str) and KEBAB.match(text):
            yield text


def _takers(trees):
    """Functions and classes with a parameter or field called `code`, and its position."""
    found = {}
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                names = [a.arg for a in node.args.args if a.arg not in ("self", "cls")]
            elif isinstance(node, ast.ClassDef):
                fields = [s.target for s in node.body if isinstance(s, ast.AnnAssign)]
                names = [target.id for target in fields if isinstance(target, ast.Name)]
            else:
                continue
            if "code" in names:
                found.setdefault(node.name, set()).add(names.index("code"))
    return found


def _called(call):
    function = call.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _is_code(target):
    return any(isinstance(n, ast.Name) and n.id == "code" for n in ast.walk(target))


def emitted():
    """Every code that a finding can have: given as `code=`, to a parameter of that name, or by a
    variable of that name."""
    trees = _trees()
    takers = _takers(trees)
    found = set()
    for tree in trees:
        constants = {
            node.targets[0].id: set(_texts(node.value))
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        }
        for node in ast.walk(tree):
            given = []
            if isinstance(node, ast.Call):
                given += [k.value for k in node.keywords if k.arg == "code"]
                for at in takers.get(_called(node), ()):
                    given += node.args[at : at + 1]
            elif isinstance(node, ast.Assign) and any(map(_is_code, node.targets)):
                given.append(node.value)
            elif isinstance(node, ast.For) and _is_code(node.target):
                given.append(node.iter)
            for value in given:
                found |= set(_texts(value))
                for name in ast.walk(value):
                    if isinstance(name, ast.Name) and name.id.isupper():
                        found |= constants.get(name.id, set())
    return found


def written():
    """Every kebab-case text of the sources; a code that is put together counts by its pieces."""
    return {text for tree in _trees() for text in _texts(tree)}
