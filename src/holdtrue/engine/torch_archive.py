"""A torch zip file: laid out before it is written, storages streamed into it by several threads.

Each record begins on a multiple of 64 bytes, as torch aligns them, so that it may be mapped.
"""

import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from holdtrue.engine.new_file import NewFile
from holdtrue.engine.threads import in_threads
from holdtrue.engine.windows import check_size
from holdtrue.engine.write import Progress

_ALIGN = 64
_FOLDER = "archive"
_MAX32, _MAX16 = 0xFFFFFFFF, 0xFFFF
_PADDING = 0x4246  # "FB", the extra field in which torch pads
_DATE = 0x0021  # 1980-01-01: no clock, so the same tensors give the same bytes


class Storable(Protocol):
    """A storage's bytes; see `engine.stored.StoredSource`."""

    @property
    def nbytes(self) -> int: ...
    def blocks(self) -> Iterator[memoryview]: ...


class _Record(Struct, frozen=True):
    name: bytes
    at: int  # of its local header
    data_at: int
    nbytes: int


def archive_bytes(pickle: bytes, storages: Sequence[Storable]) -> int:
    """The exact size of the file."""
    records = _lay_out(_sizes(pickle, storages))
    return _end(records) + len(_directory(records, [0] * len(records), _end(records)))


def write_archive(
    path: Path, pickle: bytes, storages: Sequence[Storable], progress: Progress | None = None
) -> None:
    """Write and fsync the file of a state dict's pickle and its storages. Raises OSError."""
    sizes = _sizes(pickle, storages)
    records = _lay_out(sizes)
    small = _small(pickle)
    crcs = {name: zlib.crc32(data) for name, data in small.items()}
    end = _end(records)
    file = NewFile(path, archive_bytes(pickle, storages))
    try:
        by_name = {record.name: record for record in records}
        for name, data in small.items():
            file.write(memoryview(data), by_name[_full(name)].data_at)
        jobs = [(by_name[_full(f"data/{n}")], storage) for n, storage in enumerate(storages)]
        found = in_threads(lambda job: _stream(file, *job, progress), jobs)
        crcs |= {f"data/{n}": crc for n, crc in enumerate(found)}
        ordered = [crcs[name] for name in sizes]
        for record, crc in zip(records, ordered, strict=True):
            file.write(memoryview(_local(record, crc)), record.at)
        file.write(memoryview(_directory(records, ordered, end)), end)
        file.sync()
    finally:
        file.close()


def _small(pickle: bytes) -> dict[str, bytes]:
    return {"data.pkl": pickle, "byteorder": b"little", "version": b"3\n"}


def _sizes(pickle: bytes, storages: Sequence[Storable]) -> dict[str, int]:
    """Name → bytes, in the order of the file; the version comes last, as torch has it."""
    small = {name: len(data) for name, data in _small(pickle).items()}
    version = small.pop("version")
    data = {f"data/{n}": storage.nbytes for n, storage in enumerate(storages)}
    return {**small, **data, "version": version}


def _stream(file: NewFile, record: _Record, storage: Storable, progress: Progress | None) -> int:
    crc = done = 0
    for block in storage.blocks():
        if done + block.nbytes <= record.nbytes:  # never into the neighbour's bytes
            file.write(block, record.data_at + done)
        crc = zlib.crc32(block, crc)
        done += block.nbytes
        if progress is not None:
            progress(block.nbytes)
    check_size(record.name.decode(), record.nbytes, done)
    return crc


def _full(name: str) -> bytes:
    return f"{_FOLDER}/{name}".encode()


def _lay_out(sizes: dict[str, int]) -> list[_Record]:
    records: list[_Record] = []
    at = 0
    for name, nbytes in sizes.items():
        full = _full(name)
        data_at = at + 30 + len(full) + len(_sizes64(nbytes)) + 4
        data_at += -data_at % _ALIGN
        records.append(_Record(full, at, data_at, nbytes))
        at = data_at + nbytes
    return records


def _end(records: list[_Record]) -> int:
    return records[-1].data_at + records[-1].nbytes


def _sizes64(nbytes: int, *more: int) -> bytes:
    """The zip64 extra field, where a number does not fit into 32 bits."""
    if nbytes < _MAX32 and not more:
        return b""
    numbers = (nbytes, nbytes, *more) if nbytes >= _MAX32 else more
    return struct.pack(f"<HH{len(numbers)}Q", 1, 8 * len(numbers), *numbers)


def _fixed(record: _Record, crc: int, extra: int) -> bytes:
    """The fields that the local header and the directory have in common."""
    short = min(record.nbytes, _MAX32)
    needed = 45 if short == _MAX32 else 20
    return struct.pack("<HHHHHIIIHH", needed, 0, 0, 0, _DATE, crc, short, short, len(record.name),
                       extra)  # fmt: skip


def _local(record: _Record, crc: int) -> bytes:
    wide = _sizes64(record.nbytes)
    padding = record.data_at - record.at - 30 - len(record.name) - len(wide) - 4
    extra = wide + struct.pack("<HH", _PADDING, padding) + b"Z" * padding
    return b"PK\x03\x04" + _fixed(record, crc, len(extra)) + record.name + extra


def _directory(records: list[_Record], crcs: list[int], at: int) -> bytes:
    """The central directory and what follows it to the end of the file."""
    entries = []
    for record, crc in zip(records, crcs, strict=True):
        far = (record.at,) if record.at >= _MAX32 else ()
        wide = _sizes64(record.nbytes, *far)
        made = struct.pack("<H", 45)
        rest = struct.pack("<HHHII", 0, 0, 0, 0, min(record.at, _MAX32))
        entries.append(
            b"PK\x01\x02" + made + _fixed(record, crc, len(wide)) + rest + record.name + wide
        )
    body = b"".join(entries)
    count, tail = len(records), b""
    if count >= _MAX16 or at >= _MAX32 or len(body) >= _MAX32:
        numbers = (45, 45, 0, 0, count, count, len(body), at)
        tail = b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, *numbers)
        tail += b"PK\x06\x07" + struct.pack("<IQI", 0, at + len(body), 1)
    few = min(count, _MAX16)
    tail += b"PK\x05\x06" + struct.pack(
        "<HHHHIIH", 0, 0, few, few, min(len(body), _MAX32), min(at, _MAX32), 0
    )
    return body + tail
