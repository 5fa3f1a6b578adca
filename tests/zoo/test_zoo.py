"""Real architectures: kept, restored into a second instance, and compared bit for bit."""

import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
pytest.importorskip("transformers", reason="the zoo needs transformers")

import torch
from architectures import PRETRAINED, ZOO
from safetensors.torch import load_file
from torch import nn

import holdtrue
from holdtrue.limits import override

Table = dict[str, tuple[int, int, int]]


def build(name: str, seed: int, derived: bool = True) -> tuple[nn.Module, dict[str, Any]]:
    """`derived` buffers are those that a state_dict leaves out: rotary frequencies, say."""
    torch.manual_seed(seed)
    model, inputs = ZOO[name]()
    kept = set(model.state_dict())
    # Some initialisations are all zeros or ones; then a restore that does nothing would pass.
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
        for name, b in model.named_buffers():
            if b.is_floating_point() and (derived or name in kept):
                b.add_(torch.rand_like(b) * 0.05)
    return model.eval(), inputs


def named(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer under all of its names, the non-persistent ones too."""
    found = dict(model.named_parameters(remove_duplicate=False))
    found.update(model.named_buffers(remove_duplicate=False))
    return found


def ties(model: nn.Module) -> set[frozenset[str]]:
    groups: dict[int, set[str]] = defaultdict(set)
    for name, tensor in named(model).items():
        groups[id(tensor)].add(name)
    return {frozenset(g) for g in groups.values() if len(g) > 1}


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    raw = [t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (a, b)]
    return torch.equal(*raw)


def flat(value: Any) -> list[torch.Tensor]:
    """All tensors of an output, however nested."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for v in value.values() for t in flat(v)]
    if isinstance(value, list | tuple):
        return [t for v in value for t in flat(v)]
    return []


def outputs(model: nn.Module, inputs: dict[str, Any]) -> list[torch.Tensor]:
    with torch.no_grad():
        found = flat(model(**inputs))
    assert found
    return found


@pytest.mark.parametrize("name", ZOO)
def test_restores_every_tensor_every_tie_and_the_outputs(
    name: str, tmp_path: Path, table: Table
) -> None:
    model, inputs = build(name, seed=1)
    other, _ = build(name, seed=2)
    expected = outputs(model, inputs)
    assert not all(same_bits(a, b) for a, b in zip(expected, outputs(other, inputs), strict=True))

    saved = holdtrue.save(tmp_path / "kept", model=model)
    objects = {n: id(t) for n, t in named(other).items()}
    report = holdtrue.open(tmp_path / "kept").restore(model=other)

    assert report.ok
    assert {f.code for f in report.findings} <= {"parts-left"}
    before, after = named(model), named(other)
    assert before.keys() == after.keys()
    assert [n for n in before if not same_bits(before[n], after[n])] == []
    assert {n: id(t) for n, t in after.items()} == objects
    assert ties(other) == ties(model)
    for a, b in zip(expected, outputs(other, inputs), strict=True):
        assert same_bits(a, b)
    assert holdtrue.verify(tmp_path / "kept").findings == ()
    tied = sum(len(group) - 1 for group in ties(model))
    table[name] = (len(before), tied, saved.nbytes)


@pytest.mark.parametrize("name", ZOO)
def test_other_readers_see_the_weights(name: str, tmp_path: Path) -> None:
    model, _ = build(name, seed=1)
    holdtrue.save(tmp_path / "kept", model=model)

    loaded = load_file(tmp_path / "kept" / "model.safetensors")

    state = model.state_dict()
    stored = set(loaded)
    assert stored <= set(state)
    for key, tensor in loaded.items():
        assert same_bits(tensor, state[key]), key
    # What is not there under its own name is there under the name that it is tied to.
    rest = {id(p) for n, p in named(model).items() if n in stored}
    assert all(id(named(model)[n]) in rest for n in set(state) - stored)


@pytest.mark.parametrize("sharded", [False, True], ids=["one file", "shards"])
@pytest.mark.parametrize("name", PRETRAINED)
def test_from_pretrained_reads_the_directory(name: str, sharded: bool, tmp_path: Path) -> None:
    # Other readers compute the derived buffers anew, so those have to be as the code makes them.
    model, inputs = build(name, seed=1, derived=False)
    size = sum(t.nbytes for t in named(model).values()) // 3 if sharded else 1 << 30
    with override(shard_bytes=size):
        holdtrue.save(tmp_path / "kept", model=model)
    model.config.to_json_file(tmp_path / "kept" / "config.json", use_diff=False)
    shards = sorted((tmp_path / "kept").glob("model-?????-of-*.safetensors"))
    assert len(shards) >= 2 if sharded else not shards
    if sharded:
        index = json.loads((tmp_path / "kept" / "model.safetensors.index.json").read_text())
        assert set(index["weight_map"].values()) == {s.name for s in shards}

    again = type(model).from_pretrained(tmp_path / "kept").eval()

    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert [n for n in before if not same_bits(before[n], after[n])] == []
    assert ties(again) == ties(model)
    for a, b in zip(outputs(model, inputs), outputs(again, inputs), strict=True):
        assert same_bits(a, b)
