"""NumPy's .npy and .npz files as Views. Arrays of objects are pickles, and walked as such."""

from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from holdtrue.errors import DamageError, HoldtrueError, fail
from holdtrue.findings import Finding
from holdtrue.formats.npy_header import (
    PREFIX,
    NpyHeader,
    array_tensor,
    damaged,
    header_bytes,
    parse_npy_header,
    swap_unit,
)
from holdtrue.formats.pickle_machine import walk
from holdtrue.formats.pickle_operations import Operation
from holdtrue.formats.pickle_source import PickleSource, from_file, over_budget
from holdtrue.formats.source import open_source
from holdtrue.formats.tensor_bytes import read_storage
from holdtrue.formats.tree_walk import tensors_by_path
from holdtrue.formats.view import Storage, View
from holdtrue.formats.zip_archive import Archive, Entry, read_directory, storage_of
from holdtrue.limits import limits


class _Array(Struct, frozen=True):
    """What one .npy holds: a lazy tensor, or the tree that its pickle describes."""

    value: Any
    header: NpyHeader
    findings: tuple[Finding, ...] = ()
    would_run: tuple[Operation, ...] = ()


def read_npy(path: str) -> View:
    """One array. Raises OpenError or DamageError."""
    with open_source(path) as file:
        size = file.seek(0, 2)
        file.seek(0)
        prefix = file.read(PREFIX)
        raw = prefix + file.read(max(0, header_bytes(prefix, path) - PREFIX))
    array = _array(raw, Storage(key="data", file=path, offset=0, nbytes=size), path)
    return View(
        path=path,
        format="npy",
        about=_about(array),
        tree=array.value,
        tensors=tensors_by_path(array.value, path),
        findings=array.findings,
    )


def read_npz(path: str) -> View:
    """All arrays of an archive, by name. Raises OpenError or DamageError."""
    view = read_members(read_directory(path))
    if any(finding.severity == "error" for finding in view.findings):
        raise fail(DamageError, path, *view.findings)
    return view


def read_members(archive: Archive) -> View:
    """The arrays of an archive that can be read; what is wrong is among the findings."""
    path = archive.path
    tree: dict[str, Any] = {}
    about: dict[str, Any] = {}
    findings = list(archive.findings)
    for entry in archive.entries:
        name = entry.name.removesuffix(".npy")
        if name in tree:  # already among the archive's findings; the first counts
            continue
        try:
            array = _member(archive, entry)
        except HoldtrueError as error:
            findings += error.report.findings
            continue
        tree[name] = array.value
        about[name] = _about(array)
        findings += array.findings
    would_run = [op for row in about.values() for op in row.pop("would_run")]
    return View(
        path=path,
        format="npz",
        about={"arrays": about, "would_run": would_run},
        tree=tree,
        tensors=tensors_by_path(tree, path),
        findings=tuple(findings),
    )


def _member(archive: Archive, entry: Entry) -> _Array:
    where = f"{archive.path}: {entry.name}"
    if not entry.readable:
        raise damaged(where, f"it is packed by method {entry.method}, or encrypted")
    storage = storage_of(archive, entry, entry.name)
    # Opening describes; whether the bytes are those that were written, reading them tells.
    unproven = replace(storage, crc32=None)
    prefix = read_storage(unproven, 0, min(PREFIX, storage.nbytes)).tobytes()
    length = min(header_bytes(prefix, where), storage.nbytes)
    return _array(read_storage(unproven, 0, length).tobytes(), storage, where)


def _array(raw: bytes, whole: Storage, where: str) -> _Array:
    """The array whose header is `raw`; `whole` is the file or record from its first byte."""
    header = parse_npy_header(raw, where)
    present = whole.nbytes - header.length
    if header.dtype.hasobject:
        return _objects(header, whole, where)
    if present < header.nbytes:
        raise damaged(where, f"{header.nbytes:,} bytes of data are needed, {present:,} are there")
    skip, offset = header.length, whole.offset
    if whole.codec == "raw":
        skip, offset = 0, offset + header.length
    unit = swap_unit(header.dtype)
    storage = replace(
        whole,
        offset=offset,
        skip=skip,
        nbytes=header.nbytes,
        big_endian=unit > 1,
        itemsize=unit,
        crc32=None,  # of the record, header included
        record=whole if whole.crc32 is not None else None,
    )
    trailing: tuple[Finding, ...] = ()
    if present > header.nbytes:
        trailing = (_trailing(where, present - header.nbytes),)
    return _Array(array_tensor(header, storage), header, trailing)


def _objects(header: NpyHeader, whole: Storage, where: str) -> _Array:
    if whole.codec == "raw":
        source = from_file(
            whole.file, where, whole.offset + header.length, whole.offset + whole.nbytes
        )
    else:
        if whole.nbytes > limits().pickle_bytes:
            raise over_budget(where, "pickle_bytes", limits().pickle_bytes, "bytes of pickle")
        data = read_storage(whole)

        def fetch(start: int, count: int) -> bytes:
            return data[start : start + count].tobytes()

        source = PickleSource(b"", where, fetch=fetch, start=header.length, end=whole.nbytes)
    walked = walk(source, where=where)
    return _Array(walked.value, header, walked.findings, walked.would_run)


def _about(array: _Array) -> dict[str, Any]:
    header = array.header
    return {
        "npy_version": header.version,
        "dtype": header.dtype.descr if header.dtype.names else header.dtype.str,
        "fortran_order": header.fortran,
        "would_run": list(array.would_run),
    }


def _trailing(where: str, count: int) -> Finding:
    return Finding(
        code="trailing-bytes",
        severity="warning",
        where=where,
        what=f"{count:,} bytes follow the array",
        why="numpy.save was called on one file several times, or something else was appended; "
        "the first array is given",
        fix="save several arrays with numpy.savez",
    )
