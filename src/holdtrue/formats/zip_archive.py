"""The directory of a zip archive, with absolute data offsets and everything odd about it.

Parsed here rather than by `zipfile`: that hides the local headers, keeps only the last of two
entries of one name, has no data offsets, and raises a different exception for each damage. What
is wanted is the reverse: both headers compared, every entry kept, every oddity a finding.
"""

import struct
import zlib
from itertools import pairwise
from typing import BinaryIO, Protocol

from msgspec import Struct
from msgspec.structs import replace

from holdtrue.errors import DamageError, OpenError, fail
from holdtrue.findings import Finding
from holdtrue.formats.finding_groups import keep
from holdtrue.formats.pickle_source import over_budget
from holdtrue.formats.source import open_source, read_bytes
from holdtrue.formats.view import Storage
from holdtrue.limits import MIB, limits

STORED, DEFLATED = 0, 8

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_LOCATOR64 = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQ2H2I4Q")

LOCAL_SIGNATURE = b"PK\x03\x04"
_ENCRYPTED = 0x0001 | 0x0040 | 0x2000
HAS_DESCRIPTOR = 0x0008
_UTF8 = 0x0800
_RATIO = 1032  # deflate cannot do better than this to one


class Entry(Struct, frozen=True, kw_only=True):
    """One record of an archive."""

    name: str
    header_offset: int
    offset: int  # first byte of the data within the file
    stored: int  # bytes in the file
    nbytes: int  # bytes once inflated
    crc32: int | None  # None where the writer computed none
    method: int
    flags: int

    @property
    def readable(self) -> bool:
        return self.method in (STORED, DEFLATED) and not self.flags & _ENCRYPTED


class Archive(Struct, frozen=True, kw_only=True):
    """The entries in the order of the directory, and what was noticed about them."""

    path: str
    entries: tuple[Entry, ...]
    findings: tuple[Finding, ...] = ()


class Readable(Protocol):
    """What is needed of a file; a `Region` of one will do."""

    def seek(self, offset: int, whence: int = 0, /) -> int: ...
    def read(self, size: int = -1, /) -> bytes: ...


class Region:
    """Part of an open file as a file of its own: an archive that lies stored inside another."""

    def __init__(self, file: BinaryIO, start: int, nbytes: int) -> None:
        self._file, self._start, self._nbytes, self._position = file, start, nbytes, 0

    def seek(self, offset: int, whence: int = 0, /) -> int:
        self._position = offset + (0, self._position, self._nbytes)[whence]
        return self._position

    def read(self, size: int = -1, /) -> bytes:
        left = max(self._nbytes - self._position, 0)
        self._file.seek(self._start + self._position)
        data = self._file.read(left if size < 0 else min(size, left))
        self._position += len(data)
        return data


def read_directory(path: str, region: tuple[int, int] | None = None) -> Archive:
    """Entries by the central directory. Raises DamageError where there is none to be found.

    `region` is the first byte and the length of an archive inside the file.
    """
    with open_source(path) as whole:
        file: Readable = whole if region is None else Region(whole, *region)
        size = file.seek(0, 2)
        start, length, count, shift, after = _locate_directory(file, size, path)
        if count > limits().entries:
            raise over_budget(path, "entries", limits().entries, "records in an archive")
        if length > limits().header_bytes + 1024 * count:
            raise over_budget(path, "header_bytes", limits().header_bytes, "bytes of directory")
        file.seek(start)
        entries, findings = _read_central(file.read(length), count, shift, path)
        checked = _check_local(file, entries, size, path, findings)
    findings += _check_overlaps(checked, start, path) + check_names(checked, path)
    if after:
        findings.append(_followed(path, size, after))
    if region is not None:
        checked = [_moved(entry, region[0]) for entry in checked]
    return Archive(path=path, entries=tuple(checked), findings=tuple(findings))


def _moved(entry: Entry, by: int) -> Entry:
    return replace(entry, header_offset=entry.header_offset + by, offset=entry.offset + by)


def read_entry(archive: Archive, entry: Entry, budget: int) -> bytes:
    """The bytes of one record, inflated, at most `budget` of them. The CRC is not checked."""
    where = f"{archive.path}: {entry.name}"
    if entry.nbytes > budget or entry.stored > budget:
        raise over_budget(where, "pickle_bytes", budget, "bytes in this record")
    if not entry.readable:
        raise fail(
            OpenError,
            archive.path,
            finding("zip-unreadable-record", "error", where, "a record is encrypted or compressed "
                     "in a way that no checkpoint is", f"method {entry.method}, flags "
                     f"0x{entry.flags:04x}"),
        )  # fmt: skip
    data = read_bytes(archive.path, entry.offset, entry.stored)
    if len(data) == entry.stored and entry.method == DEFLATED:
        try:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, entry.nbytes + 1)
        except zlib.error:
            data = b""
    if len(data) != entry.nbytes:
        raise fail(
            DamageError,
            archive.path,
            finding("zip-record-short", "error", where, "a record has other bytes than its "
                     "header says", f"{entry.nbytes:,} were announced, {len(data):,} are there"),
        )  # fmt: skip
    return data


def crc_findings(archive: Archive, entry: Entry, data: bytes) -> list[Finding]:
    """A finding where the bytes are not those that were written. torch.load does not look."""
    if entry.crc32 is None or zlib.crc32(data) == entry.crc32:
        return []
    return [
        finding(
            "crc-mismatch", "error", f"{archive.path}: {entry.name}",
            "a record is not what was written",
            f"its CRC is {zlib.crc32(data):08x}, the archive says {entry.crc32:08x}",
        )
    ]  # fmt: skip


def storage_of(archive: Archive, entry: Entry, key: str, **more: object) -> Storage:
    """The record as bytes to be read later."""
    return Storage(
        key=key,
        file=archive.path,
        offset=entry.offset,
        nbytes=entry.nbytes,
        codec="deflate" if entry.method == DEFLATED else "raw",
        stored=entry.stored if entry.method == DEFLATED else None,
        crc32=entry.crc32,
        **more,  # type: ignore[arg-type]  # big_endian and itemsize
    )


def _locate_directory(file: Readable, size: int, path: str) -> tuple[int, int, int, int, int]:
    """(start, length, entries, bytes before the archive, bytes after it) of the directory."""
    for reach in (_END.size + 0xFFFF + 20 + 4096, MIB):  # the second for what others appended
        tail_size = min(size, reach)
        file.seek(size - tail_size)
        tail = file.read(tail_size)
        at = tail.rfind(b"PK\x05\x06")
        while at >= 0 and at + _END.size > len(tail):
            at = tail.rfind(b"PK\x05\x06", 0, at)
        if at >= 0:
            break
    else:
        raise _no_directory(path, size)
    (comment,) = struct.unpack_from("<H", tail, at + _END.size - 2)
    after = max(0, tail_size - at - _END.size - comment)
    _, _, _, _, count, length, start, _ = _END.unpack_from(tail, at)
    end = size - tail_size + at
    if at >= _LOCATOR64.size and tail[at - _LOCATOR64.size :][:4] == b"PK\x06\x07":
        _, _, place, _ = _LOCATOR64.unpack_from(tail, at - _LOCATOR64.size)
        if place + _END64.size <= end:
            file.seek(place)
            record = file.read(_END64.size)
            if record[:4] == b"PK\x06\x06":
                _, _, _, _, _, _, _, count, length, start = _END64.unpack(record)
                end = place
    shift = 0
    if start + length <= size:
        file.seek(start)
        if count and file.read(4) != b"PK\x01\x02" and end >= length:
            shift = end - length - start  # something stands before the archive
    if start + shift < 0 or start + shift + length > size:
        raise _no_directory(path, size)
    return start + shift, length, count, shift, after


def _followed(path: str, size: int, after: int) -> Finding:
    why = "something was appended; torch looks for the directory near the end of the file only"
    what = f"{after:,} bytes follow the archive"
    return finding("trailing-bytes", "warning", f"{path}: byte {size - after}", what, why)


def _no_directory(path: str, size: int) -> DamageError:
    return fail(
        DamageError,
        path,
        Finding(
            code="zip-no-directory",
            severity="error",
            where=path,
            what="the end of the archive is missing",
            why=f"a zip archive ends with its directory; these {size:,} bytes do not",
            fix="fetch or save the file again; `holdtrue salvage` keeps the records that are whole",
        ),
    )


def _read_central(
    data: bytes, count: int, shift: int, path: str
) -> tuple[list[Entry], list[Finding]]:
    entries: list[Entry] = []
    at = 0
    while at + _CENTRAL.size <= len(data) and data[at : at + 4] == b"PK\x01\x02":
        (_, _, _, flags, method, _, _, crc, stored, nbytes, name_size, extra_size, comment_size,
         _, _, _, header) = _CENTRAL.unpack_from(data, at)  # fmt: skip
        at += _CENTRAL.size
        name = _decode(data[at : at + name_size], flags)
        extra = data[at + name_size : at + name_size + extra_size]
        at += name_size + extra_size + comment_size
        nbytes, stored, header = _zip64(extra, nbytes, stored, header)
        entries.append(
            Entry(name=name, header_offset=header + shift, offset=-1, stored=stored, nbytes=nbytes,
                  crc32=crc, method=method, flags=flags)
        )  # fmt: skip
        if len(entries) > limits().entries:
            raise over_budget(path, "entries", limits().entries, "records in an archive")
    findings = []
    if len(entries) != count:
        findings.append(
            finding("zip-directory-count", "warning", path, "the directory is not as long as the "
                     "archive says", f"{count:,} records announced, {len(entries):,} listed")
        )  # fmt: skip
    return entries, findings


def _zip64(extra: bytes, nbytes: int, stored: int, header: int) -> tuple[int, int, int]:
    """Sizes and offset, from the zip64 field where the header has no room for them."""
    at = 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<HH", extra, at)
        field, at = extra[at + 4 : at + 4 + size], at + 4 + size
        if kind != 1:
            continue
        numbers = list(struct.unpack(f"<{len(field) // 8}Q", field[: len(field) // 8 * 8]))
        values = []
        for value in (nbytes, stored, header):
            full = value == 0xFFFFFFFF and bool(numbers)
            values.append(numbers.pop(0) if full else value)
        return values[0], values[1], values[2]
    return nbytes, stored, header


def _decode(name: bytes, flags: int) -> str:
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        return name.decode("cp437" if not flags & _UTF8 else "latin1")


def _check_local(
    file: Readable, entries: list[Entry], size: int, path: str, findings: list[Finding]
) -> list[Entry]:
    """The same entries with their data offsets, each local header compared with the directory."""
    checked: list[Entry] = []
    for entry in entries:
        where = f"{path}: {entry.name}"
        local = read_local(file, entry.header_offset, size)
        if local is None:
            keep(findings,
                finding("zip-bad-offset", "error", where, "the directory points at no record",
                         f"offset {entry.header_offset:,} of {size:,} bytes")
            )  # fmt: skip
            continue
        name, flags, method, crc, stored, nbytes, data = local
        if name != entry.name:
            keep(findings,
                finding("zip-name-mismatch", "warning", where,
                         "a record has another name in its own header than in the directory",
                         "torch goes by the directory, other tools by the header",
                         saved=name[:100], expected=entry.name[:100])
            )  # fmt: skip
        announced = not flags & HAS_DESCRIPTOR or stored or nbytes
        if (
            (flags ^ entry.flags) & ~_UTF8
            or method != entry.method
            or (announced and (crc, stored, nbytes) != (entry.crc32, entry.stored, entry.nbytes))
        ):
            keep(findings,
                finding("zip-header-mismatch", "warning", where,
                         "a record's own header and the directory disagree",
                         "sizes, CRC, method or flags differ; torch goes by the directory")
            )  # fmt: skip
        if data + entry.stored > size:
            keep(findings,
                finding("zip-record-cut", "error", where, "a record reaches past the end",
                         f"{data + entry.stored:,} bytes are needed, the file has {size:,}")
            )  # fmt: skip
            continue
        for found in _check_sizes(entry, where):
            keep(findings, found)
        # CRC 0 with bytes behind it: the writer computed none.
        known = None if entry.crc32 == 0 and entry.nbytes else entry.crc32
        checked.append(replace(entry, offset=data, crc32=known))
    return checked


def _check_sizes(entry: Entry, where: str) -> list[Finding]:
    found = []
    if entry.flags & _ENCRYPTED:
        found.append(finding("zip-encrypted", "error", where, "a record is marked as encrypted",
                              f"flags 0x{entry.flags:04x}"))  # fmt: skip
    if entry.method == STORED and entry.stored != entry.nbytes:
        found.append(finding("zip-sizes", "error", where, "a stored record has two sizes",
                              f"{entry.stored:,} and {entry.nbytes:,} bytes"))  # fmt: skip
    if entry.nbytes > max(entry.stored, 1) * _RATIO + 64 and entry.method == DEFLATED:
        found.append(
            finding("zip-bomb", "error", where, "a record claims to inflate past what deflate can",
                    f"{entry.stored:,} bytes to {entry.nbytes:,}")
        )  # fmt: skip
    return found


def read_local(
    file: Readable, offset: int, size: int
) -> tuple[str, int, int, int, int, int, int] | None:
    """(name, flags, method, crc, stored, nbytes, data offset) of a local header."""
    if offset < 0 or offset + _LOCAL.size > size:
        return None
    file.seek(offset)
    head = file.read(_LOCAL.size + 512)
    if len(head) < _LOCAL.size or head[:4] != LOCAL_SIGNATURE:
        return None
    _, _, flags, method, _, _, crc, stored, nbytes, name_size, extra_size = _LOCAL.unpack_from(head)
    if len(head) < _LOCAL.size + name_size + extra_size:
        file.seek(offset)
        head = file.read(_LOCAL.size + name_size + extra_size)
    name = _decode(head[_LOCAL.size : _LOCAL.size + name_size], flags)
    extra = head[_LOCAL.size + name_size : _LOCAL.size + name_size + extra_size]
    nbytes, stored, _ = _zip64(extra, nbytes, stored, 0)
    return name, flags, method, crc, stored, nbytes, offset + _LOCAL.size + name_size + extra_size


def _check_overlaps(entries: list[Entry], directory: int, path: str) -> list[Finding]:
    found: list[Finding] = []
    spans = sorted((e.header_offset, e.offset + e.stored, e.name) for e in entries)
    for (_, end, name), (start, _, other) in pairwise(spans):
        if start < end:
            found.append(
                finding("zip-overlap", "error", f"{path}: {other}", "two records share their bytes",
                        f"it begins inside {name}")
            )  # fmt: skip
    if spans and max(end for _, end, _ in spans) > directory:
        found.append(finding("zip-overlap", "error", path, "a record reaches into the directory"))
    return found[:100]


def check_names(entries: list[Entry], path: str) -> list[Finding]:
    found: list[Finding] = []
    seen: set[str] = set()
    for entry in entries:
        # Without regard to case: so torch looks records up.
        folded = entry.name.lower()
        if folded in seen:
            found.append(
                finding("zip-duplicate-name", "error", f"{path}: {entry.name}",
                        "two records have one name", "readers differ in which they take")
            )  # fmt: skip
        seen.add(folded)
        parts = entry.name.replace("\\", "/").split("/")
        if ".." in parts or entry.name.startswith(("/", "\\")) or "\0" in entry.name:
            found.append(finding("zip-path-trick", "error", f"{path}: {entry.name[:100]!r}",
                                  "a record is named to land outside its folder"))  # fmt: skip
    return found[:100]


def finding(code: str, severity: str, where: str, what: str, why: str = "", **more: str) -> Finding:
    return Finding(code=code, severity=severity, where=where, what=what, why=why, **more)  # type: ignore[arg-type]
