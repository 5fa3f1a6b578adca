import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from damage import flips, survives, truncations
from torch.distributed.checkpoint import FileSystemWriter, HuggingFaceStorageWriter
from torch.distributed.checkpoint.filesystem import SerializationFormat
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


# Hostile metadata


@pytest.fixture
def small(tmp_path):
    save({"w": torch.arange(6.0).reshape(2, 3), "n": {"epoch": 1}}, tmp_path)
    return tmp_path


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
