"""Files written by something newer, or on another kind of machine, than what is here."""

import re
from collections.abc import Iterator

from holdtrue.doctor.importable import installed_version
from holdtrue.doctor.installed_source import defines
from holdtrue.findings import Finding, several
from holdtrue.formats.view import View
from holdtrue.records.dtypes import DTYPES

_REBUILD = re.compile(r"torch\._utils\._rebuild_\w+$")
_DTYPE = re.compile(r"torch\.((?:float|b?float|u?int|q?u?int|bits|complex)\d\w*)")
_READABLE = 10  # the newest version of torch's archives that torch 2.13 reads
# The first torch that has a dtype, for those that came late.
_SINCE = {
    "float8_e4m3fn": (2, 1), "float8_e5m2": (2, 1), "float8_e4m3fnuz": (2, 2),
    "float8_e5m2fnuz": (2, 2), "uint16": (2, 3), "uint32": (2, 3), "uint64": (2, 3),
    "float8_e8m0fnu": (2, 7), "float4_e2m1fn_x2": (2, 8),
}  # fmt: skip


def archive_version(view: View) -> Iterator[Finding]:
    """The number in a torch archive's `version` record."""
    said = view.about.get("archive_version")
    if isinstance(said, str) and said.isdecimal() and len(said) < 9 and int(said) > _READABLE:
        yield Finding(
            code="torch-older",
            severity="warning",
            where=f"{view.path}: version",
            what="the archive is of a newer version than torch here reads",
            why="torch says `maximum supported version for reading`; each torch knows the versions "
            "up to its own",
            saved=f"version {said}",
            expected=f"at most version {_READABLE}",
            fix="pip install --upgrade torch; holdtrue reads what it knows of the file",
            command="pip install --upgrade torch",
        )


def newer_dtypes(view: View) -> Iterator[Finding]:
    """Tensors of dtypes that the torch here does not have."""
    version = _torch()
    if version is None:
        return
    late: dict[str, list[str]] = {}
    for name, tensor in view.tensors.items():
        since = _SINCE.get(tensor.dtype)
        if since is not None and since > version:
            late.setdefault(tensor.dtype, []).append(f"{view.path}: {name}")
    for dtype, places in late.items():
        needed = ".".join(map(str, _SINCE[dtype]))
        yield Finding(
            code="torch-older",
            severity="warning",
            where=places[0],
            places=several(places),
            what=f"torch here has no {dtype}",
            why="loading stops at the name of the dtype",
            saved=f"torch {needed} or later",
            expected=f"torch {'.'.join(map(str, version))}",
            fix="holdtrue verify and convert work without it",
            command=f"pip install --upgrade 'torch>={needed}'",
        )


def newer_torch(view: View) -> Iterator[Finding]:
    """Functions and dtypes of torch's that the file names and the torch here does not have."""
    operations = view.about.get("would_run") or []
    late = [op for op in operations if op.kind == "import" and _of_torch(op.name)]
    for op in late:
        yield Finding(
            code="torch-older",
            severity="error",
            where=f"{view.path}: {op.place or f'byte {op.offset} of the pickle'}: {op.name}",
            what=f"torch {installed_version('torch') or 'here'} has no {op.name}",
            why="a newer version of torch wrote the file, or the name in it is damaged; the "
            "tensors that need it cannot be read",
            fix="holdtrue reads the other tensors of the file",
            command="pip install --upgrade torch",
        )


def _of_torch(name: str) -> bool:
    if _REBUILD.match(name):
        return defines(name) is not True
    found = _DTYPE.fullmatch(name)
    return found is not None and found[1] not in DTYPES


def big_endian(view: View) -> Iterator[Finding]:
    """Bytes that stand the other way round, as the file says."""
    if view.about.get("byteorder") == "big":
        yield Finding(
            code="big-endian",
            severity="note",
            where=f"{view.path}: byteorder",
            what="the file says that its numbers are big-endian",
            why="torch writes so on machines like IBM Z; if it was not written there, the record "
            "is wrong, and every number is read with its bytes turned round",
            fix="compare some values with what they should be: holdtrue doctor --deep",
            confidence="hint",
        )


def _torch() -> tuple[int, int] | None:
    numbers = (installed_version("torch") or "").split(".")[:2]
    return (
        (int(numbers[0]), int(numbers[1]))
        if all(map(str.isdecimal, numbers)) and numbers[1:]
        else None
    )
