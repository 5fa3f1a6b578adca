"""Checkpoints of every format version, read by this version, and by a reader made from the docs."""

import base64
import hashlib
import json
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import xxhash

import holdtrue
from holdtrue.records.manifest import VERSION

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "keep")]
import make  # noqa: E402
from same import same  # noqa: E402

VERSIONS = sorted(path for path in HERE.glob("v*") if path.is_dir())
CHECKPOINTS = [path for version in VERSIONS for path in sorted(version.iterdir()) if path.is_dir()]


def test_there_is_one_for_the_current_version():
    assert HERE / f"v{VERSION}" in VERSIONS


@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_every_byte_is_as_written(path, figure):
    assert holdtrue.verify(path).ok
    figure("golden checkpoints read")


@pytest.mark.parametrize("version", VERSIONS, ids=lambda p: p.name)
def test_values_come_back(version):
    checkpoint = holdtrue.open(version / "values")
    values, expected = checkpoint["values"], make.values()
    assert values.keys() == expected.keys()
    for name, value in expected.items():
        assert same(value, values[name]), name
    assert values["shared"][0] is values["shared"][1]
    tensors = checkpoint["tensors"]
    for name, tensor in make.tensors().items():
        assert tensors[name].layout == tensor.layout, name
        if tensor.layout is not torch.strided:
            tensor, tensors[name] = tensor.to_dense(), tensors[name].to_dense()
        assert same(tensor, tensors[name]), name


@pytest.mark.parametrize("version", VERSIONS, ids=lambda p: p.name)
def test_training_comes_back(version):
    parts = make.training()
    for tensor in (*parts["model"].parameters(), *parts["model"].buffers()):
        torch.nn.init.zeros_(tensor.data)
    checkpoint = holdtrue.open(version / "training")
    checkpoint.restore(**parts)
    expected = json.loads((version / "sha256.json").read_text())
    state = {**dict(parts["model"].named_buffers()), **parts["model"].state_dict()}
    for name, tensor in state.items():
        found = hashlib.sha256(tensor.detach().numpy().tobytes()).hexdigest()
        assert found == expected[f"model/{name}"], name
    assert parts["model"].head.weight is parts["model"].embed.weight
    assert parts["scheduler"].last_epoch == 3


@pytest.mark.parametrize("version", VERSIONS, ids=lambda p: p.name)
def test_a_reader_made_from_the_documentation(version, figure):
    """docs/format.md is enough: JSON, struct and xxhash give every tensor, verified."""
    expected = json.loads((version / "sha256.json").read_text())
    seen = 0
    for name in ("values", "training"):
        manifest = read_manifest(version / name)
        for key, record in manifest["tensors"].items():
            data = read_tensor(version / name, manifest, record)
            if data is not None and key in expected:
                assert hashlib.sha256(data).hexdigest() == expected[key], key
                seen += 1
    figure("golden tensors read by a reader made from docs/format.md", seen)
    names = read_manifest(version / "training")["parts"]["model"]["state"]["entries"]
    assert names["head.weight"] == names["embed.weight"] == "model/embed.weight"
    assert set(expected) <= {
        *read_manifest(version / "values")["tensors"],
        *(f"model/{n}" for n in names),
        *read_manifest(version / "training")["tensors"],
    }


def read_manifest(folder: Path) -> dict:
    raw = (folder / "manifest.json").read_bytes()
    body, _, tail = raw.rpartition(b',"xxh3_128"')
    assert tail == b':"' + xxhash.xxh3_128_hexdigest(body).encode() + b'"}\n'
    assert raw.startswith(b'{"format":"holdtrue","version":1')
    manifest = json.loads(raw)
    for name, record in manifest["files"].items():
        data = (folder / name).read_bytes()
        assert len(data) == record["nbytes"]
        head = data[: record["header"]]
        assert xxhash.xxh3_128_hexdigest(head) == record["header_digest"]
    return manifest


def read_tensor(folder: Path, manifest: dict, record: dict) -> bytes | None:
    if "chunks" not in record:
        return None
    (chunk,) = record["chunks"]
    data = (folder / chunk["file"]).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    entry = json.loads(data[8 : 8 + length])[chunk["name"]]
    begin, end = entry["data_offsets"]
    stored = data[8 + length + begin : 8 + length + end]
    assert xxhash.xxh3_128_hexdigest(stored) == chunk["digest"]
    return stored


def test_value_nodes_by_the_documentation():
    """A few kinds of nodes, decoded by hand."""
    values = read_manifest(HERE / "v1" / "values")["parts"]["values"]["state"]
    plain = values["plain"]
    assert plain[:7] == [None, True, "text", 1, -1, 0.5, -0.0]
    assert int(plain[7]["v"], 16) == 2**70
    assert plain[8] == {"$": "float", "v": "inf"}
    assert plain[9] == {"$": "complex", "v": [1.0, 2.0]}
    assert base64.b64decode(plain[10]["v"]) == b"bytes"
    dtype, data = values["numpy"][0]["v"]
    assert np.frombuffer(base64.b64decode(data), dtype) == np.float32(0.1)
    first, second = values["shared"]
    assert first == {"$": "list", "id": first["id"], "v": [1, 2]}
    assert second == {"$": "ref", "id": first["id"]}
