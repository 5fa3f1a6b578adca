"""One damage is told once, with one command, whatever follows from it."""

import json
import shlex
import shutil
import subprocess
import sys
import zipfile

import pytest
import torch
from safetensors.torch import save_file

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
    assert path.stat().st_size > len(short)
    assert all(f.severity == "note" for f in holdtrue.diagnose(path).findings if f != found)


@pytest.mark.parametrize("inner", ["out", "out/m", "out/m/data.pkl"])
def test_an_unpacked_archive_is_packed_again(inner, tmp_path, monkeypatch):
    truth = torch.load(_saved(tmp_path / "m.pt"))
    with zipfile.ZipFile(tmp_path / "m.pt") as archive:
        archive.extractall(tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    (found,) = _errors(inner)
    assert found.code == "archive-unpacked"
    program, *arguments = shlex.split(found.command)
    assert program == "python"
    subprocess.run([sys.executable, *arguments], check=True)
    packed = torch.load(tmp_path / "out" / "m.pt")
    assert all(torch.equal(packed[name], truth[name]) for name in truth)


def _sharded(folder, count=3):
    names = [f"model-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)]
    for n, name in enumerate(names):
        save_file({f"w{n}": torch.ones(4) * n, f"b{n}": torch.ones(2)}, folder / name)
    index = {f"{kind}{n}": name for n, name in enumerate(names) for kind in "wb"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return names


def test_a_stale_index_is_one_warning(tmp_path):
    for name in _sharded(tmp_path):
        (tmp_path / name).unlink()
    save_file({"w": torch.ones(3)}, tmp_path / "model.safetensors")
    found = [f for f in holdtrue.diagnose(tmp_path).findings if f.severity != "note"]
    assert [f.code for f in found] == ["index-stale"]
    program, name = shlex.split(found[0].command)
    assert program == "rm"
    assert name == str(tmp_path / "model.safetensors.index.json")


def test_missing_shards_are_one_finding(tmp_path):
    names = _sharded(tmp_path)
    for name in names[1:]:
        (tmp_path / name).unlink()
    (found,) = _errors(tmp_path)
    assert found.code == "shard-missing"
    assert all(name in found.fix for name in names[1:])


def test_a_shard_that_is_a_copy_of_another_is_one_finding(tmp_path):
    names = _sharded(tmp_path)
    shutil.copy(tmp_path / names[0], tmp_path / names[1])
    found = [f for f in holdtrue.diagnose(tmp_path).findings if f.severity != "note"]
    assert [f.code for f in found] == ["tensor-not-in-shard"]
    assert found[0].why == f"{names[1]} holds what {names[0]} holds"
    assert names[1] in found[0].fix
