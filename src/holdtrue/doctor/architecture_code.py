"""Code that differs: forward, what it calls, and the constants and defaults that it reads.

Two functions are the same when their normalised syntax trees are, so comments, docstrings and the
names of local variables never show up here.
"""

import ast
import difflib
from collections.abc import Iterator
from typing import Any

from msgspec import Struct

from holdtrue.doctor.architecture_pair import Pair, resolved, short, shown
from holdtrue.findings import Finding, several
from holdtrue.records.architecture import PROJECT, Architecture, ClassRecord, FunctionRecord
from holdtrue.records.syntax_tree import is_talk, parse

_FIX = 'run the code that the model was saved with, or accept it: allow=["code-changed"]'
_LINES = 16  # of a diff


class _Change(Struct, frozen=True):
    """One cause: `key` tells it from others."""

    key: tuple[str, ...]
    what: str
    why: str = ""
    saved: str | None = None
    here: str | None = None
    unknown: bool = False  # not a difference, but something that could not be compared


def same_code(pair: Pair, saved: str, here: str) -> bool:
    """Whether two classes run the same forward."""
    one, other = pair.saved.classes.get(saved), pair.here.classes.get(here)
    if one is None or other is None:
        return False
    if holds_only(one) or holds_only(other):
        return True
    if one.distribution and other.distribution:
        return False
    return one.base == other.base and all(c.unknown for c in _of_class(pair, one, other))


def holds_only(cls: ClassRecord) -> bool:
    """A class without a forward computes nothing: it holds modules, or weights to be filled."""
    return not cls.forward and cls.base is None


def same_function(pair: Pair, saved: str, here: str) -> bool:
    """Whether two functions, by their keys, do the same; where it is not known, by their names."""
    return all(change.unknown for change in _of_function(pair, saved, here, set()))


def compare_code(pair: Pair) -> list[Finding]:
    """What differs in the code of the modules that stand in both records."""
    found: dict[tuple[str, ...], tuple[_Change, list[str]]] = {}
    known: dict[tuple[str, str], list[_Change]] = {}
    for path in pair.paths:
        saved, here = pair.kinds(path)
        names = saved.class_name, here.class_name
        if names not in known:
            one, other = (
                r.classes.get(n) for r, n in zip((pair.saved, pair.here), names, strict=True)
            )
            runs = one and other and not holds_only(one) and not holds_only(other)
            known[names] = list(_of_class(pair, one, other)) if one and other and runs else []
        for change in known[names]:
            found.setdefault(change.key, (change, []))[1].append(path)
    return [_finding(pair, change, paths) for change, paths in found.values()]


def _of_class(pair: Pair, saved: ClassRecord, here: ClassRecord) -> Iterator[_Change]:
    one = {short(key): key for key in saved.forward}
    other = {short(key): key for key in here.forward}
    seen: set[tuple[str, str]] = set()
    for name in dict.fromkeys([*one, *other]):
        if name in one and name in other:
            yield from _of_function(pair, one[name], other[name], seen)
        else:
            record = pair.saved if name in one else pair.here
            key = one.get(name) or other[name]
            yield _only_in_one(record, key, name in one)
    for name in sorted(saved.constants.keys() & here.constants.keys()):
        label = f"the class attribute {name}"
        yield from _constant(pair, saved.constants[name], here.constants[name], label)


def _only_in_one(record: Architecture, key: str, in_saved: bool) -> _Change:
    function = record.functions.get(key, FunctionRecord())
    place = _place(key, function)
    text = _code_lines(function)[:_LINES]
    sign = "-" if in_saved else "+"
    return _Change(
        key=("only", key),
        what=f"{place} is run {'by the saved model only' if in_saved else 'here only'}",
        why="\n".join(sign + line for line in text),
    )


def _of_function(
    pair: Pair, saved: str, here: str, seen: set[tuple[str, str]]
) -> Iterator[_Change]:
    if (saved, here) in seen:
        return
    seen.add((saved, here))
    one, other = pair.saved.functions.get(saved), pair.here.functions.get(here)
    if one is None or other is None:
        return
    place = _place(here, other)
    # Another version of holdtrue may have hashed the same text otherwise.
    same = one.tree == other.tree or (
        one.text is not None and (one.text, one.references) == (other.text, other.references)
    )
    if not same and not _comparable(one, other):
        yield _Change(
            key=("unknown", here),
            what=f"{place} could not be compared",
            why="its source was not found when saved or here, and bytecode differs between "
            "versions of Python",
            unknown=True,
        )
    elif not same:
        yield _Change(
            key=("tree", saved, here), what=f"{place} was edited since", why=_diff(one, other)
        )
    for name, (before, after) in _paired(one.constants, other.constants, same):
        label = f"{name}, which {place} reads,"
        yield from _constant(pair, before, after, label)
    for name in sorted(one.defaults.keys() & other.defaults.keys()):
        label = f"the default of {name} in {place}"
        yield from _constant(pair, one.defaults[name], other.defaults[name], label)
    for _, (first, second) in _paired(_own(one), _own(other), same):
        yield from _of_function(pair, first, second, seen)


def _comparable(one: FunctionRecord, other: FunctionRecord) -> bool:
    """False where one has no source, or where there is bytecode of two versions of Python."""
    if one.tree is None or other.tree is None:
        return False
    return one.tree.rpartition(":")[0] == other.tree.rpartition(":")[0]


def _own(function: FunctionRecord) -> dict[str, str]:
    """The functions of the project that it mentions, as written → key."""
    return {
        name: target.removeprefix(PROJECT)
        for name, target in function.references.items()
        if target.startswith(PROJECT)
    }


def _paired(
    saved: dict[str, Any], here: dict[str, Any], same: bool
) -> list[tuple[str, tuple[Any, Any]]]:
    """What stands in both; by position in functions that are the same but for names."""
    if same and len(saved) == len(here):
        return list(zip(here, zip(saved.values(), here.values(), strict=True), strict=True))
    return [(name, (saved[name], here[name])) for name in sorted(saved.keys() & here.keys())]


def _constant(pair: Pair, saved: Any, here: Any, label: str) -> Iterator[_Change]:
    one, other = resolved(saved, pair.saved), resolved(here, pair.here)
    if _is_function(one) and _is_function(other):
        if same_function(pair, one["v"], other["v"]):
            return
    elif one == other:
        return
    yield _Change(
        key=("constant", label),
        what=f"{label} differs",
        saved=shown(one),
        here=shown(other),
    )


def _is_function(node: Any) -> bool:
    return isinstance(node, dict) and node.get("$") == "function" and isinstance(node.get("v"), str)


def _place(key: str, function: FunctionRecord) -> str:
    name = ".".join(key.partition("#")[0].split(".")[-2:])
    return f"{name} ({function.file}:{function.line})" if function.file else name


def _diff(saved: FunctionRecord, here: FunctionRecord) -> str:
    """What was edited, without comments, docstrings and layout."""
    lines = [
        line
        for line in difflib.unified_diff(_code_lines(saved), _code_lines(here), n=1, lineterm="")
        if not line.startswith(("---", "+++", "@@"))
    ]
    if not lines:
        names = saved.references.keys() & here.references.keys()
        lines = [
            f"{name} is {here.references[name]}, was {saved.references[name]}"
            for name in sorted(names)
            if here.references[name] != saved.references[name]
        ]
    return "\n".join([*lines[:_LINES], *(["…"] if len(lines) > _LINES else [])])


def _code_lines(function: FunctionRecord) -> list[str]:
    """The text as Python itself would lay it out; as it stands where it cannot be parsed."""
    tree = parse(function.text) if function.text else None
    if tree is None:
        return (function.text or "").splitlines()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [s for s in body if not is_talk(s)] or [ast.Pass()]  # type: ignore[attr-defined]
    try:
        return ast.unparse(ast.fix_missing_locations(tree)).splitlines()
    except (RecursionError, ValueError):
        return (function.text or "").splitlines()


def _finding(pair: Pair, change: _Change, paths: list[str]) -> Finding:
    places = tuple(map(pair.where, paths))
    if change.unknown:
        return Finding(
            code="code-unknown",
            severity="note",
            where=places[0],
            what=change.what,
            why=change.why,
            places=several(places),
        )
    return Finding(
        code="code-changed",
        severity="error",
        where=places[0],
        what=change.what,
        why=change.why,
        fix=_FIX,
        confidence="likely",
        saved=change.saved,
        expected=change.here,
        places=several(places),
    )
