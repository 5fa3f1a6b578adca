import hashlib
import io
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from corpus import CORPUS, needs_corpus
from damage import flips, survives, truncations
from safetensors.torch import save as save_safetensors

from holdtrue.errors import HoldtrueError
from holdtrue.formats.opening import read
from holdtrue.formats.tensor_bytes import read_tensor
from holdtrue.formats.verifying import parts
from holdtrue.records.dtypes import SAFETENSORS


def expected_files():
    if not CORPUS.is_dir():
        return []
    rows = [json.loads(path.read_text()) for path in sorted((CORPUS / "expected").iterdir())]
    return [row for row in rows if row.get("tensors")]


def our_path(said):
    """The corpus writes `a.b[0]`, a view `a/b/0`; compared without what joins the parts."""
    return "".join(c for c in said if c not in "/[].'\"")


@needs_corpus
@pytest.mark.parametrize("row", expected_files(), ids=lambda row: row["path"].split("/")[-1])
def test_published_files_bit_for_bit(row):
    try:
        view = read(str(CORPUS / "weights" / row["path"]))
    except HoldtrueError:
        assert "vectors" in row["path"]  # those that the reference reader refuses too
        return
    assert not any(finding.severity == "error" for finding in view.findings)
    ours = {}
    for path, tensor in view.tensors.items():
        for part in parts(tensor):
            digest = hashlib.sha256(read_tensor(part).tobytes()).hexdigest()
            ours.setdefault((digest, tuple(part.shape)), []).append((our_path(path), part.dtype))
    for wanted in row["tensors"]:
        found = ours.get((wanted["sha256"], tuple(wanted["shape"])))
        assert found, wanted["path"]
        dtype = wanted["dtype"]
        dtype = SAFETENSORS[dtype][0] if dtype in SAFETENSORS else dtype
        assert dtype in {kind for _, kind in found}


def saved(value, **how):
    buffer = io.BytesIO()
    torch.save(value, buffer, **how)
    return buffer.getvalue()


def scripted():
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 1)), buffer)
    return buffer.getvalue()


STATE = {"w": torch.arange(4.0), "n": [1, "two", torch.ones(2, 2)], "epoch": 3}
SMALL = {
    "torch-zip": lambda: saved(STATE),
    "torch-legacy": lambda: saved(STATE, _use_new_zipfile_serialization=False),
    "torchscript": scripted,
    "safetensors": lambda: save_safetensors({"w": torch.ones(3)}),
    "pickle 0": lambda: pickle.dumps({"a": np.arange(3), "b": [1.5, None]}, 0),
    "pickle 4": lambda: pickle.dumps({"a": np.arange(3), "b": [1.5, None]}, 4),
}


def everything(path):
    view = read(path)
    return [
        read_tensor(p) for t in view.tensors.values() for p in parts(t) if p.layout == "strided"
    ]


@pytest.mark.parametrize("kind", SMALL)
def test_every_truncation(tmp_path, kind):
    data = SMALL[kind]()
    opened, refused = survives(tmp_path / "f", truncations(data), everything)
    assert opened + refused == len(data)
    # A zip comment's length or a pickle's STOP may go without a tensor being lost.
    assert opened <= len(data) // 20


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_random_flips(tmp_path, kind, count):
    opened, refused = survives(tmp_path / "f", flips(SMALL[kind](), count), everything)
    assert opened + refused == count
    assert refused


def test_random_bytes(tmp_path):
    chance = np.random.default_rng(0)
    heads = [data()[:n] for data in SMALL.values() for n in (2, 8, 16, 40)] + [b"\x93NUMPY\x01\0"]
    blocks = (
        head + chance.bytes(int(chance.integers(0, 3000))) for _ in range(20) for head in heads
    )
    opened, refused = survives(tmp_path / "f", blocks, everything)
    assert refused
    assert not opened


def in_process(code, *arguments):
    run = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_torch_and_pickle_are_not_imported(tmp_path):
    path = tmp_path / "f"
    for data in SMALL.values():
        path.write_bytes(data())
        loaded = in_process(
            "import sys; from holdtrue.formats.opening import read; read(sys.argv[1]);"
            "from holdtrue.formats.salvaging import salvage; salvage(sys.argv[1]);"
            "print([m for m in ('torch', 'safetensors', 'cloudpickle') if m in sys.modules])",
            path,
        )
        assert loaded.strip() == "[]"


PEAK = """
import resource, sys
from holdtrue.errors import HoldtrueError
from holdtrue.formats.opening import read
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read(sys.argv[1])
    print("opened")
except HoldtrueError as error:
    print(error.report.findings[0].code)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def bomb(length, text):
    return length.to_bytes(8, "little") + text


def test_a_large_file_opens_quickly_and_in_little_memory(tmp_path):
    path = tmp_path / "f"
    header = json.dumps(
        {
            f"layer.{i}": {
                "dtype": "F32",
                "shape": [1 << 18],
                "data_offsets": [i << 20, (i + 1) << 20],
            }
            for i in range(2000)
        }
    ).encode()
    path.write_bytes(bomb(len(header), header))
    with path.open("r+b") as file:
        file.truncate(8 + len(header) + (2000 << 20))
    said, grown = in_process(PEAK, path).split()
    assert said == "opened"
    assert int(grown) < 30
