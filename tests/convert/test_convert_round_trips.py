"""Tensors through every format: bits, strides and ties come out as they went in."""

import json

import pytest
import torch
from making import DTYPES, KINDS, PLAIN, SUFFIX, assert_same, load_holdtrue, numbers, strided
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import holdtrue


def load(path, kind):
    """A result, by the tool that others would read it with."""
    if kind == "torch":
        return torch.load(path, weights_only=True)
    if kind == "safetensors":
        return load_file(path)
    if kind == "shards":
        index = json.loads((path / "model.safetensors.index.json").read_text())
        merged = {}
        for name in sorted(set(index["weight_map"].values())):
            merged |= load_file(path / name)
        assert set(merged) == set(index["weight_map"])
        return {name: merged[name] for name in index["weight_map"]}
    return load_holdtrue(path)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A checkpoint with every dtype and memory order, and what is in it."""
    tensors = {f"dtype.{name}": numbers(name, 3, 4, seed=i) for i, name in enumerate(DTYPES)}
    tensors |= {f"stride.{name}": tensor for name, tensor in strided().items()}
    path = tmp_path_factory.mktemp("source") / "source.pt"
    torch.save({"epoch": 7, "model": tensors}, path)
    return path, tensors


@pytest.mark.parametrize("second", KINDS)
@pytest.mark.parametrize("first", KINDS)
def test_every_kind_to_every_kind(source, first, second, tmp_path, figure):
    path, tensors = source
    names = [n for n in tensors if not n.startswith("dtype.") or n.removeprefix("dtype.") in PLAIN]
    keeps_order = {"holdtrue", "torch"}
    middle, last = tmp_path / f"one{SUFFIX[first]}", tmp_path / f"two{SUFFIX[second]}"
    holdtrue.convert(path, middle, to=first)
    place = middle / "model.safetensors.index.json" if first == "shards" else middle
    holdtrue.convert(place, last, to=second)
    found = load(last, second)
    assert list(found) if second != "safetensors" else True
    for name in names:
        assert_same(found[name], tensors[name], stride={first, second} <= keeps_order)
        figure("tensors compared after two conversions")


@pytest.mark.parametrize("kind", ["holdtrue", "torch"])
@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_where_the_format_has_it(name, kind, tmp_path):
    tensors = {"a": numbers(name, 5, 3), "b": numbers(name, 3, 5).t(), "c": numbers(name)}
    torch.save(tensors, tmp_path / "a.pt")
    made = holdtrue.convert(tmp_path / "a.pt", tmp_path / "out", to=kind)
    assert made.report.ok
    assert made.tensors == 3
    for key, tensor in load(tmp_path / "out", kind).items():
        assert_same(tensor, tensors[key])


def test_a_dtype_that_safetensors_lacks_is_listed(tmp_path):
    tensors = {"a": numbers("complex128", 2), "b": numbers("float32", 2)}
    torch.save(tensors, tmp_path / "a.pt")
    made = holdtrue.convert(tmp_path / "a.pt", tmp_path / "a.safetensors")
    assert set(load_file(tmp_path / "a.safetensors")) == {"b"}
    (finding,) = [f for f in made.report.findings if f.code == "not-carried"]
    assert finding.places == ("a",)
    assert "complex128" in finding.why


@pytest.mark.parametrize("kind", KINDS)
def test_ties(kind, tmp_path):
    weight = numbers("float32", 64, 64)
    torch.save({"in.weight": weight, "out.weight": weight, "row": weight[3]}, tmp_path / "a.pt")
    made = holdtrue.convert(tmp_path / "a.pt", tmp_path / f"b{SUFFIX[kind]}", to=kind)
    found = load(tmp_path / f"b{SUFFIX[kind]}", kind)
    for name, wanted in (("in.weight", weight), ("out.weight", weight), ("row", weight[3])):
        assert_same(found[name], wanted)
    if kind in ("holdtrue", "torch"):
        storages = {tensor.untyped_storage().data_ptr() for tensor in found.values()}
        assert len(storages) == 1
        assert made.nbytes < 2 * weight.nbytes + 4096
    else:
        (note,) = [f for f in made.report.findings if f.code == "ties-stored-twice"]
        assert note.places == ("out.weight = in.weight",)


def test_a_view_of_something_large_does_not_take_it_along(tmp_path):
    large = numbers("float32", 1000, 1000)
    torch.save({"column": large[:, 7], "corner": large[:3, :3]}, tmp_path / "a.pt")
    holdtrue.convert(tmp_path / "a.pt", tmp_path / "b.pt")
    assert (tmp_path / "b.pt").stat().st_size < 100_000
    found = torch.load(tmp_path / "b.pt", weights_only=True)
    assert_same(found["column"], large[:, 7], stride=False)
    assert_same(found["corner"], large[:3, :3], stride=False)


@pytest.mark.parametrize("kind", ["holdtrue", "torch"])
def test_sparse_and_quantised(kind, tmp_path):
    dense = torch.randn(6, 4) * (torch.rand(6, 4) > 0.5)
    axis = torch.quantize_per_channel(
        torch.randn(3, 5),
        torch.rand(3).double() + 0.1,
        torch.zeros(3, dtype=torch.long),
        0,
        torch.qint8,
    )
    tensors = {
        "coo": dense.to_sparse(),
        "coalesced": dense.to_sparse().coalesce(),
        "csr": dense.to_sparse_csr(),
        "csc": dense.to_sparse_csc(),
        "bsr": dense.to_sparse_bsr((2, 2)),
        "tensor": torch.quantize_per_tensor(torch.randn(4, 4), 0.1, 10, torch.quint8),
        "channel": axis,
    }
    torch.save(tensors, tmp_path / "a.pt")
    made = holdtrue.convert(tmp_path / "a.pt", tmp_path / "b", to=kind)
    assert made.report.ok
    found = load(tmp_path / "b", kind)
    for name, wanted in tensors.items():
        assert found[name].layout == wanted.layout
        assert found[name].dtype == wanted.dtype
        if wanted.is_quantized:
            assert torch.equal(found[name].int_repr(), wanted.int_repr())
            assert torch.equal(found[name].dequantize(), wanted.dequantize())
        else:
            assert torch.equal(found[name].to_dense(), wanted.to_dense())
    assert found["coalesced"].is_coalesced()


def test_sparse_tensors_are_listed_where_there_is_no_place(tmp_path):
    torch.save({"s": torch.eye(3).to_sparse(), "d": torch.eye(3)}, tmp_path / "a.pt")
    made = holdtrue.convert(tmp_path / "a.pt", tmp_path / "b.safetensors")
    assert [f.places for f in made.report.findings if f.code == "not-carried"] == [("s",)]


def test_shards_hold_what_they_may_and_all_there_is(tmp_path):
    tensors = {f"layer.{i}": numbers("float32", 256, 256, seed=i) for i in range(9)}
    torch.save(tensors, tmp_path / "a.pt")
    holdtrue.convert(tmp_path / "a.pt", tmp_path / "s", to="shards", shard_bytes=600_000)
    files = sorted(p.name for p in (tmp_path / "s").glob("*.safetensors"))
    assert files == [f"model-{i:05d}-of-00005.safetensors" for i in range(1, 6)]
    assert all((tmp_path / "s" / name).stat().st_size < 610_000 for name in files)
    for name, tensor in load(tmp_path / "s", "shards").items():
        assert_same(tensor, tensors[name])


def test_transformers_loads_the_shards(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        vocab_size=50,
    )
    model = transformers.BertModel(config)
    torch.save(model.state_dict(), tmp_path / "a.bin")
    holdtrue.convert(tmp_path / "a.bin", tmp_path / "s", to="shards", shard_bytes=20_000)
    assert len(list((tmp_path / "s").glob("*.safetensors"))) > 2
    config.save_pretrained(tmp_path / "s")
    again = transformers.BertModel.from_pretrained(tmp_path / "s")
    for name, tensor in model.state_dict().items():
        assert_same(again.state_dict()[name], tensor)


def test_metadata_of_a_safetensors_file(tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "a.safetensors", {"rank": "8", "format": "pt"})
    made = holdtrue.convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert not made.report.findings
    with safe_open(tmp_path / "b.safetensors", "pt") as file:
        assert file.metadata() == {"rank": "8", "format": "pt"}
    holdtrue.convert(tmp_path / "a.safetensors", tmp_path / "c")
    assert holdtrue.open(tmp_path / "c")["metadata"] == {"rank": "8", "format": "pt"}
    made = holdtrue.convert(tmp_path / "a.safetensors", tmp_path / "d.pt")
    assert "__metadata__/rank" in str(made.report)


def test_the_same_file_gives_the_same_bytes(source, tmp_path, monkeypatch):
    for kind in ("torch", "safetensors"):
        written = []
        for count in (1, 4):
            with holdtrue_limits(threads=count, chunk_bytes=1 << 16):
                holdtrue.convert(source[0], tmp_path / "x", to=kind, overwrite=True)
            written.append((tmp_path / "x").read_bytes())
        assert written[0] == written[1]


def holdtrue_limits(**changes):
    from holdtrue.limits import override

    return override(**changes)


def test_module_versions_reach_torch(tmp_path):
    state = torch.nn.Sequential(torch.nn.BatchNorm1d(3)).state_dict()
    torch.save(state, tmp_path / "a.pt")
    holdtrue.convert(tmp_path / "a.pt", tmp_path / "b.pt")
    found = torch.load(tmp_path / "b.pt", weights_only=True)
    assert found._metadata == state._metadata
    holdtrue.convert(tmp_path / "a.pt", tmp_path / "c")
    holdtrue.convert(tmp_path / "c", tmp_path / "d.pt")
    assert torch.load(tmp_path / "d.pt", weights_only=True)._metadata == state._metadata
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(3))
    assert holdtrue.open(tmp_path / "c").restore(model=model).ok


def test_a_torch_file_can_be_mapped_and_is_whole(source, tmp_path):
    holdtrue.convert(source[0], tmp_path / "b.pt")
    found = torch.load(tmp_path / "b.pt", weights_only=True, mmap=True)
    for name, tensor in found.items():
        assert_same(tensor, source[1][name])
    from holdtrue.formats.opening import read
    from holdtrue.formats.verifying import verify_view

    view = read(str(tmp_path / "b.pt"))
    assert verify_view(view).ok
    assert not view.findings
    assert all(p.storage.offset % 64 == 0 for t in view.tensors.values() for p in t.pieces)
