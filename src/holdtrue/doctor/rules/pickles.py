"""What unpickling the file needs, and what `torch.load` will not take."""

import re
from collections.abc import Iterator

from holdtrue.doctor.amounts import counted
from holdtrue.doctor.commands import convert_command
from holdtrue.doctor.importable import Found, distribution_of, findable, installed_version
from holdtrue.doctor.installed_source import defines
from holdtrue.findings import Finding, several
from holdtrue.formats.pickle_operations import Operation
from holdtrue.formats.view import View
from holdtrue.formats.weights_only import Refused

_SHOWN = 8  # names in one line
_REASONS = {
    "script": "its class was defined in the script that saved it (`__main__`)",
    "package-missing": "the package `{top}` is not installed here",
    "absent": "the package `{top}` that is installed here{version} has no such name: the file is "
    "of another version of it, most likely a newer one",
    "beside-absent": "the module `{top}` of the current directory has no such name: it was "
    "renamed or removed since",
    "older": "NumPy 2 wrote it, and NumPy 1 is installed here",
}
# TorchScript's own classes, and what `versions` tells of.
_OTHERS = re.compile(r"__torch__\.|torch\._utils\._rebuild|torch\.[a-z]+\d\w*$")
_OF_NEWER_TORCH = re.compile(r"torch\._utils\._rebuild|torch\.[a-z]+\d\w*$")


def code_in_file(view: View) -> Iterator[Finding]:
    """Calls that reach the machine: loading the file the usual way runs them."""
    bad = _dangerous(view)
    if not bad:
        return
    calls = [op for op in bad if op.kind == "call"]
    shown = [f"{op.name}({op.arguments})" for op in calls] or [op.name for op in bad]
    places = tuple(_of_operation(view, op) for op in calls or bad)
    yield Finding(
        code="code-in-file",
        severity="error" if calls else "warning",
        where=places[0],
        places=several(places),
        what=f"unpickling this file would {'run' if calls else 'import'} "
        + ", ".join(dict.fromkeys(shown[:_SHOWN])),
        why="a pickle may name any function and its arguments, and torch.load(weights_only=False) "
        "imports and calls it; nothing was run to find this",
        fix="load it with nothing that unpickles, and ask where it comes from; the line takes the "
        "tensors out without running it",
        command=convert_command(view.path),
    )


def class_missing(view: View) -> Iterator[Finding]:
    """Classes and functions that unpickling would import and cannot: a finding for each reason."""
    absent: dict[tuple[Found, str], list[Operation]] = {}
    for op in _operations(view):
        if op.kind == "import" and op.severity != "dangerous" and not _OTHERS.match(op.name):
            status = findable(op.name)
            if status not in ("here", "beside"):
                absent.setdefault((status, op.name.partition(".")[0]), []).append(op)
    for (found, top), ops in absent.items():
        names = [op.name for op in ops]
        shown = ", ".join(names[:_SHOWN]) + (" …" if len(names) > _SHOWN else "")
        places = [_of_operation(view, op) for op in ops]
        yield Finding(
            code="class-missing",
            severity="warning",
            where=places[0],
            places=several(places),
            what=f"the file needs {shown}, which cannot be imported",
            why="pickle stores an object as its class's name and its attributes; "
            + _REASONS[found].format(top=top, version=_version(top)),
            fix=f"keeps all {counted(len(view.tensors), 'tensor')}, and does not need the class"
            + ("; or upgrade the package" if found in ("absent", "older") else ""),
            command=convert_command(view.path),
            confidence="likely" if found == "script" else "certain",
        )


def weights_only_refuses(view: View) -> Iterator[Finding]:
    """What `torch.load(path)`, which since torch 2.6 means weights_only=True, stops at."""
    if view.format == "torch-tar":
        yield _refuses(view, "the file", "the tar format of before torch 0.4 is not taken", [])
        return
    refused: list[Refused] = view.about.get("refused") or []
    # A whole model is refused for being one: that is said once, by its own finding.
    if not refused or view.about.get("kind") == "module":
        return
    dangerous = {op.name for op in _dangerous(view)}
    # Those have findings of their own, and so have names that torch here does not know.
    told = dangerous | {r.name for r in refused if _OF_NEWER_TORCH.match(r.name)}
    told -= {r.name for r in refused if defines(r.name)}
    names = [r for r in refused if r.kind == "global" and r.name not in told]
    opcodes = [r for r in refused if r.kind == "opcode"]
    text = [r for r in refused if r.kind == "text"]
    if text:
        yield _refuses(
            view,
            "Python 2 strings that are no UTF-8",
            "they are decoded while loading, and these cannot be",
            [place for r in text for place in _of_refused(view, r)],
        )
    if not names and opcodes and not told:
        yield _refuses(
            view,
            _spelling(view, opcodes),
            "it knows the opcodes of protocol 2, which torch.save writes unless told otherwise; "
            f"this file has {', '.join(r.name for r in opcodes[:4])}",
            [f"{view.path}: {place}" for r in opcodes for place in r.places],
        )
    elif names:
        shown = [r.name for r in names]
        more = f"; pickle protocol {view.about.get('protocol')} is not either" if opcodes else ""
        yield _refuses(
            view,
            ", ".join(shown[:_SHOWN]) + (" …" if len(shown) > _SHOWN else ""),
            "it builds tensors, plain containers and numbers only; other classes are not on its "
            f"list{more}",
            [place for r in names for place in _of_refused(view, r)],
        )


def _spelling(view: View, opcodes: list[Refused]) -> str:
    protocol = view.about.get("protocol")
    if protocol == 2 and all(r.name.startswith("LONG4") for r in opcodes):
        return "whole numbers of more than 255 bytes"
    return f"pickle protocol {protocol}"


def _refuses(view: View, what: str, why: str, places: list[str]) -> Finding:
    each = tuple(dict.fromkeys(places))
    return Finding(
        code="weights-only-refuses",
        severity="warning",
        where=each[0] if each else view.path,
        places=several(each),
        what=f"torch.load(path) refuses {what}",
        why=f"since torch 2.6 it unpickles with weights_only=True: {why}",
        fix="keeps every tensor and value, without unpickling; holdtrue.open reads it as it is",
        command=convert_command(view.path),
    )


def _version(top: str) -> str:
    number = installed_version(distribution_of(top) or top)
    return f" ({number})" if number else ""


def _operations(view: View) -> list[Operation]:
    found: list[Operation] = view.about.get("would_run") or []
    return found


def _dangerous(view: View) -> list[Operation]:
    """functools.partial makes a function and calls none: what it holds counts by itself."""
    found = [op for op in _operations(view) if op.severity == "dangerous"]
    return [op for op in found if op.name != "functools.partial"]


def _of_operation(view: View, op: Operation) -> str:
    place = op.place or f"byte {op.offset} of the pickle"
    return f"{view.path}: {place}: {op.name}"


def _of_refused(view: View, refused: Refused) -> list[str]:
    places = [f"{view.path}: {place}: {refused.name}" for place in refused.places]
    return places or [f"{view.path}: byte {refused.offset} of the pickle: {refused.name}"]
