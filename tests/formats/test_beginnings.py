"""What a file is, where a byte by chance, or one lost number, speaks for something else."""

import struct
import zipfile
from pathlib import Path

import pytest
import torch

import holdtrue
from holdtrue.formats.detect import detect


@pytest.mark.parametrize("magic", [b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18", b"\x1f\x8b\x08\x00"])
@pytest.mark.parametrize("ninth", [b"{", b" {", b"\n{"])
def test_a_compressed_file_is_no_safetensors_file_whatever_its_ninth_byte(tmp_path, magic, ninth):
    path = tmp_path / "model.zst"
    path.write_bytes(magic + b"\x04\x20\x99\x80" + ninth + bytes(range(256)))
    with pytest.raises(holdtrue.OpenError) as caught:
        detect(str(path))
    assert [f.code for f in caught.value.report.findings] == ["compressed-file"]


def test_a_broken_length_is_still_a_safetensors_file(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 63) + b'{"w":{}}')
    assert detect(str(path)).kind == "safetensors"


def _moved(path: Path, record: bytes, offset: int) -> None:
    """The directory's entry of a record points somewhere else."""
    data = bytearray(path.read_bytes())
    at = data.rindex(record) - 46
    data[at + 42 : at + 46] = struct.pack("<I", offset)
    path.write_bytes(data)


@pytest.mark.parametrize("record", [b"data.pkl", b"data/0", b"data/1", b"version", b"byteorder"])
@pytest.mark.parametrize("offset", [10**9, 7])
def test_a_record_that_the_directory_lost_makes_no_shard_of_the_file(tmp_path, record, offset):
    path = tmp_path / "model.pt"
    torch.save({"a": torch.ones(3), "b": torch.ones(4)}, path)
    _moved(path, b"model/" + record, offset)
    found = {f.code for f in holdtrue.diagnose(path).findings}
    assert found
    assert "shard-alone" not in found


def test_a_last_record_that_is_lost_is_told_as_what_it_is(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"a": torch.ones(3), "b": torch.ones(4)}, path)
    last = b"model/.data/serialization_id"
    _moved(path, last if last in path.read_bytes() else b"model/version", 10**9)
    assert "zip-bad-offset" in {f.code for f in holdtrue.diagnose(path).findings}


def test_views_with_gaps_are_built_from_files_of_others(tmp_path):
    whole = torch.arange(16.0).reshape(4, 4)
    kept = {"cut": whole[:, :2], "turned": whole.T, "repeated": torch.ones(3, 1).expand(3, 4)}
    torch.save(kept, tmp_path / "views.pt")
    tensors = holdtrue.open(tmp_path / "views.pt").tensors
    for name, tensor in kept.items():
        assert torch.equal(tensors[name].torch(), tensor)


def test_a_tensor_of_anothers_file_that_cannot_be_built_is_no_damaged_manifest(tmp_path):
    torch.save({"w": torch.eye(3).to_sparse()}, tmp_path / "whole.pt")
    with (
        zipfile.ZipFile(tmp_path / "whole.pt") as source,
        zipfile.ZipFile(tmp_path / "odd.pt", "w") as made,
    ):
        for name in source.namelist():
            data = source.read(name)
            if name.endswith("data/0"):
                data = struct.pack("<q", 99) + data[8:]  # an index past the end
            made.writestr(name, data)
    stored = holdtrue.open(tmp_path / "odd.pt").tensors["w"]
    with pytest.raises(holdtrue.HoldtrueError) as caught:
        stored.torch()
    assert [f.code for f in caught.value.report.findings] == ["tensor-unusable"]
