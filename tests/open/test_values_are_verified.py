"""Values are compared with the archive's CRC when they are read, wherever they are read from."""

import os
import zipfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

import holdtrue
from holdtrue import DamageError
from holdtrue.formats import proven

CORPUS = Path(
    os.environ.get("HOLDTRUE_CORPUS", Path(__file__).resolve().parents[3] / "shared/corpus")
)
needs_corpus = pytest.mark.skipif(not CORPUS.is_dir(), reason=f"no corpus at {CORPUS}")
BIG = torch.arange(3000, dtype=torch.float32)


def flipped(path, needle: bytes):
    """The file with one bit changed just behind `needle`."""
    data = bytearray(path.read_bytes())
    at = data.index(needle) + len(needle)
    data[at] ^= 1
    path.write_bytes(data)
    return path


@pytest.fixture
def views(tmp_path):
    """Small views of a large storage, whose damage lies in what only one of them shows."""
    path = tmp_path / "views.pt"
    torch.save({"head": BIG[:10], "rows": BIG.view(30, 100)[:, 3], "tail": BIG[2000:]}, path)
    return flipped(path, BIG[2500:2510].numpy().tobytes())


def refused(read) -> holdtrue.Finding:
    with pytest.raises(DamageError) as error:
        read()
    finding = error.value.report.findings[0]
    assert finding.code == "crc-mismatch"
    return finding


@needs_corpus
def test_a_flipped_bit_is_not_given_out():
    opened = holdtrue.open(CORPUS / "damaged/bitflip_in_tensor.pt")
    damaged = {f.where for f in holdtrue.verify(opened.path).findings if f.code == "crc-mismatch"}
    assert len(damaged) == 1
    refused(lambda: opened[opened.parts[0]])
    told = []
    for name, tensor in opened.tensors.items():
        try:
            tensor.numpy()
        except DamageError as error:
            told.append((name, error.report.findings[0].where))
            refused(tensor.torch)
    assert len(told) == 1
    assert told[0][0] in told[0][1]


@pytest.mark.parametrize("name", ["head", "rows", "tail"])
def test_a_view_proves_the_whole_record(views, name):
    tensors = holdtrue.open(views).tensors
    key = next(k for k in tensors if k.endswith(name))
    assert name in refused(tensors[key].numpy).where
    if name != "rows":
        refused(tensors[key].torch)


def test_a_part_is_proven_and_its_tensor_named(views):
    opened = holdtrue.open(views)
    finding = refused(lambda: [opened[part] for part in opened.parts])
    assert "head" in finding.where


def test_a_record_is_proven_once(tmp_path):
    path = tmp_path / "whole.pt"
    torch.save({"a": BIG[:10], "b": BIG[5:20]}, path)
    tensors = holdtrue.open(path).tensors
    with mock.patch.object(proven, "check_storage", wraps=proven.check_storage) as check:
        for tensor in tensors.values():
            tensor.numpy()
            tensor.torch()
    assert check.call_count == 1


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_array_of_an_archive(tmp_path, save):
    path = tmp_path / "a.npz"
    save(path, w=BIG.numpy())
    assert np.array_equal(holdtrue.open(path).tensors["w"].numpy(), BIG.numpy())
    with zipfile.ZipFile(path) as archive:
        crc = archive.infolist()[0].CRC
    data = path.read_bytes().replace(crc.to_bytes(4, "little"), (crc ^ 1).to_bytes(4, "little"))
    path.write_bytes(data)
    refused(holdtrue.open(path).tensors["w"].numpy)
    refused(holdtrue.open(path).tensors["w"].torch)


def test_a_damaged_file_restores_nothing(tmp_path):
    model = torch.nn.Linear(40, 40)
    path = tmp_path / "m.pt"
    torch.save(model.state_dict(), path)
    flipped(path, model.weight.detach().numpy().tobytes()[:400])
    target = torch.nn.Linear(40, 40)
    before = {k: v.clone() for k, v in target.state_dict().items()}
    refused(lambda: holdtrue.open(path).restore(model=target))
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())


def test_what_is_whole_still_reads(tmp_path):
    path = tmp_path / "m.pt"
    torch.save({"w": BIG, "t": BIG.view(30, 100).t(), "s": torch.eye(3).to_sparse()}, path)
    opened = holdtrue.open(path)
    assert torch.equal(opened.tensors["t"].torch(), BIG.view(30, 100).t())
    assert torch.equal(opened.tensors["w"].torch(), BIG)
    assert torch.equal(opened.tensors["s"].torch().to_dense(), torch.eye(3))
