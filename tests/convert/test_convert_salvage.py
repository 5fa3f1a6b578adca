"""Damaged files: what is whole is kept, what is lost is named."""

import random

import pytest
import torch
from making import KINDS, SUFFIX, assert_same, load_holdtrue, numbers
from safetensors.torch import load_file, save_file

import holdtrue
from holdtrue.errors import DamageError, HoldtrueError, OpenError, SaveError

TENSORS = {f"layer{i}.weight": numbers("float32", 40, 40, seed=i) for i in range(6)}


def load(path, kind, part="model"):
    if kind == "torch":
        return torch.load(path, weights_only=True)
    if kind == "safetensors":
        return load_file(path)
    if kind == "shards":
        return load_file(path / "model-00001-of-00001.safetensors")
    return load_holdtrue(path, part)


@pytest.fixture
def damaged(tmp_path):
    """A torch file with one flipped byte in the fourth tensor."""
    path = tmp_path / "damaged.pt"
    torch.save({"model": TENSORS, "epoch": 3}, path)
    data = bytearray(path.read_bytes())
    data[data.index(TENSORS["layer3.weight"].numpy().tobytes()) + 9] ^= 0x10
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_all_but_the_damaged_tensor_is_kept(damaged, kind, tmp_path):
    place = tmp_path / f"out{SUFFIX[kind]}"
    with pytest.raises(DamageError):
        holdtrue.convert(damaged, place, to=kind)
    made = holdtrue.salvage(damaged, place, to=kind)
    assert not made.report.ok
    (lost,) = [f for f in made.report.findings if f.code == "tensors-lost"]
    assert len(lost.places) == 1
    assert lost.where.startswith("model/layer3.weight: float32 [40, 40], ")
    found = load(place, kind)
    assert set(found) == set(TENSORS) - {"layer3.weight"}
    for name, tensor in found.items():
        assert_same(tensor, TENSORS[name])
    if kind == "holdtrue":
        assert holdtrue.open(place)["epoch"] == 3
        assert holdtrue.verify(place).ok


@pytest.mark.parametrize("container", ["zip", "legacy", "safetensors"])
def test_a_file_cut_at_any_place(container, tmp_path, figure):
    whole = tmp_path / "whole"
    if container == "safetensors":
        save_file(TENSORS, whole)
    else:
        torch.save(TENSORS, whole, _use_new_zipfile_serialization=container == "zip")
    data = whole.read_bytes()
    kept = set()
    for cut in sorted(random.Random(0).sample(range(len(data)), 60)):
        (tmp_path / "cut").write_bytes(data[:cut])
        try:
            made = holdtrue.salvage(tmp_path / "cut", tmp_path / "out.pt", overwrite=True)
        except HoldtrueError:
            continue
        found = torch.load(tmp_path / "out.pt", weights_only=True)
        named = {name: tensor for name, tensor in found.items() if name in TENSORS}
        for name, tensor in named.items():
            assert_same(tensor, TENSORS[name])
        lost = [p for f in made.report.findings if f.code == "tensors-lost" for p in f.places]
        if made.report.ok:
            assert len(named) == len(TENSORS)
        if named:
            assert len(named) + len(lost) == len(TENSORS)
        assert all("bytes missing" in place for place in lost)
        kept.add(len(named))
        figure("cut files salvaged")
    assert {2, 4} <= kept


def test_nothing_lost_is_no_error(tmp_path):
    torch.save(TENSORS, tmp_path / "a.pt")
    made = holdtrue.salvage(tmp_path / "a.pt", tmp_path / "b.safetensors")
    assert made.report.ok
    assert made.tensors == 6


def test_bytes_whose_names_are_lost_are_kept_under_their_numbers(tmp_path):
    torch.save(TENSORS, tmp_path / "a.pt")
    data = bytearray((tmp_path / "a.pt").read_bytes())
    at = data.index(b"OrderedDict") if b"OrderedDict" in data else data.index(b"layer0")
    data[at - 30 : at + 200] = b"\xff" * 230
    (tmp_path / "a.pt").write_bytes(data)
    made = holdtrue.salvage(tmp_path / "a.pt", tmp_path / "c")
    (finding,) = [f for f in made.report.findings if f.code == "names-lost"]
    assert len(finding.places) == 6
    found = holdtrue.open(tmp_path / "c")["unnamed"]
    stored = {bytes(t.numpy().tobytes()) for t in found.values()}
    assert stored == {t.numpy().tobytes() for t in TENSORS.values()}
    made = holdtrue.salvage(tmp_path / "a.pt", tmp_path / "d.safetensors")
    assert made.tensors == 6


def test_a_lost_shard(tmp_path):
    torch.save(TENSORS, tmp_path / "a.pt")
    holdtrue.convert(tmp_path / "a.pt", tmp_path / "s", to="shards", shard_bytes=13_000)
    (tmp_path / "s/model-00002-of-00003.safetensors").unlink()
    made = holdtrue.salvage(tmp_path / "s/model.safetensors.index.json", tmp_path / "b.pt")
    assert made.tensors == 4
    assert not made.report.ok


def test_what_is_no_checkpoint(tmp_path):
    (tmp_path / "a").write_bytes(b"not a checkpoint" * 9)
    with pytest.raises(OpenError):
        holdtrue.salvage(tmp_path / "a", tmp_path / "b")
    torch.save(TENSORS, tmp_path / "c.pt")
    holdtrue.salvage(tmp_path / "c.pt", tmp_path / "d.pt")
    with pytest.raises(SaveError, match="already-exists"):
        holdtrue.salvage(tmp_path / "c.pt", tmp_path / "d.pt")
