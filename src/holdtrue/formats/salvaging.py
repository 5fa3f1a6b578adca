"""What is whole of a damaged file: tensors whose bytes are all there and, in zips, whose CRC holds.

The tree is kept as far as it is known; a lost tensor leaves a gap in it, never wrong numbers.
"""

from collections import deque
from collections.abc import Callable
from typing import Any

from msgspec import Struct
from msgspec.structs import force_setattr, replace

from holdtrue.errors import DamageError, HoldtrueError, OpenError, fail
from holdtrue.findings import Finding
from holdtrue.formats import (
    dcp,
    hf_index,
    numpy_files,
    plain_pickle,
    salvaging_safetensors,
    torch_legacy,
    torch_zip,
)
from holdtrue.formats.detect import Detected, Kind
from holdtrue.formats.opening import detect_checkpoint, reader_of
from holdtrue.formats.pickle_tensors import row
from holdtrue.formats.source import open_source, read_bytes
from holdtrue.formats.tensor_bytes import element_bytes
from holdtrue.formats.verifying import check_storage, missing_bytes, parts
from holdtrue.formats.view import LazyTensor, Piece, View
from holdtrue.formats.zip_archive import (
    LOCAL_SIGNATURE,
    Archive,
    read_directory,
    read_local,
    storage_of,
)
from holdtrue.formats.zip_scan import scan_local_headers
from holdtrue.limits import KIB
from holdtrue.records.inert import Record


class Lost(Struct, frozen=True):
    """A tensor that could not be kept. No bytes missing means that those there are wrong."""

    path: str
    dtype: str
    shape: tuple[int, ...]
    missing: int
    why: str


class Salvaged(Struct, frozen=True):
    """`unnamed` holds whole storages that no surviving part of the tree points at."""

    view: View
    lost: tuple[Lost, ...]
    unnamed: dict[str, LazyTensor]


def salvage(path: str) -> Salvaged:
    """Everything of a file that can be trusted. Raises OpenError where it is no checkpoint,
    DamageError where nothing at all is left of it."""
    detected = _detected(path)
    view = _READERS.get(detected.kind, reader_of(detected.kind))(detected.path)
    verdicts: dict[tuple[str, int, int, int | None], str | None] = {}
    lost: list[Lost] = []
    for name, tensor in view.tensors.items():
        found = _loss(name, tensor, verdicts)
        if found is not None:
            lost.append(found)
    lost = _less_what_is_there(view, lost)
    gone = {entry.path for entry in lost}
    kept = {name: tensor for name, tensor in view.tensors.items() if name not in gone}
    unnamed = _unnamed(view) if detected.kind in ("torch-zip", "torchscript") else {}
    if not kept and not unnamed and (lost or not view.tree):
        raise fail(DamageError, path, _nothing(path, len(lost)), *view.findings)
    tree = _without(view.tree, {id(view.tensors[name]) for name in gone})
    return Salvaged(replace(view, tree=tree, tensors=kept), tuple(lost), unnamed)


def _detected(path: str) -> Detected:
    """What the file is; a zip archive is known by its end too, where its beginning is zeros."""
    try:
        return detect_checkpoint(path)
    except OpenError as error:
        if all(finding.code != "file-zeroed" for finding in error.report.findings):
            raise
        try:
            read_directory(path)
        except DamageError:
            raise error from None
        return Detected("torch-zip", path)


def _loss(
    name: str, tensor: LazyTensor, verdicts: dict[tuple[str, int, int, int | None], str | None]
) -> Lost | None:
    """Why a tensor cannot be kept; None where it is whole."""
    for part in parts(tensor):
        width = element_bytes(part) if part.pieces else 0
        missing = sum(missing_bytes(piece, width) for piece in part.pieces)
        why = "its bytes are cut off" if missing else None
        for piece in part.pieces:
            if why is None:
                storage = piece.storage
                place = (storage.file, storage.offset, storage.nbytes, storage.crc32)
                if place not in verdicts:
                    finding = check_storage(storage)
                    verdicts[place] = None if finding is None else finding.why
                why = verdicts[place]
                missing += _absent(piece) if why is not None else 0
        if why is not None:
            return Lost(name, tensor.dtype, tensor.shape, missing, why)
    return None


def _absent(piece: Piece) -> int:
    """How many bytes of a piece's storage lie beyond the end of its file."""
    storage = piece.storage
    if storage.inline is not None:
        return 0
    try:
        with open_source(storage.file) as file:
            size = file.seek(0, 2)
    except HoldtrueError:
        return storage.nbytes
    held = storage.nbytes if storage.stored is None else storage.stored
    return min(held, max(0, storage.offset + held - size))


def _less_what_is_there(view: View, lost: list[Lost]) -> list[Lost]:
    """Some bytes are there of the record that a zip was cut within; its header names it."""
    if view.format != "torch-zip" or not lost:
        return lost
    entries = _archive(view.path).entries
    end = max((entry.offset + entry.stored for entry in entries), default=0)
    found = read_bytes(view.path, end, 4 * KIB).find(LOCAL_SIGNATURE)
    with open_source(view.path) as file:
        size = file.seek(0, 2)
        local = read_local(file, end + found, size) if found >= 0 else None
    if local is None:
        return lost
    name, offset = local[0].partition("/")[2], local[-1]
    there = max(0, size - offset)

    def holds(entry: Lost) -> bool:
        pieces = (piece for part in parts(view.tensors[entry.path]) for piece in part.pieces)
        return any(piece.storage.key == name and not piece.storage.nbytes for piece in pieces)

    return [
        replace(entry, missing=max(1, entry.missing - there)) if holds(entry) else entry
        for entry in lost
    ]


def _without(tree: Any, gone: set[int]) -> Any:
    """The tree without these tensors: dicts lose the key, elsewhere a shape without bytes stays."""
    if id(tree) in gone:
        return None
    seen = {id(tree)}
    stack = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            for key in [key for key, value in node.items() if id(value) in gone]:
                del node[key]
            inner = list(node.values())
        elif isinstance(node, (list, tuple, set, frozenset, deque)):
            inner = list(node)
        elif isinstance(node, Record):
            inner = [*node.args, node.kwargs, node.state, node.items]
        else:
            inner = []
            if isinstance(node, LazyTensor) and id(node) in gone:
                # In place, because a tuple or a record's state cannot be told to drop it.
                force_setattr(node, "layout", "meta")
                force_setattr(node, "pieces", ())
                force_setattr(node, "components", {})
        for value in inner:
            if id(value) not in seen:
                seen.add(id(value))
                stack.append(value)
    return tree


def _read_zip(path: str) -> View:
    """A torch archive by its directory, and by its records' own headers where that is damaged."""
    archive = _archive(path)
    try:
        return torch_zip.read_archive(archive, salvage=True)
    except HoldtrueError as error:  # the pickle itself is gone: what remains has no names
        return View(
            path=path,
            format="torch-zip",
            about={},
            tree=None,
            tensors={},
            findings=(*archive.findings, *error.report.findings),
        )


def _archive(path: str) -> Archive:
    try:
        archive = read_directory(path)
        if not any(finding.severity == "error" for finding in archive.findings):
            return archive
        findings = archive.findings
        entries = list(archive.entries)
    except DamageError as error:
        findings, entries = error.report.findings, []
    scanned = scan_local_headers(path)
    known = {entry.name for entry in entries}
    entries += [entry for entry in scanned.entries if entry.name not in known]
    return Archive(path=path, entries=tuple(entries), findings=(*findings, *scanned.findings))


def _read_npz(path: str) -> View:
    return numpy_files.read_members(_archive(path))


def _unnamed(view: View) -> dict[str, LazyTensor]:
    """Whole storages of an archive whose tensors' names are lost with the pickle's tail."""
    used = {
        piece.storage.offset
        for tensor in view.tensors.values()
        for part in parts(tensor)
        for piece in part.pieces
    }
    found: dict[str, LazyTensor] = {}
    archive = _archive(view.path)
    for entry in archive.entries:
        folder, _, key = entry.name.rpartition("/")
        if not folder.endswith("data") or not key.isdecimal() or entry.offset in used:
            continue
        storage = storage_of(archive, entry, entry.name)
        if entry.readable and check_storage(storage) is None:
            found[f"data/{key}"] = row(storage, "uint8", entry.nbytes)
    return found


_READERS: dict[Kind, Callable[[str], View]] = {
    "torch-zip": _read_zip,
    "torch-legacy": torch_legacy.salvage,
    "pickle": plain_pickle.salvage,
    "safetensors": salvaging_safetensors.salvage,
    "hf-index": hf_index.read_incomplete,
    "dcp": dcp.read_incomplete,
    "npz": _read_npz,
}


def _nothing(path: str, count: int) -> Finding:
    return Finding(
        code="nothing-whole",
        severity="error",
        where=path,
        what="nothing of the file is whole",
        why=("1 tensor is" if count == 1 else f"{count:,} tensors are")
        + " known of, and bytes of each are missing or wrong"
        if count
        else "not even the names of its tensors are left",
        fix="go back to the checkpoint before, or fetch the file again",
    )
