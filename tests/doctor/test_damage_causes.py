"""One damage is told once, with one command, whatever follows from it."""

import os
import zipfile

import torch

import holdtrue


def _errors(path, **more):
    return [f for f in holdtrue.diagnose(path, **more).findings if f.severity == "error"]


def _saved(path, count=8):
    generator = torch.Generator().manual_seed(3)
    tensors = {f"layer.{n}.weight": torch.randn(16, 32, generator=generator) for n in range(count)}
    torch.save(tensors, path)
    return path


def _data_of(path, name):
    with zipfile.ZipFile(path) as archive:
        return path.read_bytes().find(archive.read(name))


def test_a_flipped_bit_is_one_finding(tmp_path):
    path = _saved(tmp_path / "m.pt")
    data = bytearray(path.read_bytes())
    data[_data_of(path, "m/data/3") + 100] ^= 16
    path.write_bytes(data)
    (found,) = _errors(path, deep=True)
    assert found.code == "crc-mismatch"
    assert any("layer.3.weight" in place for place in found.places)


def test_a_missing_record_is_one_finding(tmp_path):
    path = _saved(tmp_path / "whole.pt")
    with (
        zipfile.ZipFile(path) as whole,
        zipfile.ZipFile(tmp_path / "m.pt", "w") as less,
    ):
        for name in whole.namelist():
            if not name.endswith("data/3"):
                less.writestr(name, whole.read(name))
    for deep in (False, True):
        (found,) = _errors(tmp_path / "m.pt", deep=deep)
        assert found.code == "storage-missing"
        assert any("layer.3.weight" in place for place in found.places)


def test_two_damages_are_two_findings_and_one_command(tmp_path):
    path = _saved(tmp_path / "m.pt")
    data = bytearray(path.read_bytes())
    start = _data_of(path, "m/data/3")
    data[start + 1000 : start + 2200] = bytes(1200)  # the end of one record, the head of the next
    path.write_bytes(data)
    found = _errors(path, deep=True)
    assert {f.code for f in found} == {"crc-mismatch", "zip-bad-offset"}
    assert [bool(f.command) for f in found].count(True) == 1


def test_a_short_file_over_a_long_one_is_one_finding(tmp_path):
    short = _saved(tmp_path / "short.pt", 3).read_bytes()
    path = _saved(tmp_path / "long.pt", 12)
    with path.open("r+b") as file:
        file.write(short)
    (found,) = _errors(path)
    assert found.code == "zip-bad-offset"
    assert "not of the archive" in found.what
    assert os.path.getsize(path) > len(short)
    assert all(f.severity == "note" for f in holdtrue.diagnose(path).findings if f != found)
