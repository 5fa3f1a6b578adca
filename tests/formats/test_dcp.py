import dataclasses
import json
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from damage import flips, survives, truncations
from safetensors.torch import save as save_safetensors
from torch.distributed.checkpoint import FileSystemWriter, HuggingFaceStorageWriter
from torch.distributed.checkpoint.filesystem import SerializationFormat
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata
from write_dcp import whole

from holdtrue.errors import DamageError, HoldtrueError, OpenError
from holdtrue.formats.chunks import misfit
from holdtrue.formats.dcp import read_incomplete
from holdtrue.formats.opening import read
from holdtrue.formats.tensor_bytes import read_tensor, tensor_chunks
from holdtrue.limits import override

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.complex64,
    torch.complex128,
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
]


def save(state, folder, **how):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, storage_writer=FileSystemWriter(folder, **how), no_dist=True)


def raw(tensor):
    flat = torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor).reshape(-1)
    return bytes(flat.view(torch.uint8).numpy()) if flat.numel() else b""


def random_tensor(dtype, *shape):
    width = torch.empty(0, dtype=dtype).element_size()
    count = torch.Size(shape).numel() * width
    top = 2 if dtype is torch.bool else 256
    return torch.randint(0, top, (count,), dtype=torch.uint8).view(dtype).reshape(shape)


def state_of_everything():
    state = {str(dtype): random_tensor(dtype, 3, 2) for dtype in DTYPES}
    state |= {f"{dtype} 0-d": random_tensor(dtype) for dtype in DTYPES}
    base = torch.arange(60.0)
    state |= {
        "strided": base.reshape(3, 4, 5).permute(2, 0, 1),
        "empty": torch.zeros(0, 3),
        "view": base[7:20:3],
        "expanded": torch.tensor([1.0, 2.0]).expand(3, 2),
    }
    return state


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"single_file_per_rank": False},
        {"thread_count": 3, "single_file_per_rank": False},
    ],
)
def test_every_dtype_and_stride_bit_for_bit(tmp_path, how):
    state = state_of_everything()
    save({"model": state}, tmp_path, **how)
    view = read(str(tmp_path))
    assert view.format == "dcp"
    assert view.about["version"] == "1.0.0"
    assert view.findings == ()
    assert set(view.tree["model"]) == set(state)
    for name, tensor in state.items():
        got = view.tensors[f"model/{name}"]
        assert got.dtype == str(tensor.dtype).removeprefix("torch.")
        assert got.shape == tuple(tensor.shape)
        assert read_tensor(got).tobytes() == raw(tensor)
    keys = [piece.storage.key for t in view.tensors.values() for piece in t.pieces]
    assert len(set(keys)) == len(keys)


def test_the_tree_is_put_together_again(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "history": [0.5, {"loss": torch.ones(2)}],
        "names": ("a", "b"),
        "none": None,
    }
    save(state, tmp_path)
    tree = read(str(tmp_path)).tree
    assert read(str(tmp_path)).about["would_run"] == []
    assert tree["epoch"] == 3
    assert tree["names"] == ("a", "b")
    assert tree["none"] is None
    assert tree["history"][0] == 0.5
    assert read_tensor(tree["history"][1]["loss"]).tobytes() == raw(torch.ones(2))
    assert tree["optimizer"]["param_groups"][0]["lr"] == 1e-3
    first = optimizer.state_dict()["state"][0]["exp_avg"]
    assert read_tensor(tree["optimizer"]["state"]["0"]["exp_avg"]).tobytes() == raw(first)
    for name, tensor in model.state_dict().items():
        assert read_tensor(tree["model"][name]).tobytes() == raw(tensor)


def test_a_flat_checkpoint_without_planner_data(tmp_path):
    planner = dcp.DefaultSavePlanner(flatten_state_dict=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(
            {"a.b": torch.ones(2)},
            storage_writer=FileSystemWriter(tmp_path),
            planner=planner,
            no_dist=True,
        )
    view = read(str(tmp_path))
    assert list(view.tree) == ["a.b"]
    assert view.about["flattened"] is False


def test_shards_written_as_safetensors(tmp_path):
    state = {"a": torch.randn(3, 2), "b": torch.arange(4)}
    save(state, tmp_path, serialization_format=SerializationFormat.SAFETENSORS)
    view = read(str(tmp_path))
    assert {k: read_tensor(t).tobytes() for k, t in view.tensors.items()} == {
        k: raw(t) for k, t in state.items()
    }


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"save_distributed": True},
        {"save_distributed": True, "enable_consolidation": True},
        {"fqn_to_index_mapping": {"a": 1, "b": 2, "c": 1}},
        {"fqn_to_index_mapping": {"a": 1, "b": 2, "c": 1}, "save_distributed": True},
    ],
)
def test_the_safetensors_writer(tmp_path, how):
    state = {"a": torch.randn(3, 2), "b": torch.randn(5).half(), "c": torch.ones(1)}
    writer = HuggingFaceStorageWriter(str(tmp_path), **how)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, storage_writer=writer, no_dist=True)
    view = read(str(tmp_path))
    assert {k: read_tensor(t).tobytes() for k, t in view.tensors.items()} == {
        k: raw(t) for k, t in state.items()
    }


def test_a_shard_by_itself_is_named(tmp_path):
    save({"a": torch.ones(3), "b": torch.zeros(500), "c": {"d": 1}}, tmp_path)
    for present in (True, False):
        with pytest.raises(OpenError) as error:
            read(str(tmp_path / "__0_0.distcp"))
        assert error.value.report.findings[0].code == "shard-alone"
        if present:
            (tmp_path / ".metadata").unlink()


# Two processes


@pytest.fixture(scope="module")
def distributed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dcp") / "two"
    program = Path(__file__).with_name("write_dcp.py")
    run = subprocess.run(
        [sys.executable, str(program), str(folder)],
        timeout=300,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if run.returncode:
        pytest.skip(f"two processes could not write together: {run.stderr[-500:]}")
    return folder


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("plain", "dcp"),
        ("safetensors", "dcp-safetensors"),
        ("consolidated", "hf-index"),
        ("consolidated/sharded", "dcp-safetensors"),
    ],
)
def test_what_two_processes_wrote_together(distributed, kind, said):
    view = read(str(distributed / kind))
    assert view.format == said
    prefix = "model/" if kind == "plain" else ""
    for name, tensor in whole().items():
        if name == "empty" and kind != "plain":
            continue
        got = view.tensors[prefix + name]
        assert got.shape == tuple(tensor.shape)
        assert read_tensor(got).tobytes() == raw(tensor)
        with override(chunk_bytes=16):
            assert b"".join(c.tobytes() for c in tensor_chunks(got)) == raw(tensor)
    if kind == "plain":
        assert view.tree["step"] == 12
        assert len(view.tensors["model/rows"].pieces) == 2
        assert read_tensor(view.tree["list"][0]).tobytes() == raw(whole()["rows"])


def copied(source, target):
    target.mkdir()
    for file in source.iterdir():
        if file.is_file():
            (target / file.name).write_bytes(file.read_bytes())
    return target


def test_a_missing_rank(distributed, tmp_path):
    plain = copied(distributed / "plain", tmp_path / "plain")
    (plain / "__0_0.distcp").unlink()
    with pytest.raises(DamageError) as error:
        read(str(plain))
    (finding,) = error.value.report.findings
    assert finding.code == "shard-missing"
    assert any("model.rows" in place for place in finding.places)
    assert "model/replicated" in read_incomplete(str(plain)).tensors
    shards = copied(distributed / "safetensors", tmp_path / "safetensors")
    (shards / "shard-00001-model-00001-of-00001.safetensors").unlink()
    with pytest.raises(DamageError) as error:
        read(str(shards))
    assert {f.code for f in error.value.report.findings} == {"shard-missing", "dcp-item-damaged"}


@pytest.mark.parametrize(
    "info",
    [
        "no json",
        "[]",
        '{"a": 3}',
        '{"a": {}}',
        '{"a": {"saved_offsets": [1]}}',
        '{"a": {"saved_offsets": [-1, 0]}}',
        '{"a": {"saved_offsets": [0, 1]}}',
        '{"a": {"saved_offsets": [0.0, 0]}}',
        '{"a": {"saved_offsets": [9223372036854775807, 0]}}',
    ],
)
def test_hostile_sharding_information(tmp_path, info):
    data = save_safetensors({"a": torch.ones(2, 2)}, {"DCP_SHARDING_INFO": info})
    (tmp_path / "a.safetensors").write_bytes(data)
    with pytest.raises(DamageError) as error:
        read(str(tmp_path))
    assert error.value.report.findings[0].code in {"dcp-metadata-damaged", "dcp-item-damaged"}


# Hostile metadata


@pytest.fixture
def small(tmp_path):
    save({"w": torch.arange(6.0).reshape(2, 3), "n": {"epoch": 1}}, tmp_path)
    return tmp_path


def change(folder, edit):
    path = folder / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    edit(metadata)
    path.write_bytes(pickle.dumps(metadata))


def of(metadata, name):
    return next(k for k in metadata.storage_data if k.fqn == name)


def place(metadata, name, **changes):
    key = of(metadata, name)
    metadata.storage_data[key] = dataclasses.replace(metadata.storage_data[key], **changes)


def chunks(metadata, *boxes):
    entry = metadata.state_dict_metadata["w"]
    entry.chunks[:] = [ChunkStorageMetadata(torch.Size(a), torch.Size(b)) for a, b in boxes]
    info = metadata.storage_data.pop(of(metadata, "w"))
    for start, _ in boxes:
        index = dcp.metadata.MetadataIndex("w", start)
        metadata.storage_data[index] = info


HOSTILE = {
    "outside": (lambda m: place(m, "w", relative_path="../x"), "shard-name-unsafe"),
    "absolute": (lambda m: place(m, "w", relative_path="/etc/passwd"), "shard-name-unsafe"),
    "backslash": (lambda m: place(m, "w", relative_path="a\\b"), "shard-name-unsafe"),
    "no file": (lambda m: place(m, "w", relative_path=3), "dcp-metadata-damaged"),
    "far": (lambda m: place(m, "w", offset=1 << 62), "bytes-missing"),
    "past every number": (lambda m: place(m, "w", offset=1 << 70), "dcp-metadata-damaged"),
    "long": (lambda m: place(m, "w", length=1 << 40), "bytes-missing"),
    "negative": (lambda m: place(m, "w", offset=-1), "dcp-metadata-damaged"),
    "middle": (lambda m: place(m, "w", offset=7), None),
    "nothing": (lambda m: place(m, "w", length=0), None),
    "transformed": (
        lambda m: place(m, "w", transform_descriptors=["stream.zstd"]),
        "dcp-transformed",
    ),
    "no place": (lambda m: m.storage_data.clear(), "dcp-metadata-damaged"),
    "no table": (lambda m: setattr(m, "storage_data", 3), "dcp-metadata-damaged"),
    "no state": (lambda m: setattr(m, "state_dict_metadata", None), "dcp-metadata-damaged"),
    "no chunks": (lambda m: m.state_dict_metadata["w"].chunks.clear(), "dcp-metadata-damaged"),
    "other shape": (
        lambda m: setattr(m.state_dict_metadata["w"], "size", torch.Size([2, 4])),
        "dcp-item-damaged",
    ),
    "other dtype": (
        lambda m: setattr(m.state_dict_metadata["w"].properties, "dtype", torch.int32),
        "dcp-item-damaged",
    ),
    "odd dtype": (
        lambda m: setattr(m.state_dict_metadata["w"].properties, "dtype", 3),
        "dcp-metadata-damaged",
    ),
    "overlap": (lambda m: chunks(m, ((0, 0), (2, 3)), ((0, 1), (2, 3))), "dcp-item-damaged"),
    "gap": (
        lambda m: setattr(m.state_dict_metadata["w"], "size", torch.Size([1 << 40, 3])),
        "dcp-item-damaged",
    ),
    "axes": (lambda m: chunks(m, ((0,), (6,))), "dcp-item-damaged"),
    "list bomb": (lambda m: m.planner_data.update({"w": ("l", 1 << 60)}), "dcp-item-damaged"),
    "list bombs": (
        lambda m: m.planner_data.update({"w": ("l", 4_999_999), "n.epoch": ("k", 4_999_999)}),
        "dcp-item-damaged",
    ),
    "negative step": (lambda m: m.planner_data.update({"w": ("l", -1)}), "dcp-metadata-damaged"),
    "number first": (lambda m: m.planner_data.update({"w": (0, "a")}), "dcp-metadata-damaged"),
    "deep": (lambda m: m.planner_data.update({"w": ("a",) * 5000}), "dcp-metadata-damaged"),
    "list and dict": (lambda m: m.planner_data.update({"w": ("n", 3)}), "dcp-item-damaged"),
    "through a value": (
        lambda m: m.planner_data.update({"w": ("v", "a"), "n.epoch": ("v",)}),
        "dcp-item-damaged",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_metadata(small, name):
    edit, code = HOSTILE[name]
    change(small, edit)
    with pytest.raises(HoldtrueError) as error:
        read(str(small))
    codes = {f.code for f in error.value.report.findings}
    assert codes
    assert code is None or code in codes


def test_a_metadata_that_runs_something_runs_nothing(small):
    class Trap:
        def __reduce__(self):
            return (open, (str(small / "sprung"), "w"))

    change(small, lambda m: setattr(m, "storage_meta", Trap()))
    view = read(str(small))
    assert any("open" in op.name for op in view.about["would_run"])
    assert not (small / "sprung").exists()


@pytest.mark.parametrize("file", [".metadata", "__0_0.distcp"])
def test_every_truncation_is_refused(small, file):
    data = (small / file).read_bytes()
    opened, refused = survives(small / file, truncations(data), lambda _: read(str(small)))
    assert (opened, refused) == (0, len(data))


@pytest.mark.parametrize("file", [".metadata", "__0_0.distcp"])
@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_random_flips(small, file, count):
    def everything(_):
        return [read_tensor(t) for t in read(str(small)).tensors.values()]

    data = (small / file).read_bytes()
    opened, refused = survives(small / file, flips(data, count), everything)
    assert opened + refused == count
    assert refused > count // 10


# Boxes


@pytest.mark.parametrize(
    ("shape", "boxes", "why"),
    [
        ((4,), [((0,), (2,)), ((2,), (2,))], None),
        ((4,), [((0,), (2,)), ((1,), (2,))], "overlap"),
        ((4,), [((0,), (3,)), ((1,), (3,))], "overlap"),
        ((4,), [((0,), (2,))], "2 of 4"),
        ((4,), [((0,), (5,))], "reaches past"),
        ((4,), [((0, 0), (4, 1))], "axes"),
        ((4,), [], "0 of 4"),
        ((), [((), ())], None),
        ((), [((), ()), ((), ())], "overlap"),
        ((0, 3), [((0, 0), (0, 3)), ((0, 1), (0, 2))], None),
        ((2, 2), [((0, 0), (1, 2)), ((1, 0), (1, 1)), ((1, 1), (1, 1))], None),
        ((2, 2), [((0, 0), (2, 1)), ((0, 0), (1, 2)), ((1, 1), (1, 1))], "overlap"),
        ((3, 3), [((y, x), (1, 1)) for y in range(3) for x in range(3)], None),
    ],
)
def test_boxes_that_do_and_do_not_cover(shape, boxes, why):
    got = misfit(shape, boxes)
    assert got is None if why is None else why in got


def test_many_boxes_are_compared_quickly():
    boxes = [((0, i), (4, 1)) for i in range(20_000)]
    assert misfit((4, 20_000), boxes) is None


def test_json_is_not_what_metadata_is(tmp_path):
    (tmp_path / ".metadata").write_text(json.dumps({"a": 1}))
    with pytest.raises(HoldtrueError):
        read(str(tmp_path))
