"""Zip directories: offsets, zip64, and everything that does not fit."""

import io
import struct
import time
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch

from holdtrue.errors import DamageError, OpenError
from holdtrue.formats import torch_zip
from holdtrue.formats.tensor_bytes import read_tensor
from holdtrue.formats.zip_archive import Archive, read_directory, read_entry
from holdtrue.formats.zip_scan import scan_local_headers
from holdtrue.limits import MIB, override


def write(path: Path, records: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as made:
        for name, data in records.items():
            made.writestr(name, data)
    return path


def codes(archive: Archive) -> list[str]:
    return [finding.code for finding in archive.findings]


def edited(path: Path, at: int, data: bytes) -> Path:
    raw = bytearray(path.read_bytes())
    raw[at : at + len(data)] = data
    path.write_bytes(raw)
    return path


RECORDS = {"a/one": b"1" * 50, "a/two": b"2" * 70, "a/three": b""}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_offsets_and_bytes(tmp_path: Path, method: int) -> None:
    archive = read_directory(str(write(tmp_path / "x.zip", RECORDS, method)))
    assert codes(archive) == []
    for (name, data), entry in zip(RECORDS.items(), archive.entries, strict=True):
        assert entry.name == name
        assert read_entry(archive, entry, MIB) == data
    raw = (tmp_path / "x.zip").read_bytes()
    if method == zipfile.ZIP_STORED:
        for data, entry in zip(RECORDS.values(), archive.entries, strict=True):
            assert raw[entry.offset : entry.offset + entry.nbytes] == data


def test_zip64(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as made, made.open("a/big", "w", force_zip64=True) as record:
        record.write(b"x" * 100)
    archive = read_directory(str(path))
    assert codes(archive) == []
    assert read_entry(archive, archive.entries[0], MIB) == b"x" * 100
    torch.save({"w": torch.ones(3)}, tmp_path / "t.pt")  # torch writes a zip64 end record always
    assert codes(read_directory(str(tmp_path / "t.pt"))) == []


def test_something_in_front_and_behind(tmp_path: Path) -> None:
    path = write(tmp_path / "x.zip", RECORDS)
    path.write_bytes(b"#!/bin/sh\n" * 9 + path.read_bytes() + b"junk" * 25)
    archive = read_directory(str(path))
    assert read_entry(archive, archive.entries[1], MIB) == RECORDS["a/two"]


def test_duplicate_names_and_names_that_differ_in_case(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    write(path, {"a/data.pkl": b"", "a/dbta.pkl": b"", "a/DATA.pkl": b""})
    path.write_bytes(path.read_bytes().replace(b"dbta", b"data"))
    assert codes(read_directory(str(path))) == ["zip-duplicate-name"] * 2


@pytest.mark.parametrize("name", ["../up", "/abs", "a/../../b", "..\\win"])
def test_path_tricks(tmp_path: Path, name: str) -> None:
    archive = read_directory(str(write(tmp_path / "x.zip", {name: b"1"})))
    assert codes(archive) == ["zip-path-trick"]


def test_local_header_that_disagrees(tmp_path: Path) -> None:
    path = write(tmp_path / "x.zip", {"a/b": b"12345"})
    assert codes(read_directory(str(edited(path, 30, b"X/b")))) == ["zip-name-mismatch"]
    path = write(tmp_path / "x.zip", {"a/b": b"12345"})
    assert codes(read_directory(str(edited(path, 18, b"\x04")))) == ["zip-header-mismatch"]
    path = write(tmp_path / "x.zip", {"a/b": b"12345"})
    assert codes(read_directory(str(edited(path, 6, b"\x01")))) == ["zip-header-mismatch"]


def central(path: Path) -> int:
    return path.read_bytes().rindex(b"PK\x01\x02")


def test_directory_that_points_elsewhere(tmp_path: Path) -> None:
    path = write(tmp_path / "x.zip", {"a/b": b"12345"})
    far = edited(path, central(path) + 42, struct.pack("<I", 10**9))
    assert codes(read_directory(str(far))) == ["zip-bad-offset"]
    path = write(tmp_path / "x.zip", {"a/b": b"12345"})
    long = edited(path, central(path) + 20, struct.pack("<2I", 10**9, 10**9))
    assert "zip-record-cut" in codes(read_directory(str(long)))
    path = write(tmp_path / "x.zip", {"a/b": b"12345", "a/c": b"67890"})
    both = edited(path, central(path) + 42, struct.pack("<I", 0))
    assert "zip-overlap" in codes(read_directory(str(both)))


def test_bombs_and_encryption(tmp_path: Path) -> None:
    path = write(tmp_path / "x.zip", {"a/b": b"0" * 5000}, zipfile.ZIP_DEFLATED)
    bomb = edited(path, central(path) + 24, struct.pack("<I", 2**31))
    archive = read_directory(str(bomb))
    assert "zip-bomb" in codes(archive)
    with pytest.raises(OpenError):
        read_entry(archive, archive.entries[0], MIB)
    tracemalloc.start()
    with pytest.raises(DamageError):
        read_entry(archive, archive.entries[0], 2**32)
    assert tracemalloc.get_traced_memory()[1] < 16 * MIB
    tracemalloc.stop()
    path = write(tmp_path / "x.zip", {"a/b": b"12345"})
    locked = edited(path, central(path) + 8, b"\x01")
    archive = read_directory(str(locked))
    assert codes(archive) == ["zip-header-mismatch", "zip-encrypted"]
    with pytest.raises(OpenError):
        read_entry(archive, archive.entries[0], MIB)


def test_entries_past_the_budget(tmp_path: Path) -> None:
    path = write(tmp_path / "x.zip", {f"a/{i}": b"" for i in range(60)})
    with override(entries=50), pytest.raises(OpenError):
        read_directory(str(path))


def test_a_crc_that_does_not_hold(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(3)}, tmp_path / "t.pt")
    raw = (tmp_path / "t.pt").read_bytes()
    at = raw.index(b"byteorder") + raw[raw.index(b"byteorder") :].index(b"little")
    edited(tmp_path / "t.pt", at, b"Little")
    found = torch_zip.read(str(tmp_path / "t.pt")).findings
    assert [f.code for f in found] == ["crc-mismatch", "unknown-byteorder"]


def test_scan_finds_what_the_directory_lists(tmp_path: Path) -> None:
    torch.save({str(i): torch.randn(i * 100) for i in range(12)}, tmp_path / "t.pt")
    listed = read_directory(str(tmp_path / "t.pt")).entries
    scanned = scan_local_headers(str(tmp_path / "t.pt"))
    assert scanned.findings == ()
    assert [(e.name, e.offset, e.nbytes, e.crc32) for e in scanned.entries] == [
        (e.name, e.offset, e.nbytes, e.crc32) for e in listed
    ]


def test_salvage_without_a_directory(tmp_path: Path) -> None:
    tensors = {f"layer.{i}": torch.randn(100) for i in range(8)}
    torch.save(tensors, tmp_path / "t.pt")
    raw = (tmp_path / "t.pt").read_bytes()
    for share in (0.5, 0.7, 0.95):
        (tmp_path / "cut.pt").write_bytes(raw[: int(len(raw) * share)])
        view = torch_zip.salvage(str(tmp_path / "cut.pt"))
        missing = [f for f in view.findings if f.code == "storage-missing"]
        places = [place for f in missing for place in f.places or (f.where,)]
        lost = {place.rpartition("/")[2] for place in places}
        assert list(view.tensors) == list(tensors)
        for index, (name, tensor) in enumerate(tensors.items()):
            if str(index) in lost:
                with pytest.raises(DamageError):
                    read_tensor(view.tensors[name])
            else:
                assert read_tensor(view.tensors[name]).tobytes() == tensor.numpy().tobytes()
        assert 0 < len(lost) < 8 or share == 0.95


def test_signatures_by_the_hundred_thousand_take_no_time(tmp_path: Path) -> None:
    fake = struct.pack("<4s5H3I2H", b"PK\x03\x04", 20, 8, 0, 0, 0, 0, 0, 0, 1, 0) + b"x"
    (tmp_path / "x.zip").write_bytes(fake * 100_000)
    begin = time.process_time()
    scan_local_headers(str(tmp_path / "x.zip"))
    assert time.process_time() - begin < 20


def test_a_large_file_is_opened_by_its_directory_alone(tmp_path: Path) -> None:
    path = tmp_path / "large.pt"
    with torch.serialization.skip_data():  # records without bytes: a sparse file
        torch.save({str(i): torch.empty(MIB * 16) for i in range(32)}, path)
    assert path.stat().st_size > 2_000_000_000
    tracemalloc.start()
    begin = time.process_time()
    view = torch_zip.read(str(path))
    assert time.process_time() - begin < 0.3
    assert tracemalloc.get_traced_memory()[1] < 16 * MIB
    tracemalloc.stop()
    assert len(view.tensors) == 32
    assert not [f for f in view.findings if f.severity == "error"]


def test_an_archive_inside_another(tmp_path: Path) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as made:
        made.writestr("in/a", b"hello")
    path = write(tmp_path / "x.zip", {"outer/in.zip": inner.getvalue()})
    outer = read_directory(str(path)).entries[0]
    archive = read_directory(str(path), (outer.offset, outer.nbytes))
    assert read_entry(archive, archive.entries[0], MIB) == b"hello"
