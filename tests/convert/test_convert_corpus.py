"""Real files that others wrote: every tensor arrives in every format, and nothing goes unsaid."""

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from making import bits
from safetensors.torch import load_file

import holdtrue
from holdtrue.doctor.state_dicts import choose, state_dicts
from holdtrue.errors import HoldtrueError
from holdtrue.formats.opening import read
from holdtrue.formats.tensor_bytes import read_tensor
from holdtrue.records.dtypes import SAFETENSORS

CORPUS = Path(
    os.environ.get("HOLDTRUE_CORPUS", Path(__file__).resolve().parents[3] / "shared/corpus")
)
# Files that are broken on purpose have no tensors to expect.
EXPECTED = [
    path
    for path in sorted((CORPUS / "expected").glob("*.json"))
    if "tensors" in json.loads(path.read_text())
]
pytestmark = pytest.mark.skipif(not EXPECTED, reason=f"no corpus at {CORPUS}")


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def wanted(entry: Path) -> tuple[Path, set[tuple[str, tuple[int, ...], str]]]:
    told = json.loads(entry.read_text())
    spelled = {code: name for code, (name, _) in SAFETENSORS.items()}
    tensors = {
        (spelled.get(t["dtype"], t["dtype"]), tuple(t["shape"]), t["sha256"])
        for t in told["tensors"]
    }
    return CORPUS / "weights" / told["path"], tensors


def readable(path: Path) -> bool:
    try:
        read(str(path))
    except HoldtrueError:
        return False
    return True


@pytest.mark.parametrize("entry", EXPECTED, ids=lambda p: p.name[-60:])
def test_every_tensor_reaches_a_holdtrue_checkpoint(entry, tmp_path, figure):
    path, tensors = wanted(entry)
    if not readable(path):
        pytest.skip("not readable; the formats' own tests say why")
    made = holdtrue.convert(path, tmp_path / "c")
    assert holdtrue.verify(tmp_path / "c").ok
    assert not [f for f in made.report.findings if f.code == "not-carried"]
    kept = read(str(tmp_path / "c")).tensors.values()
    found = {(t.dtype, t.shape, digest(read_tensor(t).tobytes())) for t in kept if t.pieces}
    assert tensors <= found
    figure("corpus files converted to holdtrue")
    figure("corpus tensors equal to their sha256", len(tensors))


@pytest.mark.parametrize("entry", EXPECTED, ids=lambda p: p.name[-60:])
def test_the_state_dict_reaches_torch_and_safetensors(entry, tmp_path, figure):
    path, tensors = wanted(entry)
    if not readable(path):
        pytest.skip("not readable; the formats' own tests say why")
    view = read(str(path))
    if not view.tensors:
        for to in ("torch", "safetensors", "shards"):
            with pytest.raises(HoldtrueError, match="no-tensors"):
                holdtrue.convert(path, tmp_path / "x", to=to)
        return
    state = choose(view)
    for to in ("torch", "safetensors"):
        made = holdtrue.convert(path, tmp_path / to, to=to)
        loaded = (
            torch.load(tmp_path / to, weights_only=True)
            if to == "torch"
            else load_file(tmp_path / to)
        )
        left = {p for f in made.report.findings if f.code == "not-carried" for p in f.places}
        assert set(loaded) == set(state.names) - left
        for name, tensor in loaded.items():
            lazy = state.names[name]
            assert tuple(tensor.shape) == lazy.shape
            assert bits(tensor) == read_tensor(lazy).tobytes()
            if to == "torch":
                assert tensor.stride() == lazy.stride or 0 in lazy.shape
            figure(f"corpus tensors converted to {to}")


def test_models_are_found_in_the_corpus():
    """What the tree calls them is where they are found; whole models come with their class."""
    found = {}
    for entry in EXPECTED:
        path, _ = wanted(entry)
        if readable(path):
            found[entry.name] = state_dicts(read(str(path)))
    assert sum(1 for states in found.values() if states) > 40
    assert any(s.class_name for states in found.values() for s in states)
