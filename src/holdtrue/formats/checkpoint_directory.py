"""holdtrue's own checkpoint: a directory with a manifest and plain safetensors files."""

import errno
import os
import stat
from pathlib import Path
from typing import Any

import msgspec
import xxhash

from holdtrue.errors import DamageError, HoldtrueError, OpenError, fail
from holdtrue.findings import Finding, report
from holdtrue.formats.safetensors import Header, parse_header
from holdtrue.formats.step_names import compare_step
from holdtrue.formats.view import LazyTensor, Piece, Storage, View
from holdtrue.limits import limits
from holdtrue.records.arrays import dtype_of
from holdtrue.records.consistency import find_problem
from holdtrue.records.dtypes import DTYPES, PACKED, contiguous_stride, packed_bytes, product
from holdtrue.records.manifest import (
    NAME,
    SOURCE,
    Chunk,
    Manifest,
    Part,
    Summary,
    TensorRecord,
    decode_manifest,
    decode_summary,
)
from holdtrue.records.values import Decoding, NodeError, decode


def read_manifest(directory: Path) -> Manifest:
    """The checked manifest of a checkpoint directory. Raises OpenError or DamageError."""
    raw = _raw_manifest(directory)
    manifest = decode_manifest(raw, str(directory / NAME))
    problem = find_problem(manifest)
    if problem:
        raise _damaged(str(directory / NAME), problem)
    _require_step(directory, manifest.step)
    return manifest


def read_summary(directory: Path) -> Summary:
    """What ranks a checkpoint among others. Raises OpenError or DamageError; a manifest that is as
    it was written and contradicts itself is told by `read_manifest` only."""
    summary = decode_summary(_raw_manifest(directory), str(directory / NAME))
    _require_step(directory, summary.step)
    return summary


def _require_step(directory: Path, step: int | None) -> None:
    findings = compare_step(directory, step)
    if findings:
        raise DamageError(report(str(directory), findings))


def _raw_manifest(directory: Path) -> bytes:
    path = directory / NAME
    try:
        found = path.lstat()  # a link could lead anywhere
        if not stat.S_ISREG(found.st_mode):  # reading a pipe would wait for ever
            raise fail(DamageError, str(path), _not_a_file(path))
        if found.st_size > limits().manifest_bytes:
            raise _damaged(str(path), f"it has {found.st_size:,} bytes")
        return path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from None


def read(path: str) -> View:
    """The checkpoint as a View. Reads the manifest and the headers, no tensor."""
    directory = Path(path)
    return to_view(directory, read_manifest(directory))


def to_view(directory: Path, manifest: Manifest) -> View:
    """Checks every file's presence, size and header, then describes the tensors.

    Raises DamageError with one finding a damaged file.
    """
    headers, findings = _check_files(directory, manifest)
    if findings:
        raise DamageError(report(str(directory), findings))
    whole = _whole_tensors(directory, manifest, headers)
    tensors: dict[str, LazyTensor] = {
        key: whole.get(key) or _lazy(key, record, directory, manifest, headers)
        for key, record in manifest.tensors.items()
    }
    about: dict[str, Any] = {
        "format_version": manifest.version,
        "created": manifest.created,
        "step": manifest.step,
        "environment": msgspec.to_builtins(manifest.environment),
    }
    tree = {name: _tree(name, part, tensors) for name, part in manifest.parts.items()}
    return View(path=str(directory), format="holdtrue", about=about, tree=tree, tensors=tensors)


def read_source(directory: Path, manifest: Manifest) -> dict[str, str]:
    """The text of a model's own code, by file name. Raises DamageError where it was changed."""
    found: dict[str, str] = {}
    for name, record in manifest.files.items():
        if name.startswith(f"{SOURCE}/"):
            path = directory / name
            try:
                raw = path.read_bytes()
            except OSError as error:
                raise unreadable(path, error) from None
            if xxhash.xxh3_128_hexdigest(raw) != record.header_digest:
                raise DamageError(report(str(directory), [_flipped(path, "it")]))
            found[name] = raw.decode("utf-8", "replace")
    return found


def _tree(name: str, part: Part, tensors: dict[str, LazyTensor]) -> Any:
    if part.kind not in ("module", "optimizer") or not isinstance(part.state, dict):
        return _value(name, part.state, tensors)
    # Names are keys here, and no value nodes: a parameter may be called "$".
    tree: dict[str, Any] = {}
    for key, node in part.state.items():
        if key in ("extra", "custom", "getstate", "state") and isinstance(node, dict):
            tree[key] = {n: _value(f"{name}/{n}", inner, tensors) for n, inner in node.items()}
        else:
            names = key in ("entries", "training")
            tree[key] = node if names else _value(name, node, tensors)
    return tree


def _value(name: str, node: Any, tensors: dict[str, LazyTensor]) -> Any:
    try:
        return decode(node, Decoding(tensor=tensors.__getitem__, inert=True), path=name)
    except NodeError as error:
        raise _damaged(name, str(error)) from None


def _check_files(directory: Path, manifest: Manifest) -> tuple[dict[str, Header], list[Finding]]:
    headers: dict[str, Header] = {}
    findings: list[Finding] = []
    for name, expected in manifest.files.items():
        path = directory / name
        try:
            found = os.lstat(path)  # asked once: what is removed meanwhile is no link
            size = found.st_size
            linked = path.parent != directory and path.parent.is_symlink()
            if linked or not stat.S_ISREG(found.st_mode):
                findings.append(_not_a_file(path))
                continue
            if size != expected.nbytes:
                findings.append(_wrong_size(path, size, expected.nbytes))
                continue
            with path.open("rb") as file:
                head = file.read(min(expected.header, size))
        except OSError as error:
            findings += unreadable(path, error).report.findings
            continue
        if xxhash.xxh3_128_hexdigest(head) != expected.header_digest:
            findings.append(_flipped(path, "its header"))
        elif name.endswith(".safetensors"):
            headers[name] = parse_header(head, size, str(path))
    return headers, findings


def _whole_tensors(
    directory: Path, manifest: Manifest, headers: dict[str, Header]
) -> dict[str, LazyTensor]:
    """The plain tensors, each one stored box of the size that it must have, in one pass.

    Nearly all are; `_lazy` describes the others, and says what is wrong where something is.
    """
    found: dict[str, LazyTensor] = {}
    paths = {name: str(directory / name) for name in headers}
    sizes: dict[tuple[str, tuple[int, ...]], tuple[int, tuple[int, ...], tuple[int, ...]]] = {}
    for key, record in manifest.tensors.items():
        if (
            len(record.chunks) != 1
            or record.layout != "strided"
            or record.quantizer is not None
            or record.numpy is not None
            or record.class_name is not None
            or record.state is not None
            or record.coalesced
            or record.overlap is not None
        ):
            continue
        chunk, shape = record.chunks[0], record.shape
        header = headers.get(chunk.file)
        entry = None if header is None else header.entries.get(chunk.name)
        if header is None or entry is None or chunk.start is not None or chunk.shape is not None:
            continue
        kind = record.dtype, shape
        if kind not in sizes:
            sizes[kind] = _stored_bytes(record, shape), contiguous_stride(shape), (0,) * len(shape)
        nbytes, stride, start = sizes[kind]
        if entry.end - entry.begin != nbytes:
            continue
        storage = Storage(
            key=f"{chunk.file}/{chunk.name}",
            file=paths[chunk.file],
            offset=header.length + entry.begin,
            nbytes=nbytes,
            digest=chunk.digest,
        )
        piece = Piece(start=start, shape=shape, storage=storage, offset=0, stride=stride)
        found[key] = LazyTensor(
            dtype=record.dtype,
            shape=shape,
            stride=record.stride or stride,
            pieces=(piece,),
            device=record.device,
            requires_grad=record.requires_grad,
            parameter=record.parameter,
            persistent=record.persistent,
        )
    return found


def _lazy(
    key: str,
    record: TensorRecord,
    directory: Path,
    manifest: Manifest,
    headers: dict[str, Header],
) -> LazyTensor:
    stride = record.stride or contiguous_stride(record.shape)
    pieces = tuple(_piece(key, record, c, directory, headers) for c in record.chunks)
    parts = {
        role: _lazy(k, manifest.tensors[k], directory, manifest, headers)
        for role, k in record.components.items()
    }
    layout: Any = record.layout
    return LazyTensor(
        dtype=record.dtype,
        shape=record.shape,
        stride=stride,
        pieces=pieces,
        layout=layout,
        device=record.device,
        requires_grad=record.requires_grad,
        parameter=record.parameter,
        persistent=record.persistent,
        components=parts,
        quantizer=record.quantizer,
        numpy=record.numpy,
        class_name=record.class_name,
        state=record.state,
        coalesced=record.coalesced,
        overlap=record.overlap,
    )


def _piece(
    key: str, record: TensorRecord, chunk: Chunk, directory: Path, headers: dict[str, Header]
) -> Piece:
    header = headers.get(chunk.file)
    entry = header.entries.get(chunk.name) if header else None
    if header is None or entry is None:
        raise _damaged(key, f"{chunk.file} has no tensor {chunk.name[:80]!r}")
    shape = record.shape if chunk.shape is None else chunk.shape
    nbytes = entry.end - entry.begin
    if nbytes != _stored_bytes(record, shape):
        raise _damaged(key, f"{record.dtype} {list(shape)} does not take {nbytes:,} bytes")
    storage = Storage(
        key=f"{chunk.file}/{chunk.name}",
        file=str(directory / chunk.file),
        offset=header.length + entry.begin,
        nbytes=nbytes,
        digest=chunk.digest,
    )
    start = (0,) * len(shape) if chunk.start is None else chunk.start
    return Piece(
        start=start, shape=shape, storage=storage, offset=0, stride=contiguous_stride(shape)
    )


def _stored_bytes(record: TensorRecord, shape: tuple[int, ...]) -> int:
    count = product(shape)
    if record.numpy is not None and DTYPES[record.dtype].numpy != record.numpy:
        return count * numpy_itemsize(record.numpy)
    if record.dtype in PACKED:
        return packed_bytes(record.dtype, shape)
    return count * DTYPES[record.dtype].itemsize


def numpy_itemsize(name: str) -> int:
    """Bytes of one element of a NumPy dtype string such as "<M8[s]"."""
    try:
        return dtype_of(name).itemsize
    except ValueError as error:
        raise _damaged(name[:40], str(error)) from None


def unreadable(path: Path, error: OSError) -> HoldtrueError:
    """The error for a file that the operating system does not give us."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return fail(
            DamageError,
            str(path),
            Finding(
                code="file-missing",
                severity="error",
                where=str(path),
                what="a file of the checkpoint is not there",
                why="the manifest lists it; it was deleted, or not copied along",
                fix="copy the whole directory again, or use another checkpoint",
            ),
        )
    denied = error.errno in (errno.EACCES, errno.EPERM)
    short = "free memory" if error.errno == errno.ENOMEM else "check the disk"
    return fail(
        OpenError,
        str(path),
        Finding(
            code="permission-denied" if denied else "read-failed",
            severity="error",
            where=str(path),
            what="it may not be read" if denied else "it cannot be read",
            why=f"the system says: {error.strerror or error}",
            fix=f"chmod -R u+rX {path.parent}" if denied else f"{short}, then try again",
        ),
    )


def _wrong_size(path: Path, size: int, expected: int) -> Finding:
    shorter = size < expected
    return Finding(
        code="file-truncated" if shorter else "file-longer",
        severity="error",
        where=str(path),
        what=f"{abs(expected - size):,} bytes {'are missing' if shorter else 'too many'}",
        why="the copy stopped early, or the disk was full"
        if shorter
        else "something was appended, or another file was written over it",
        fix="copy the file again, or use another checkpoint",
        saved=f"{expected:,} bytes",
        expected=f"{size:,} bytes",
    )


def _flipped(path: Path, what: str) -> Finding:
    return Finding(
        code="digest-mismatch",
        severity="error",
        where=str(path),
        what=f"{what} is not what was written",
        why="its xxh3-128 digest differs: bytes were changed on disk or on the way",
        fix="copy the file again, or use another checkpoint",
    )


def _not_a_file(path: Path) -> Finding:
    return Finding(
        code="not-a-file",
        severity="error",
        where=str(path),
        what="a link or directory stands where a file of the checkpoint should be",
        why="holdtrue reads plain files inside the directory only: a link could lead anywhere",
        fix="copy the directory with its links resolved, e.g. cp -rL",
    )


def _damaged(where: str, why: str) -> DamageError:
    return fail(
        DamageError,
        where,
        Finding(
            code="manifest-damaged",
            severity="error",
            where=where,
            what="the manifest contradicts itself or its files",
            why=why,
            fix="use another checkpoint",
        ),
    )
