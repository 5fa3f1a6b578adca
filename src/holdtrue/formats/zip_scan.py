"""The records of a zip archive whose directory is lost, found by their own headers."""

import struct
from typing import BinaryIO

from holdtrue.findings import Finding
from holdtrue.formats.source import open_source
from holdtrue.formats.zip_archive import (
    HAS_DESCRIPTOR,
    LOCAL_SIGNATURE,
    Archive,
    Entry,
    check_names,
    finding,
    read_local,
)
from holdtrue.limits import MIB, limits

_BLOCK = 4 * MIB
_OVERLAP = 32  # bytes read beyond a block, so that nothing sought is cut in two


class _Scan:
    """Forward search in a file. `left` bounds the bytes looked at, over and over or not."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size = file, size
        self.left = 8 * size + _BLOCK
        self._start, self._block = 0, b""

    def find(self, pattern: bytes, start: int) -> int | None:
        """Where the pattern next stands."""
        position = start
        while position < self.size and self.left > 0:
            block, at = self._around(position)
            found = block.find(pattern, at)
            self.left -= (len(block) if found < 0 else found + 1) - at
            if found >= 0:
                return self._start + found
            position = self._start + max(len(block) - _OVERLAP, _BLOCK)
        return None

    def peek(self, position: int, count: int) -> bytes:
        """Up to `count` bytes, at most 32."""
        block, at = self._around(position)
        return block[at : at + count]

    def _around(self, position: int) -> tuple[bytes, int]:
        start = position - position % _BLOCK
        if start != self._start or not self._block:
            self.file.seek(start)
            self._start, self._block = start, self.file.read(_BLOCK + _OVERLAP)
        return self._block, position - start


def scan_local_headers(path: str) -> Archive:
    """Entries by their local headers alone: for archives whose directory is lost.

    Only records that are there to their last byte are given; one that is cut off is a finding.
    """
    entries: list[Entry] = []
    findings: list[Finding] = []
    with open_source(path) as file:
        size = file.seek(0, 2)
        scan = _Scan(file, size)
        position = scan.find(LOCAL_SIGNATURE, 0)
        while position is not None and len(entries) < limits().entries:
            entry, after = _entry_at(scan, position)
            if entry is not None:
                entries.append(entry)
            elif after < 0 and len(findings) < 100:
                findings.append(
                    finding("zip-record-cut", "warning", f"{path}: byte {position}",
                            "a record is cut off or its length is not known",
                            f"{size - position:,} bytes are left of it")
                )  # fmt: skip
            position = scan.find(LOCAL_SIGNATURE, after if entry is not None else position + 4)
    findings += check_names(entries, path)
    return Archive(path=path, entries=tuple(entries), findings=tuple(findings))


def _entry_at(scan: _Scan, position: int) -> tuple[Entry | None, int]:
    """The whole record whose local header is here, and where it ends; -1 where it is cut."""
    local = read_local(scan.file, position, scan.size)
    if local is None:
        return None, 0
    name, flags, method, crc, stored, nbytes, data = local
    if not name or "\0" in name or len(name) > 4096:
        return None, 0
    end = data + stored
    if flags & HAS_DESCRIPTOR and not stored:
        described = _find_descriptor(scan, data)
        if described is None:
            return None, -1
        crc, stored, nbytes, end = described
    if end > scan.size:
        return None, -1
    known = None if crc == 0 and nbytes else crc
    entry = Entry(name=name, header_offset=position, offset=data, stored=stored, nbytes=nbytes,
                  crc32=known, method=method, flags=flags)  # fmt: skip
    return entry, end


def _find_descriptor(scan: _Scan, data: int) -> tuple[int, int, int, int] | None:
    """(crc, stored, nbytes, end) from the descriptor behind a record of unknown length.

    It is the right one when the length that it gives is the distance to it.
    """
    if scan.peek(data, 4) in (LOCAL_SIGNATURE, b"PK\x01\x02"):
        return 0, 0, 0, data  # an empty record has no descriptor
    here = scan.find(b"PK\x07\x08", data)
    while here is not None:
        tail = scan.peek(here, 24)
        if len(tail) >= 16:
            crc, stored, nbytes = struct.unpack_from("<3I", tail, 4)
            if stored == here - data:
                return crc, stored, nbytes, here + 16
        if len(tail) == 24:
            crc, stored, nbytes = struct.unpack_from("<I2Q", tail, 4)
            if stored == here - data:
                return crc, stored, nbytes, here + 24
        here = scan.find(b"PK\x07\x08", here + 4)
    return None
