"""`python -m attacks.fuzzing.seeds DIR`: where fuzzing begins. Small honest files, and the attacks.

Run where torch is installed; the fuzzer itself needs none.
"""

import base64
import hashlib
import io
import json
import pickle
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
import xxhash
from safetensors.torch import save as save_safetensors
from torch import nn

import holdtrue
from attacks import families
from attacks.attack import FAMILIES, CannotMake, make
from attacks.fuzzing.targets import HEADER, PLAIN

assert families.__all__
_LONGEST = 64 * 1024  # a seed's bytes; the fuzzer keeps inputs short


def honest(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Target → bytes, from what the writers of each format write."""
    model = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(3, 2)).sum().backward()
    optimizer.step()
    holdtrue.save(folder / "kept", model=model, optimizer=optimizer, note=[1, {"a": (2.5, b"x")}])
    yield "manifest", _of_plain(json.loads((folder / "kept" / "manifest.json").read_bytes()))
    holdtrue.save(folder / "one", a=torch.ones(2))
    yield "manifest", _of_plain(json.loads((folder / "one" / "manifest.json").read_bytes()))
    raw = holdtrue.seal(folder / "one").read_bytes()
    yield "seal", raw
    yield "seal", base64.b64decode(json.loads(raw)["dsseEnvelope"]["payload"])
    weights = model.state_dict()
    yield "safetensors-header", _header(save_safetensors(weights, {"k": "v"}))
    values: dict[str, Any] = {
        "weights": weights,
        "optimizer": optimizer.state_dict(),
        "sparse": torch.eye(2).to_sparse(),
        "array": np.ones(3),
        "quantised": torch.quantize_per_tensor(torch.ones(2), 0.5, 1, torch.qint8),
        "number": np.float64(2.0),
    }
    for protocol in (2, 4):
        yield "pickle", pickle.dumps({"a": [1, (2.5, b"x")], "b": np.ones(2)}, protocol)
        for value in (values, {"w": torch.ones(2, 3)}, model):
            data = _torch(value, pickle_protocol=protocol)
            yield "torch-zip", zipfile.ZipFile(io.BytesIO(data)).read("archive/data.pkl")
            for target in ("zip-directory", "any-file"):
                yield target, data
            old = _torch(value, pickle_protocol=protocol, _use_new_zipfile_serialization=False)
            yield "torch-legacy", old
            yield "any-file", old
    scripted = io.BytesIO()
    torch.jit.save(torch.jit.script(model), scripted)
    with zipfile.ZipFile(scripted) as archive:
        code = {n.rpartition("/")[2]: archive.read(n) for n in archive.namelist()}
        python = b"".join(data for name, data in code.items() if name.endswith(".py"))
        yield "torchscript", python + b"\n--\n" + code["data.pkl"]
    exported = io.BytesIO()
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)), exported)
    with zipfile.ZipFile(exported) as archive:
        for name in archive.namelist():
            if name.endswith("weights_config.json"):
                yield "pt2", archive.read(name)
    yield (
        "shard-index",
        json.dumps({"metadata": {"total_size": 8}, "weight_map": {"a": "a.safetensors"}}).encode(),
    )
    for array in (np.ones((2, 3), order="F"), np.zeros(2, [("a", "<i2"), ("b", ">f4", 2)])):
        made = io.BytesIO()
        np.save(made, array)
        yield "npy-header", made.getvalue()[10:].split(b"\n")[0] + b"\n"
        yield "any-file", made.getvalue()
        packed = io.BytesIO()
        np.savez_compressed(packed, a=array)
        yield "zip-directory", packed.getvalue()
    dcp.save({"w": torch.arange(6.0).reshape(2, 3), "n": {"epoch": 1}},
             checkpoint_id=folder / "dcp", no_dist=True)  # fmt: skip
    yield "dcp-metadata", (folder / "dcp" / ".metadata").read_bytes()
    yield "dcp-sharding", b'{"a": {"saved_offsets": [0]}}'
    yield "error-text", b"RuntimeError: size mismatch for fc.weight: copying a param with shape"
    yield "error-text", b"_pickle.UnpicklingError: Weights only load failed. Unsupported operand 60"


def _torch(value: Any, **how: Any) -> bytes:
    made = io.BytesIO()
    torch.save(value, made, **how)
    return made.getvalue()


def _header(data: bytes) -> bytes:
    return data[8 : 8 + int.from_bytes(data[:8], "little")]


def _of_plain(body: dict[str, Any]) -> bytes:
    """A manifest whose every tensor is the one of the file that the target writes beside it.

    Without random states, libraries and recipe: the fuzzer keeps its inputs short.
    """
    head = PLAIN[: 8 + len(HEADER)]
    body["files"] = {"model.safetensors": {
        "nbytes": len(PLAIN), "header": len(head), "header_digest": xxhash.xxh3_128_hexdigest(head),
    }}  # fmt: skip
    chunk = {"file": "model.safetensors", "name": "a"}
    chunk["digest"] = xxhash.xxh3_128_hexdigest(PLAIN[len(head) :])
    for tensor in body["tensors"].values():
        tensor |= {"dtype": "float32", "shape": [2], "chunks": [chunk]}
        tensor.pop("stride", None)
    del body["xxh3_128"]
    body["parts"].pop("rng", None)
    told = body["environment"].items()
    body["environment"] = {k: v for k, v in told if isinstance(v, str) and len(v) < 60}
    for part in body["parts"].values():
        part.pop("rebuild", None)
    return json.dumps(body, separators=(",", ":")).encode()


# Which parsers an attack's file is fed to: its bytes as they are, or cut to what the target wants.
_FAMILY = {
    "zip": ("zip-directory", "any-file"),
    "torch file": ("torch-legacy", "torch-tar", "any-file"),
    "pickle": ("pickle", "torch-zip"),
    "numpy": ("any-file",),
}


def hostile(folder: Path) -> Iterator[tuple[str, bytes]]:
    attacks = [attack for family in FAMILIES.values() for attack in family.values()]
    for number, attack in enumerate(attacks):
        place, outside = folder / str(number) / "attack", folder / str(number) / "outside"
        place.mkdir(parents=True)
        outside.mkdir()
        (outside / "secret").write_bytes(b"secret")
        try:
            make(attack, place)
        except CannotMake:
            continue
        for path in place.rglob("*"):
            if path.is_symlink() or not path.is_file() or path.stat().st_size > _LONGEST:
                continue
            data = path.read_bytes()
            if path.name == "manifest.json" and b',"xxh3_128"' in data:
                yield "manifest", data[: data.rindex(b',"xxh3_128"')]
            elif path.name == "model.sig":
                yield "seal", data
            elif path.name == ".metadata":
                yield "dcp-metadata", data
            elif path.name.endswith(".index.json"):
                yield "shard-index", data
            elif data.startswith(b"\x93NUMPY"):
                yield "npy-header", data[10:]
            elif attack.family == "safetensors":
                yield "safetensors-header", _header(data)
            for target in _FAMILY.get(attack.family, ()):
                yield target, data


def main(work: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for found in (honest(folder), hostile(folder)):
            for target, data in found:
                if len(data) <= _LONGEST:
                    place = work / "seeds" / target
                    place.mkdir(parents=True, exist_ok=True)
                    (place / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
