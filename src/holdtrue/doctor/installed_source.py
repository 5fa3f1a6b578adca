"""What installed packages define, read from their source text. Nothing is imported for it."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from msgspec import Struct

from holdtrue.limits import MIB

_LONGEST = 200  # bytes of a name; file systems end at 255, with its suffix
_LARGEST = 4 * MIB  # of a source file that is read
# What a module has that defines names which its text does not spell.
_MAKES_NAMES = re.compile(r"__getattr__|globals\(|setattr\(|sys\.modules|exec\(|vars\(")
_STAR = re.compile(r"^\s*from (\.*)([\w.]*) import \*", re.MULTILINE)
_STARS = 40  # modules that `import *` is followed into
_NEXT = re.compile(r"^(class |def |async |@|if |for |\w+ *(:.*)?= )", re.MULTILINE)
_BASES = 12  # classes above one another that are followed


class Class(Struct, frozen=True):
    """What a class sets on its instances."""

    sets: frozenset[str]  # in __init__, whatever its arguments
    fills: frozenset[str]  # names that its __setstate__ speaks of


def defines(name: str) -> bool | None:
    """Whether the installed package has this dotted name; None where its text does not tell.

    A name that its module's text never speaks of is not there, unless the module makes names up.
    """
    found = _module_of(name)
    if found is None:
        return None
    module, rest = found
    if not rest:
        return True
    return _speaks_of(module, rest[0])


def _speaks_of(module: Path, name: str) -> bool | None:
    """Whether a module's text, or that of a module it takes all names from, has this name."""
    word = re.compile(rf"\b{re.escape(name)}\b")
    pending, seen, certain = [module], {module}, True
    while pending:
        place = pending.pop()
        text = _text(place)
        if text is not None and word.search(text):
            return True
        certain = certain and text is not None and not _MAKES_NAMES.search(text)
        for dots, dotted in _STAR.findall(text or ""):
            source = _taken_from(place, dots, dotted)
            if source is None or len(seen) > _STARS:
                certain = False
            elif source not in seen:
                seen.add(source)
                pending.append(source)
    return False if certain else None


def _taken_from(module: Path, dots: str, dotted: str) -> Path | None:
    """The source of a module that another one imports from."""
    if not dots:
        found = _module_of(dotted)
        return found[0] if found is not None and not found[1] else None
    place = module.parents[len(dots) - 1].joinpath(*dotted.split(".")) if dotted else None
    if place is None:
        return None
    source = place / "__init__.py" if place.is_dir() else place.with_name(f"{place.name}.py")
    return source if source.is_file() else None


def class_of(name: str) -> Class | None:
    """What the class of this dotted name sets; None where its text is not found."""
    found = _module_of(name)
    if found is None or len(found[1]) != 1:
        return None
    sets: set[str] = set()
    fills: set[str] = set()
    chain = list(_chain(found[0], found[1][0]))
    if not chain:
        return None
    for node in chain:
        sets |= _set_in_init(node)
        fills |= _spoken_of(node, "__setstate__")
    held = {
        name for node in chain for name in _held_by_class(node) | _spoken_of(node, "__getstate__")
    }
    return Class(frozenset(sets - held), frozenset(fills))


def _module_of(name: str) -> tuple[Path, list[str]] | None:
    """The source file that a dotted name leads to, and what is left of the name in it."""
    top, *rest = name.split(".")
    place = _package(top) or beside(top)
    if place is None:
        return None
    if place.is_file():
        return place, rest
    while rest:
        inner, module = place / rest[0], place / f"{rest[0]}.py"
        if not _is_file_name(rest[0]):
            return None
        if inner.is_dir() and (inner / "__init__.py").is_file():
            place, rest = inner, rest[1:]
        elif module.is_file():
            return module, rest[1:]
        elif any(place.glob(f"{rest[0]}.*")) or inner.is_dir():
            return None  # compiled, or without a text of its own
        else:
            break
    return place / "__init__.py", rest


def _is_file_name(name: str) -> bool:
    """Whether a module may be called so: for a name that is too long the system has an error."""
    return name.isidentifier() and len(name.encode("utf-8", "replace")) <= _LONGEST


def beside(top: str) -> Path | None:
    """A module or package of the current directory, which a script that is run there can import."""
    if not _is_file_name(top):
        return None
    here = Path.cwd()
    if (here / top / "__init__.py").is_file():
        return here / top
    return here / f"{top}.py" if (here / f"{top}.py").is_file() else None


@cache
def _package(top: str) -> Path | None:
    try:
        spec = find_spec(top) if _is_file_name(top) else None
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    origin = Path(spec.origin)
    return origin.parent if origin.name == "__init__.py" else origin


@cache
def _text(path: Path) -> str | None:
    try:
        return path.read_text("utf-8") if path.stat().st_size <= _LARGEST else None
    except (OSError, ValueError):
        return None


def _class_statement(path: Path, name: str) -> ast.ClassDef | None:
    """The statement of one class. Its lines alone are parsed: modules are long."""
    text = _text(path) or ""
    start = re.search(rf"^class {re.escape(name)}\b", text, re.MULTILINE)
    if start is None:
        return None
    end = _NEXT.search(text, start.end())
    try:
        (node,) = ast.parse(text[start.start() : end.start() if end else None]).body
    except (ValueError, SyntaxError, RecursionError):
        return None
    return node if isinstance(node, ast.ClassDef) else None


def _imported_from(path: Path, name: str) -> Path | None:
    """The module beside this one that a name is imported from."""
    for found in re.finditer(
        r"^from \.(\w+) import (\([^)]*\)|.*)$", _text(path) or "", re.MULTILINE
    ):
        if re.search(rf"\b{re.escape(name)}\b", found[2]):
            return path.parent / f"{found[1]}.py"
    return None


def _chain(path: Path, name: str) -> Iterator[ast.ClassDef]:
    """A class and those that it inherits from, as far as they stand in the same package."""
    pending, left = [(path, name)], _BASES
    while pending and left:
        place, wanted = pending.pop()
        left -= 1
        if wanted == "Module" and place.name == "module.py":
            continue
        node = _class_statement(place, wanted)
        elsewhere = _imported_from(place, wanted) if node is None else None
        if node is not None:
            yield node
            pending += [(place, base.id) for base in node.bases if isinstance(base, ast.Name)]
        elif elsewhere is not None:
            pending.append((elsewhere, wanted))


def _method(node: ast.ClassDef, name: str) -> ast.FunctionDef | None:
    found = (n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == name)
    return next(found, None)


def _set_in_init(node: ast.ClassDef) -> set[str]:
    """Attributes that __init__ sets whatever it is given: those under an `if` are left out."""
    init = _method(node, "__init__")
    found: set[str] = set()
    for statement in init.body if init else ():
        if isinstance(statement, (ast.Assign, ast.AnnAssign)):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            found |= {t.attr for t in targets if _of_self(t) and isinstance(t, ast.Attribute)}
    return found


def _of_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Attribute) and (
        isinstance(node.value, ast.Name) and node.value.id == "self"
    )


def _held_by_class(node: ast.ClassDef) -> set[str]:
    """Names that the class itself has, as a default or a property."""
    found = {n.name for n in node.body if isinstance(n, ast.FunctionDef)}
    for statement in node.body:
        if isinstance(statement, ast.Assign):
            found |= {t.id for t in statement.targets if isinstance(t, ast.Name)}
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            found |= {statement.target.id} if isinstance(statement.target, ast.Name) else set()
    return found


def _spoken_of(node: ast.ClassDef, name: str) -> set[str]:
    """Attributes that a method names, as text or as `self.name`."""
    method = _method(node, name)
    if method is None:
        return set()
    texts = {n.value for n in ast.walk(method) if isinstance(n, ast.Constant)}
    attributes = {n.attr for n in ast.walk(method) if isinstance(n, ast.Attribute)}
    return {text for text in texts if isinstance(text, str)} | attributes
