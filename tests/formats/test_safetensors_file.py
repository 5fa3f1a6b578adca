import csv
import hashlib
import json
import struct

import numpy as np
import pytest
import torch
from corpus import CORPUS, needs_corpus
from damage import flips, survives, truncations
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize
from safetensors.torch import save

from holdtrue.errors import DamageError, HoldtrueError
from holdtrue.formats import safetensors_file
from holdtrue.formats.tensor_bytes import read_tensor
from holdtrue.limits import override

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e8m0fnu,
    torch.complex64,
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.uint16,
    torch.int16,
    torch.uint32,
    torch.int32,
    torch.uint64,
    torch.int64,
    torch.float4_e2m1fn_x2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
]
SHAPES = [(), (0,), (3,), (2, 3), (1, 0, 2), (2, 1, 2, 2)]
VECTORS = CORPUS / "weights/safetensors-rust-vectors"


def random_tensor(dtype, shape):
    width = torch.empty(0, dtype=dtype).element_size()
    count = int(np.prod(shape)) if shape else 1
    top = 2 if dtype is torch.bool else 256
    raw = torch.randint(0, top, (count * width,), dtype=torch.uint8)
    return raw.view(dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)


def raw_file(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def read_all(path):
    view = safetensors_file.read(path)
    return {name: read_tensor(tensor) for name, tensor in view.tensors.items()}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_and_shape_bit_for_bit(tmp_path, dtype):
    shapes = SHAPES[1:] if dtype is torch.float4_e2m1fn_x2 else SHAPES  # 0-d has no pairs
    tensors = {f"t{i}": random_tensor(dtype, shape) for i, shape in enumerate(shapes)}
    path = tmp_path / "f"
    path.write_bytes(save(tensors, {"note": "kept"}))
    view = safetensors_file.read(str(path))
    assert view.about["metadata"] == {"note": "kept"}
    assert set(view.tensors) == set(tensors) == set(view.tree)
    for name, tensor in tensors.items():
        got = view.tensors[name]
        assert got.dtype == str(dtype).removeprefix("torch.")
        assert got.shape == tuple(tensor.shape)
        assert got.stride == tuple(tensor.stride())
        flat = tensor.reshape(-1).view(torch.uint8) if tensor.numel() else torch.empty(0)
        assert read_tensor(got).tobytes() == bytes(flat.numpy())


def test_numbers_below_a_byte_are_given_as_bytes(tmp_path):
    path = tmp_path / "f"
    header = {
        "six": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [0, 3]},
        "odd": {"dtype": "F4", "shape": [2, 1], "data_offsets": [3, 4]},
    }
    path.write_bytes(raw_file(header, b"abcd"))
    view = safetensors_file.read(str(path))
    assert read_tensor(view.tensors["six"]).tobytes() == b"abc"
    assert view.tensors["odd"].state == {"safetensors_dtype": "F4", "shape": (2, 1)}
    (finding,) = view.findings
    assert finding.code == "dtype-unknown-to-torch"
    assert finding.count == 2


@needs_corpus
@pytest.mark.parametrize(
    "row",
    list(csv.DictReader((VECTORS / "EXPECTED.tsv").open(), delimiter="\t"))
    if CORPUS.is_dir()
    else [],
    ids=lambda row: row["file"],
)
def test_the_reference_readers_vectors(row):
    path = str(VECTORS / row["file"])
    if row["got_safetensors_0.8.0"] == "accept":
        read_all(path)
    else:
        with pytest.raises(DamageError) as error:
            safetensors_file.read(path)
        assert error.value.report.findings[0].code == "safetensors-header-damaged"


@needs_corpus
@pytest.mark.parametrize(
    "name",
    [
        "fracast/fracast/weights/model.int8.safetensors",
        "torchsharp-pybridge-repo/TorchSharp.PyBridge.Tests/pickled_tensors/tensors.safetensors",
    ],
)
def test_published_files(name):
    expected = json.loads((CORPUS / "expected" / (name.replace("/", "__") + ".json")).read_text())
    view = safetensors_file.read(str(CORPUS / "weights" / name))
    assert len(view.tensors) == len(expected["tensors"]) > 0
    for row in expected["tensors"]:
        tensor = view.tensors[row["path"]]
        assert list(tensor.shape) == row["shape"]
        assert hashlib.sha256(read_tensor(tensor).tobytes()).hexdigest() == row["sha256"]


ONE = {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}


def test_header_length_budgets(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(raw_file({"a": ONE}, b"xy"))
    with override(header_bytes=20), pytest.raises(DamageError) as error:
        safetensors_file.read(str(path))
    assert "20 are allowed" in error.value.report.findings[0].why
    with override(entries=4), pytest.raises(DamageError) as error:
        safetensors_file.read(str(path))
    assert "more than 4 values" in error.value.report.findings[0].why


SIZES = {"F32": 4, "F16": 2, "U8": 1, "I64": 8, "C64": 8, "F8_E8M0": 1, "BOOL": 1}
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*SIZES, "F4", "F6_E2M3", "U9"]),
        "shape": st.lists(st.integers(0, 3), max_size=3),
        "nudge": st.tuples(*[st.sampled_from([0] * 8 + [1, -1])] * 2),
    }
)


@given(
    rows=st.lists(entries, max_size=4),
    extra=st.sampled_from([0, 0, 0, 0, 1]),
    pad=st.sampled_from(["", " ", "   "]),
    lead=st.sampled_from(["", " "]),
    data=st.data(),
)
@settings(max_examples=500, deadline=None)
def test_accepts_what_the_reference_reader_accepts(tmp_path_factory, rows, extra, pad, lead, data):
    header, position = {}, 0
    for index, row in enumerate(data.draw(st.permutations(rows))):
        bits = {"F4": 4, "F6_E2M3": 6}.get(row["dtype"], 8 * SIZES.get(row["dtype"], 1))
        size = int(np.prod(row["shape"], dtype=int)) * bits // 8
        begin, end = position + row["nudge"][0], position + size + row["nudge"][1]
        header[f"t{index}"] = {
            "dtype": row["dtype"],
            "shape": row["shape"],
            "data_offsets": [begin, end],
        }
        position += size
    raw = raw_file((lead + json.dumps(header) + pad).encode(), bytes(position + extra))
    path = tmp_path_factory.mktemp("reference") / "f"
    path.write_bytes(raw)
    try:
        wanted = {name for name, _ in deserialize(raw)}
    except SafetensorError:
        wanted = None
    try:
        got = set(safetensors_file.read(str(path)).tensors)
    except DamageError:
        got = None
    assert got == wanted


@pytest.fixture
def small():
    return save({"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(2)}, {"k": "v"})


def test_every_truncation_is_refused(tmp_path, small):
    opened, refused = survives(tmp_path / "f", truncations(small), read_all)
    assert (opened, refused) == (0, len(small))


@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_random_flips(tmp_path, small, count):
    opened, refused = survives(tmp_path / "f", flips(small, count), read_all)
    assert opened + refused == count
    assert refused > count // 4  # headers are hit often; flips in data cannot be seen here


@pytest.mark.parametrize("size", [0, 7])
def test_a_file_too_short_for_any_header(tmp_path, size):
    path = tmp_path / "f"
    path.write_bytes(bytes(size))
    with pytest.raises(HoldtrueError):
        safetensors_file.read(str(path))
