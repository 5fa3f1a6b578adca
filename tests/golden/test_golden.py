"""Checkpoints of every format version, read by this version, and by a reader made from the docs."""

import base64
import hashlib
import json
import shutil
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


def sealed(body: dict) -> bytes:
    raw = json.dumps(body, separators=(",", ":")).encode()[:-1]
    return raw + b',"xxh3_128":"' + xxhash.xxh3_128_hexdigest(raw).encode() + b'"}\n'


def rewritten(version: Path, to: Path, change) -> Path:
    """A golden checkpoint with another manifest, which proves whole."""
    shutil.copytree(version / "training", to)
    body = json.loads((to / "manifest.json").read_bytes())
    del body["xxh3_128"]
    change(body)
    (to / "manifest.json").write_bytes(sealed(body))
    return to


def records(body: dict) -> dict[str, dict]:
    """The records of a manifest that may gain members within a version."""
    chunks = {f"chunk of {k}": c for k, r in body["tensors"].items() for c in r.get("chunks", ())}
    return {
        "the manifest": body,
        "the environment": body["environment"],
        **{f"part {n}": p for n, p in body["parts"].items()},
        **{f"tensor {n}": r for n, r in body["tensors"].items()},
        **{f"file {n}": r for n, r in body["files"].items()},
        **chunks,
    }


NEWS = [1, "text", None, {"$": "call", "v": "os.system"}, [[{}]], 1e300]


@pytest.mark.parametrize("version", VERSIONS, ids=lambda p: p.name)
def test_members_that_nobody_knows_do_no_harm(version, tmp_path, figure):
    """A later holdtrue may write more into the same version: what is known is read as ever."""
    expected = make.training()
    holdtrue.open(version / "training").restore(**expected)
    for index, news in enumerate(NEWS):

        def add(body, news=news):
            for record in records(body).values():
                record["invented later"] = news
            figure("manifest records with a member that nobody knows", len(records(body)))

        path = rewritten(version, tmp_path / str(index), add)
        assert holdtrue.verify(path).ok
        parts = make.training()
        for tensor in (*parts["model"].parameters(), *parts["model"].buffers()):
            torch.nn.init.zeros_(tensor.data)
        holdtrue.open(path).restore(**parts)
        assert same(parts["model"].state_dict(), expected["model"].state_dict())
        assert same(parts["optimizer"].state_dict(), expected["optimizer"].state_dict())


@pytest.mark.parametrize("version", VERSIONS, ids=lambda p: p.name)
@pytest.mark.parametrize("newer", [VERSION + 1, VERSION + 2, 99, 999_999_999])
def test_a_newer_version_says_what_to_install(version, newer, tmp_path):
    def change(body):
        body["version"] = newer
        body["parts"] = ["laid out in a way that nobody here knows"]

    path = rewritten(version, tmp_path / "newer", change)
    parts = make.training()
    before = {k: v.clone() for k, v in parts["model"].state_dict().items()}
    for act in (
        lambda: holdtrue.open(path),
        lambda: holdtrue.open(path).restore(**parts),
        lambda: holdtrue.verify(path),
        lambda: holdtrue.convert(path, tmp_path / "out", to="safetensors"),
    ):
        with pytest.raises(holdtrue.HoldtrueError) as caught:
            act()
        (finding,) = caught.value.report.errors
        assert finding.code == "format-newer"
        assert finding.fix == "pip install --upgrade holdtrue"
        assert (finding.saved, finding.expected) == (str(newer), str(VERSION))
    after = parts["model"].state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not (tmp_path / "out").exists()


def test_a_flipped_version_sends_nobody_to_upgrade(tmp_path):
    path = Path(shutil.copytree(HERE / "v1" / "training", tmp_path / "kept"))
    raw = (path / "manifest.json").read_bytes()
    (path / "manifest.json").write_bytes(raw.replace(b'"version":1', b'"version":3', 1))
    with pytest.raises(holdtrue.DamageError) as caught:
        holdtrue.open(path)
    assert [f.code for f in caught.value.report.errors] == ["manifest-damaged"]


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
