"""The bytes of a legacy torch file, as they lie in a file or in a byte string.

Five pickles in a row (magic number, protocol, system, the object, the keys of its storages), then
the storages: a count of elements in 8 bytes each, and their bytes. Where a storage lies is known
only after the object, whose dtypes say how long each one is; so the object is walked twice.
"""

from collections.abc import Callable
from typing import Any

from msgspec import Struct

from holdtrue.errors import DamageError, HoldtrueError, OpenError, fail
from holdtrue.findings import Finding
from holdtrue.formats.finding_groups import keep
from holdtrue.formats.pickle_context import Nested
from holdtrue.formats.pickle_machine import Walked, walk
from holdtrue.formats.pickle_operations import Operation
from holdtrue.formats.pickle_source import PickleSource, over_budget
from holdtrue.formats.torch_storages import StorageId, parse_storage_id, storage_tensor, text
from holdtrue.formats.view import Storage
from holdtrue.limits import limits
from holdtrue.records.dtypes import DTYPES
from holdtrue.records.inert import NamedReference

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL_VERSION = 1001

OpenSource = Callable[[int | None], PickleSource]  # at an offset as it counts them; None: first
MakeStorage = Callable[[str, int, int], Storage]  # key, first byte, bytes


class Stream(Struct, frozen=True, kw_only=True):
    """One legacy stream as data. `would_run` is of all its pickles, in their order."""

    walked: Walked
    would_run: tuple[Operation, ...]
    system: dict[str, Any]
    sources: dict[str, dict[str, str]]  # class name → file and text, as older torch kept them
    findings: tuple[Finding, ...]


def read_stream(
    open_source: OpenSource,
    make: MakeStorage,
    where: str,
    *,
    salvage: bool = False,
    nested: Nested | None = None,
) -> Stream:
    """A legacy stream from its first byte. `nested` as in `walk`."""
    source = open_source(None)
    system, beside = _read_head(source, where)
    begin = source.offset
    ids: dict[str, StorageId] = {}
    sources: dict[str, dict[str, str]] = {}

    def collect(pid: Any) -> Any:
        if _is_module(pid):
            _keep_source(pid, sources)
            return pid[1]
        found = parse_storage_id(pid)
        ids.setdefault(found.key, found)
        return storage_tensor(found, make(found.key, 0, found.nbytes))

    first = walk(source, persistent=collect, where=where, salvage=salvage, nested=nested)
    findings: list[Finding] = []
    spans: dict[str, tuple[int, int]] = {}
    if first.complete:
        try:
            beside += _read_spans(source, ids, spans, findings, where)
        except HoldtrueError as error:
            if not salvage:
                raise
            findings += error.report.findings

    def persistent(pid: Any) -> Any:
        if _is_module(pid):
            return pid[1]
        found = parse_storage_id(pid)
        return storage_tensor(found, make(found.key, *spans.get(found.key, (0, 0))))

    lost = [key for key in ids if key not in spans and ids[key].numel]
    findings += [_lost(where, ids[key]) for key in lost[:100]]
    again = open_source(begin)
    walked = walk(again, persistent=persistent, where=where, salvage=salvage, nested=nested)
    return Stream(
        walked=walked,
        would_run=(*walked.would_run, *beside),
        system=system,
        sources=sources,
        findings=tuple(findings),
    )


def _read_head(source: PickleSource, where: str) -> tuple[dict[str, Any], list[Operation]]:
    """What it says of the machine that wrote it, and what its first three pickles would run."""
    head = [walk(source, where=where) for _ in range(3)]
    magic, version, system = (walked.value for walked in head)
    if magic != MAGIC_NUMBER or version != PROTOCOL_VERSION:
        raise fail(
            OpenError,
            where,
            Finding(
                code="not-legacy-torch",
                severity="error",
                where=where,
                what="the file does not begin as torch.save writes it",
                why="its first pickles are not torch's magic number and protocol version",
                fix="read it as a plain pickle: `holdtrue inspect` finds out what it is",
            ),
        )
    would_run = [operation for walked in head for operation in walked.would_run]
    return system if isinstance(system, dict) else {}, would_run


def _read_spans(
    source: PickleSource,
    ids: dict[str, StorageId],
    spans: dict[str, tuple[int, int]],
    findings: list[Finding],
    where: str,
) -> tuple[Operation, ...]:
    """Fill `spans` with the first byte and length of each storage. What their keys would run."""
    walked = walk(source, where=where)
    keys = walked.value
    if not isinstance(keys, list):
        raise _bad_keys(where, "they are no list")
    if len(keys) > limits().entries:
        raise over_budget(where, "entries", limits().entries, "storages")
    for key in keys:
        name = text(key) if isinstance(key, (str, bytes, int)) else ""
        found = ids.get(name)
        if found is None:
            raise _bad_keys(where, f"no tensor has the storage {name[:80]!r}")
        numel = int.from_bytes(source.take(8), "little", signed=True)
        if numel < 0:
            raise _bad_keys(where, f"the storage {name[:80]!r} has {numel:,} elements")
        if numel != found.numel:
            keep(
                findings,
                Finding(
                    code="storage-size-mismatch",
                    severity="error",
                    where=f"{where}: storage {name}",
                    what="a storage is not as long as the pickle says",
                    why=f"the pickle says {found.numel:,} elements, the file {numel:,}",
                ),
            )
        nbytes = numel * DTYPES[found.dtype].itemsize
        if nbytes > source.remaining:
            spans[name] = (source.offset, nbytes)  # salvage says how much of it is missing
            raise _cut(where, name, nbytes, source.remaining)
        spans[name] = (source.skip(nbytes), nbytes)
    if source.remaining:
        findings.append(
            Finding(
                code="trailing-bytes",
                severity="note",
                where=f"{where}: byte {source.offset}",
                what=f"{source.remaining:,} bytes follow the last storage",
            )
        )
    return walked.would_run


def _is_module(pid: Any) -> bool:
    """`("module", class, file, source)`: torch once kept the text of each pickled class."""
    return (
        isinstance(pid, tuple)
        and len(pid) == 4
        and pid[0] in ("module", b"module")
        and isinstance(pid[1], NamedReference)
    )


def _keep_source(pid: tuple[Any, ...], sources: dict[str, dict[str, str]]) -> None:
    _, cls, file, lines = pid
    if isinstance(file, str) and isinstance(lines, str) and len(sources) < 10_000:
        sources[cls.name] = {"file": file, "text": lines}


def _bad_keys(where: str, why: str) -> DamageError:
    return fail(
        DamageError,
        where,
        Finding(
            code="legacy-storages",
            severity="error",
            where=where,
            what="the list of storages behind the pickle makes no sense",
            why=why,
            fix="fetch or save the file again",
        ),
    )


def _cut(where: str, key: str, needed: int, left: int) -> DamageError:
    return fail(
        DamageError,
        where,
        Finding(
            code="legacy-truncated",
            severity="error",
            where=f"{where}: storage {key}",
            what="the file ends inside a tensor's bytes",
            why=f"{needed:,} bytes are needed here, {left:,} are left",
            fix="fetch or save the file again; `holdtrue salvage` keeps the tensors that are whole",
        ),
    )


def _lost(where: str, found: StorageId) -> Finding:
    return Finding(
        code="storage-missing",
        severity="error",
        where=f"{where}: storage {found.key}",
        what="the bytes of a tensor are not in the file",
        why=f"{found.nbytes:,} bytes of {found.dtype}",
    )
