import json
import struct
import zipfile

import numpy as np
import pytest
import torch
from corpus import CORPUS, needs_corpus
from damage import check_findings, flips, survives, truncations
from safetensors.torch import save, save_file

from holdtrue.errors import DamageError, HoldtrueError
from holdtrue.formats.opening import read
from holdtrue.formats.salvaging import salvage
from holdtrue.formats.tensor_bytes import read_tensor

STATE = {f"w{i}": torch.randn(40, i + 1) for i in range(5)}
RICH = {"model": STATE, "epoch": 3, "more": [torch.ones(30), "text"], "pair": (torch.zeros(9), 1)}


def same(kept, state):
    """Every kept tensor is bit for bit what was saved."""
    for name, tensor in kept.items():
        node = state
        for step in name.split("/"):
            node = node[int(step) if isinstance(node, (list, tuple)) else step]
        assert read_tensor(tensor).tobytes() == node.numpy().tobytes(), name


def data_offset(path, name):
    with zipfile.ZipFile(path) as archive:
        info = next(i for i in archive.infolist() if i.filename.endswith(name))
        archive.fp.seek(info.header_offset + 26)
        sizes = struct.unpack("<HH", archive.fp.read(4))
    return info.header_offset + 30 + sum(sizes), info.file_size


@pytest.mark.parametrize("legacy", [False, True])
def test_every_truncation_keeps_what_is_whole(tmp_path, legacy):
    path = tmp_path / "f"
    torch.save(RICH, path, _use_new_zipfile_serialization=not legacy)
    data = path.read_bytes()
    kept_before = 0
    for length in range(0, len(data), 7 if legacy else 3):
        path.write_bytes(data[:length])
        try:
            found = salvage(str(path))
        except HoldtrueError as error:
            check_findings(error)
            continue
        same(found.view.tensors, RICH)
        named = len(found.view.tensors) + len(found.lost)
        assert named in (0, 7)
        assert len(found.view.tensors) >= kept_before  # more bytes never keep less
        kept_before = len(found.view.tensors)
        assert all(lost.missing > 0 for lost in found.lost)
    path.write_bytes(data)
    whole = salvage(str(path))
    assert (len(whole.view.tensors), whole.lost, whole.unnamed) == (7, (), {})
    assert kept_before >= 6


def test_the_tree_has_gaps_and_no_wrong_numbers(tmp_path):
    path = tmp_path / "f"
    torch.save(RICH, path)
    bad = bytearray(path.read_bytes())
    for key in ("data/1", "data/5", "data/6"):
        offset, size = data_offset(path, key)
        bad[offset + size // 2] ^= 1
    path.write_bytes(bytes(bad))
    found = salvage(str(path))
    assert {lost.path for lost in found.lost} == {"model/w1", "more/0", "pair/0"}
    assert all(lost.missing == 0 and "CRC" in lost.why for lost in found.lost)
    assert list(found.view.tree["model"]) == ["w0", "w2", "w3", "w4"]
    assert found.view.tree["epoch"] == 3
    assert found.view.tree["more"][0].layout == "meta"
    assert found.view.tree["more"][1] == "text"
    assert found.view.tree["pair"][0].pieces == ()
    assert found.view.tree["pair"][1] == 1
    assert set(found.view.tensors) == {"model/w0", "model/w2", "model/w3", "model/w4"}


@pytest.mark.parametrize("legacy", [False, True])
def test_the_bytes_missing_are_counted(tmp_path, legacy):
    path = tmp_path / "f"
    torch.save(STATE, path, _use_new_zipfile_serialization=not legacy)
    data = path.read_bytes()
    # Legacy files order their storages by address, so which comes last is known only now.
    places = sorted((data.index(t.numpy().tobytes()), name) for name, t in STATE.items())
    at, cut = places[-2]
    path.write_bytes(data[: at + 100])
    found = salvage(str(path))
    missing = {lost.path: lost.missing for lost in found.lost}
    last = places[-1][1]
    assert missing == {cut: STATE[cut].nbytes - 100, last: STATE[last].nbytes}


def test_without_the_directory_at_all(tmp_path):
    path = tmp_path / "f"
    torch.save(STATE, path)
    data = path.read_bytes()
    path.write_bytes(data[: data.find(b"PK\x01\x02")])
    with pytest.raises(DamageError):
        read(str(path))
    found = salvage(str(path))
    assert len(found.view.tensors) == 5
    same(found.view.tensors, STATE)
    assert any(f.code == "zip-no-directory" for f in found.view.findings)


def test_a_damaged_pickle_tail_keeps_the_head_and_storages_without_names(tmp_path):
    path = tmp_path / "f"
    torch.save(STATE, path)
    bad = bytearray(path.read_bytes())
    offset, size = data_offset(path, "data.pkl")
    bad[offset + size // 2 : offset + size] = b"\xff" * (size - size // 2)
    path.write_bytes(bytes(bad))
    found = salvage(str(path))
    assert found.view.tensors
    assert found.unnamed
    same(found.view.tensors, STATE)
    assert len(found.view.tensors) + len(found.unnamed) == 5
    held = {bytes(t.numpy().tobytes()) for t in STATE.values()}
    assert all(read_tensor(t).tobytes() in held for t in found.unnamed.values())


def test_a_lost_pickle_leaves_storages_without_names(tmp_path):
    path = tmp_path / "f"
    torch.save(STATE, path)
    offset, _ = data_offset(path, "data.pkl")
    data = path.read_bytes()
    path.write_bytes(data[:offset] + data[offset:].replace(b"data.pkl", b"gone.xyz"))
    bad = bytearray(path.read_bytes())
    bad[offset : offset + 50] = bytes(50)
    path.write_bytes(bytes(bad))
    found = salvage(str(path))
    assert len(found.unnamed) == 5
    held = {t.numpy().tobytes() for t in STATE.values()}
    assert {read_tensor(t).tobytes() for t in found.unnamed.values()} == held


def test_shared_storages_and_components(tmp_path):
    path = tmp_path / "f"
    base = torch.randn(40)
    torch.save({"a": base[:20], "b": base[20:], "s": torch.eye(9).to_sparse()}, path)
    bad = bytearray(path.read_bytes())
    offset, _ = data_offset(path, "data/0")
    bad[offset] ^= 1
    path.write_bytes(bytes(bad))
    found = salvage(str(path))
    assert {lost.path for lost in found.lost} == {"a", "b"}
    assert list(found.view.tensors) == ["s"]


def test_safetensors_cut_anywhere(tmp_path):
    path = tmp_path / "f"
    save_file(STATE, path)
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    sizes = json.loads(data[8:header])
    for length in range(len(data)):
        path.write_bytes(data[:length])
        wanted = {k for k, v in sizes.items() if header + v["data_offsets"][1] <= length}
        if not wanted:
            with pytest.raises(HoldtrueError):
                salvage(str(path))
            continue
        found = salvage(str(path))
        assert set(found.view.tensors) == wanted
        same(found.view.tensors, STATE)
        for lost in found.lost:
            begin, end = (header + n for n in sizes[lost.path]["data_offsets"])
            assert lost.missing == end - max(begin, length)


def test_safetensors_with_a_damaged_spot_in_its_header(tmp_path):
    path = tmp_path / "f"
    data = save(STATE, {"note": "x"})
    at = data.index(b'"w2"')
    for spot in (at - 1, at, at + 6, at + 15):
        bad = bytearray(data)
        bad[spot] = 0
        path.write_bytes(bytes(bad))
        with pytest.raises(DamageError):
            read(str(path))
        found = salvage(str(path))
        assert {"w0", "w1", "w3", "w4"} <= set(found.view.tensors)
        same({k: v for k, v in found.view.tensors.items() if k in STATE}, STATE)
        assert found.view.findings


def test_npz_members_one_by_one(tmp_path):
    path = tmp_path / "f"
    with path.open("wb") as file:
        np.savez(file, **{k: v.numpy() for k, v in STATE.items()})
    data = path.read_bytes()
    path.write_bytes(data[: data.find(b"PK\x01\x02") - 10])
    found = salvage(str(path))
    assert list(found.view.tensors) == ["w0", "w1", "w2", "w3"]
    same(found.view.tensors, STATE)


def test_shards(tmp_path):
    weight_map = {}
    for name, tensor in STATE.items():
        save_file({name: tensor}, tmp_path / f"{name}.safetensors")
        weight_map[name] = f"{name}.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "w1.safetensors").unlink()
    found = salvage(str(tmp_path))
    assert list(found.view.tensors) == ["w0", "w2", "w3", "w4"]
    assert [f.code for f in found.view.findings] == ["shard-missing"]


def test_nothing_left(tmp_path):
    path = tmp_path / "f"
    torch.save({"w": torch.zeros(2000)}, path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DamageError) as error:
        salvage(str(path))
    assert any(f.code == "nothing-whole" for f in error.value.report.findings)


def write(path, kind):
    if kind == "safetensors":
        save_file({"a": torch.ones(3), "b": torch.zeros(2, 2)}, path)
    elif kind == "npz":
        with path.open("wb") as file:
            np.savez(file, a=np.ones(3), b=np.zeros(2))
    else:
        torch.save(
            {"a": torch.ones(3), "b": [torch.zeros(2, 2)]},
            path,
            _use_new_zipfile_serialization=kind == "torch-zip",
        )


def everything(path):
    found = salvage(path)
    tensors = [*found.view.tensors.values(), *found.unnamed.values()]
    return [read_tensor(t) for t in tensors if t.layout == "strided"]


@pytest.mark.parametrize("kind", ["torch-zip", "torch-legacy", "safetensors", "npz"])
@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_random_flips(tmp_path, kind, count):
    path = tmp_path / "f"
    write(path, kind)
    opened, refused = survives(path, flips(path.read_bytes(), count), everything)
    assert opened + refused == count
    assert opened > count // 5


@pytest.mark.parametrize("kind", ["torch-zip", "torch-legacy", "safetensors", "npz"])
def test_truncations_of_small_files(tmp_path, kind):
    path = tmp_path / "f"
    write(path, kind)
    opened, refused = survives(path, truncations(path.read_bytes()), everything)
    assert opened
    assert refused


@needs_corpus
@pytest.mark.parametrize(
    ("name", "kept", "lost"),
    [
        ("base.pt", 3, 0),
        ("bitflip_in_tensor.pt", 2, 1),
        ("trunc_50pct.pt", None, None),
        ("zip_local_name_differs.pt", 3, 0),
        ("zip_storage_short_16B.pt", None, None),
    ],
)
def test_damaged_corpus(name, kept, lost):
    base = read(str(CORPUS / "damaged/base.pt"))
    try:
        found = salvage(str(CORPUS / "damaged" / name))
    except DamageError:
        assert kept is None
        return
    if kept is not None:
        assert (len(found.view.tensors), len(found.lost)) == (kept, lost)
    for path, tensor in found.view.tensors.items():
        assert read_tensor(tensor).tobytes() == read_tensor(base.tensors[path]).tobytes()
