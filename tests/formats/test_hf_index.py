import io
import json

import pytest
import torch
from damage import flips, survives, truncations
from safetensors.torch import save as save_safetensors

from holdtrue.errors import DamageError
from holdtrue.formats.hf_index import read_incomplete
from holdtrue.formats.opening import read
from holdtrue.formats.tensor_bytes import read_tensor

STATE = {f"layer.{i}.weight": torch.randn(3, i + 1) for i in range(6)}


def torch_bytes(value, **how):
    buffer = io.BytesIO()
    torch.save(value, buffer, **how)
    return buffer.getvalue()


WRITERS = {
    "safetensors": (save_safetensors, "model.safetensors.index.json", "model-{}.safetensors"),
    "zip": (torch_bytes, "pytorch_model.bin.index.json", "pytorch_model-{}.bin"),
    "legacy": (
        lambda s: torch_bytes(s, _use_new_zipfile_serialization=False),
        "pytorch_model.bin.index.json",
        "pytorch_model-{}.bin",
    ),
}


def write_set(folder, kind="safetensors", shards=3, **changes):
    write, index_name, shard_name = WRITERS[kind]
    weight_map = {}
    for number in range(shards):
        part = {k: v for i, (k, v) in enumerate(STATE.items()) if i % shards == number}
        name = shard_name.format(number)
        (folder / name).write_bytes(write(part))
        weight_map |= dict.fromkeys(part, name)
    weight_map = {key: weight_map[key] for key in STATE} | changes
    size = sum(t.nbytes for t in STATE.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / index_name).write_text(json.dumps(index))
    return folder / index_name


def same(view):
    assert list(view.tensors) == list(STATE)
    for name, tensor in STATE.items():
        assert read_tensor(view.tensors[name]).tobytes() == tensor.numpy().tobytes()


@pytest.mark.parametrize("kind", WRITERS)
def test_both_kinds_from_the_folder_or_the_index(tmp_path, kind):
    index = write_set(tmp_path, kind)
    for path in (tmp_path, index):
        view = read(str(path))
        same(view)
        assert view.format == "hf-index"
        assert view.findings == ()
        keys = [t.pieces[0].storage.key for t in view.tensors.values()]
        assert len(set(keys)) == len(keys)


def test_a_set_that_transformers_wrote(tmp_path):
    from transformers import BertConfig, BertModel

    model = BertModel(
        BertConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            vocab_size=50,
        )
    )
    model.save_pretrained(tmp_path, max_shard_size="5KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    view = read(str(tmp_path))
    for name, tensor in model.state_dict().items():
        assert read_tensor(view.tensors[name]).tobytes() == tensor.numpy().tobytes()


def error_codes(path):
    with pytest.raises(DamageError) as error:
        read(str(path))
    return {f.code: f for f in error.value.report.findings}


def test_a_missing_shard_names_its_tensors(tmp_path):
    write_set(tmp_path)
    (tmp_path / "model-1.safetensors").unlink()
    found = error_codes(tmp_path)
    assert list(found) == ["shard-missing"]
    assert "model-1.safetensors" in found["shard-missing"].what
    assert found["shard-missing"].count == 2
    kept = read_incomplete(str(tmp_path / "model.safetensors.index.json"))
    assert list(kept.tensors) == [k for i, k in enumerate(STATE) if i % 3 != 1]


def test_a_damaged_shard(tmp_path):
    write_set(tmp_path)
    shard = tmp_path / "model-2.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert list(error_codes(tmp_path)) == ["shard-unreadable"]


def test_a_shard_that_is_a_pointer(tmp_path):
    write_set(tmp_path)
    (tmp_path / "model-0.safetensors").write_bytes(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 5\n"
    )
    finding = error_codes(tmp_path)["shard-unreadable"]
    assert "git-lfs pointer" in finding.why
    assert "git lfs" in finding.fix


def test_a_shard_that_is_an_index_again_is_not_followed(tmp_path):
    index = write_set(tmp_path)
    (tmp_path / "model-0.safetensors").write_bytes(index.read_bytes())
    assert "shard-unreadable" in error_codes(tmp_path)


def test_an_index_that_disagrees_with_its_shards(tmp_path):
    write_set(tmp_path, **{"ghost": "model-0.safetensors", "layer.1.weight": "model-0.safetensors"})
    found = error_codes(tmp_path)
    assert set(found) == {"tensor-not-in-shard"}
    assert found["tensor-not-in-shard"].count == 2


def test_a_tensor_that_the_index_leaves_out(tmp_path):
    index = write_set(tmp_path)
    body = json.loads(index.read_text())
    del body["weight_map"]["layer.0.weight"]
    index.write_text(json.dumps(body))
    view = read(str(index))
    assert {f.code for f in view.findings} == {"tensor-not-in-index"}
    assert "layer.0.weight" in view.tensors


def test_another_total_size_is_noted(tmp_path):
    index = write_set(tmp_path)
    body = json.loads(index.read_text())
    body["metadata"]["total_size"] += 1
    index.write_text(json.dumps(body))
    assert [(f.code, f.severity) for f in read(str(index)).findings] == [
        ("index-size-differs", "note")
    ]


def test_one_name_in_two_shards(tmp_path):
    index = write_set(tmp_path, shards=2)
    (tmp_path / "model-1.safetensors").write_bytes(save_safetensors(STATE))
    body = json.loads(index.read_text())
    index.write_text(json.dumps(body))
    assert {f.code for f in read(str(index)).findings} == {"tensor-in-two-shards"}


def test_every_truncation_of_an_index(tmp_path):
    index = write_set(tmp_path)
    data = index.read_bytes()
    opened, refused = survives(index, truncations(data), lambda _: read(str(tmp_path)))
    assert (opened, refused) == (0, len(data))


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_random_flips_of_an_index(tmp_path, count):
    index = write_set(tmp_path)
    opened, refused = survives(index, flips(index.read_bytes(), count), read)
    assert opened + refused == count
    assert refused > count // 3
