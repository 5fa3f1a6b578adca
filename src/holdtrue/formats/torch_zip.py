"""torch.save's zip format, since 1.6: one pickle, `data.pkl`, and one record for each storage."""

from typing import Any

from msgspec.structs import replace

from holdtrue.errors import DamageError, OpenError, fail
from holdtrue.findings import Finding
from holdtrue.formats.checkpoint_about import describe_tree
from holdtrue.formats.finding_groups import group, keep
from holdtrue.formats.nested_torch import read_nested
from holdtrue.formats.pickle_machine import Walked, walk
from holdtrue.formats.pickle_tensors import swap_unit
from holdtrue.formats.torch_storages import StorageId, parse_storage_id, storage_tensor
from holdtrue.formats.tree_walk import tensors_by_path
from holdtrue.formats.view import LazyTensor, Storage, View
from holdtrue.formats.zip_archive import (
    Archive,
    Entry,
    crc_findings,
    finding,
    read_directory,
    read_entry,
    storage_of,
)
from holdtrue.formats.zip_scan import scan_local_headers
from holdtrue.limits import KIB, limits


class Records:
    """The records of one archive by name, below its top folder, and the storages made of them."""

    def __init__(self, archive: Archive, root: str, prefix: str = "") -> None:
        self.archive = archive
        self.root = root
        self.prefix = prefix  # of storage keys, where several archives make one view
        self.findings: list[Finding] = []
        self.big_endian = False
        self._entries: dict[str, Entry] = {}
        for entry in archive.entries:
            self._entries.setdefault(entry.name, entry)
        self._storages: dict[str, Storage] = {}

    def entry(self, name: str) -> Entry | None:
        return self._entries.get(f"{self.root}{name}")

    def names(self) -> list[str]:
        return [n.removeprefix(self.root) for n in self._entries if n.startswith(self.root)]

    def read(self, name: str, budget: int | None = None) -> bytes | None:
        """The bytes of a record, None where there is none."""
        entry = self.entry(name)
        if entry is None:
            return None
        data = read_entry(self.archive, entry, budget or limits().pickle_bytes)
        self.findings += crc_findings(self.archive, entry, data)
        return data

    def folder(self, prefix: str) -> list[str]:
        """The names of the records in a folder, without it."""
        return [n.removeprefix(prefix) for n in self.names() if n.startswith(prefix)]

    def text(self, name: str) -> str | None:
        """A short record as text, stripped."""
        data = self.read(name, 64 * KIB)
        return None if data is None else data.decode("utf-8", "replace").strip()

    def where(self, name: str) -> str:
        return f"{self.archive.path}: {self.root}{name}"

    def storage(self, found: StorageId, folder: str) -> LazyTensor:
        """The tensor for a storage's persistent id. One without its record is kept, empty."""
        name = f"{folder}{found.key}"
        storage = self._storages.get(name)
        if storage is None:
            storage = self._storages[name] = self._storage(found, name)
        return storage_tensor(found, storage)

    def _storage(self, found: StorageId, name: str) -> Storage:
        entry, key = self.entry(name), self.prefix + name
        if entry is None:
            if found.numel and not found.location.startswith("meta"):
                keep(self.findings,
                    finding("storage-missing", "error", self.where(name),
                            "the bytes of a tensor are not in the file",
                            f"{found.nbytes:,} bytes of {found.dtype}")
                )  # fmt: skip
            return Storage(key=key, file=self.archive.path, offset=0, nbytes=0)
        if entry.nbytes != found.nbytes:
            keep(self.findings,
                finding("storage-size-mismatch", "error", self.where(name),
                        "a storage is not as long as the pickle says",
                        f"{found.numel:,} elements of {found.dtype} are {found.nbytes:,} bytes, "
                        f"the record has {entry.nbytes:,}")
            )  # fmt: skip
        if not self.big_endian:
            return storage_of(self.archive, entry, key)
        unit = swap_unit(found.dtype)
        return storage_of(self.archive, entry, key, big_endian=True, itemsize=unit)


def read(path: str) -> View:
    """The checkpoint in a torch zip file."""
    return read_archive(read_directory(path))


def salvage(path: str) -> View:
    """What is whole of a damaged one, with or without the archive's directory."""
    try:
        archive = read_directory(path)
    except DamageError as error:
        scanned = scan_local_headers(path)
        archive = replace(scanned, findings=(*error.report.findings, *scanned.findings))
    return read_archive(archive, salvage=True)


def read_archive(archive: Archive, *, salvage: bool = False, prefix: str = "") -> View:
    """The checkpoint in an archive whose entries are known."""
    records = open_records(archive, "data.pkl", prefix)
    about = describe_records(records)
    walked = walk_record(records, "data.pkl", "data/", salvage=salvage)
    about |= {"protocol": walked.protocol, "would_run": list(walked.would_run)}
    about["refused"] = list(walked.refused)
    about |= describe_tree(walked.value)
    records.findings += _unexpected(records)
    return View(
        path=archive.path,
        format="torch-zip",
        about=about,
        tree=walked.value,
        tensors=tensors_by_path(walked.value, archive.path),
        findings=group((*archive.findings, *records.findings, *walked.findings)),
    )


def open_records(archive: Archive, needed: str, prefix: str = "") -> Records:
    """The records below the archive's top folder, which torch takes from its first entry."""
    names = [entry.name for entry in archive.entries]
    first = names[0].partition("/")[0] + "/" if names and "/" in names[0] else ""
    roots = [first, *(n.removesuffix(needed) for n in names if n.endswith("/" + needed)), ""]
    known = set(names)
    for root in roots:
        if root + needed in known:
            return Records(archive, root, prefix)
    raise fail(
        OpenError if names else DamageError,
        archive.path,
        Finding(
            code="zip-no-pickle",
            severity="error",
            where=archive.path,
            what=f"a zip archive without {needed}",
            why=f"it holds {len(names):,} records: " + ", ".join(names[:5]),
            fix="fetch or save the file again; `holdtrue salvage` keeps what is whole",
        ),
    )


def describe_records(records: Records) -> dict[str, Any]:
    """What the small records of an archive say, and the byte order they set."""
    order = records.text("byteorder")
    records.big_endian = order == "big"
    if order not in (None, "little", "big"):
        records.findings.append(
            finding("unknown-byteorder", "warning", records.where("byteorder"),
                    "the byte order is neither little nor big", f"it says {order[:40]!r}")
        )  # fmt: skip
    version, layout = records.text("version"), records.text(".format_version")
    about: dict[str, Any] = {
        "producer": _producer(order, layout),
        "byteorder": order or "little",
        "archive_version": version,
    }
    extras = {
        "format_version": layout,
        "storage_alignment": records.text(".storage_alignment"),
        "serialization_id": records.text(".data/serialization_id"),
    }
    return about | {key: value for key, value in extras.items() if value is not None}


def _unexpected(records: Records) -> list[Finding]:
    """Records that torch.save does not write: a second pickle may hide in one."""
    known = ("data.pkl", "version", "byteorder", ".format_version", ".storage_alignment")
    names = [
        name
        for name in records.names()
        if name not in known and not name.startswith(("data/", ".data/"))
    ]
    outside = len(records.archive.entries) - len(records.names())
    if not names and not outside:
        return []
    shown = ", ".join(name[:60] for name in names[:5]) or "outside the archive's folder"
    return [
        finding("unexpected-record", "warning", records.archive.path,
                f"{len(names) + outside:,} records are not of the kind that torch.save writes",
                f"they were not read: {shown}")
    ]  # fmt: skip


def _producer(order: str | None, layout: str | None) -> str:
    if layout is not None:
        return "torch 2.7 or later"
    return "torch 2.1 to 2.6" if order is not None else "torch 1.6 to 2.0"


def walk_record(records: Records, name: str, folder: str, *, salvage: bool = False) -> Walked:
    """One pickle of the archive, its storages taken from a folder of it."""

    def persistent(pid: Any) -> Any:
        return records.storage(parse_storage_id(pid), folder)

    data = records.read(name) or b""
    where = records.where(name)
    walked = walk(data, persistent=persistent, where=where, salvage=salvage, nested=read_nested)
    if walked.complete and walked.end < len(data):
        records.findings.append(
            finding("trailing-bytes", "warning", f"{where}: byte {walked.end}",
                    f"{len(data) - walked.end:,} bytes follow the pickle", "they were not read")
        )  # fmt: skip
    return walked
