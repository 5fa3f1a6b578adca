"""The tar of before 0.1.10, TorchScript, exported programs, plain pickles; and their damage."""

import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from damage import check_findings, flips, survives, truncations
from same_as_torch import Compared, same, same_tensor

from holdtrue.errors import HoldtrueError, OpenError
from holdtrue.formats import (
    plain_pickle,
    pt2,
    torch_legacy,
    torch_tar,
    torch_zip,
    torchscript,
)
from holdtrue.formats.tensor_bytes import read_tensor
from holdtrue.formats.view import View
from holdtrue.limits import MIB


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 2)
        self.register_buffer("mean", torch.ones(2))
        self.register_buffer("hidden", torch.arange(2.0), persistent=False)
        self.tied = self.linear
        self.constant = torch.arange(2.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) * self.mean + self.hidden + self.constant + torch.tensor([1.0, 2.0])


def old_tar(path: Path) -> None:
    """As torch 0.1.9 wrote it: two storages, a view of one, three tensors."""

    class ById(pickle.Pickler):
        def persistent_id(self, value: Any) -> str | None:
            return str(value) if isinstance(value, int) and value >= 1000 else None

    storages, tensors, tree = io.BytesIO(), io.BytesIO(), io.BytesIO()
    pickle.dump(2, storages, 2)
    for key, cls, data in (
        (1000, torch.FloatStorage, np.arange(6, dtype="<f4")),
        (1001, torch.LongStorage, np.arange(4, dtype="<i8")),
    ):
        pickle.dump((key, "cpu", cls), storages, 2)
        storages.write(struct.pack("<q", len(data)) + data.tobytes())
    pickle.dump([(1002, 1000, 2, 3)], storages, 2)
    pickle.dump(3, tensors, 2)
    for key, storage, cls, size, stride, offset in (
        (1010, 1000, torch.FloatTensor, (2, 3), (3, 1), 0),
        (1011, 1001, torch.LongTensor, (2,), (2,), 1),
        (1012, 1002, torch.FloatTensor, (3,), (1,), 0),
    ):
        pickle.dump((key, storage, cls), tensors, 2)
        tensors.write(struct.pack("<i4x", len(size)))
        tensors.write(struct.pack(f"<{len(size) * 2 + 1}q", *size, *stride, offset))
    ById(tree, 2).dump(OrderedDict(weight=1010, steps=1011, view=1012, epoch=3))
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in (
            ("sys_info", pickle.dumps({"protocol_version": 1000, "little_endian": True}, 2)),
            ("pickle", tree.getvalue()), ("tensors", tensors.getvalue()),
            ("storages", storages.getvalue()),
        ):  # fmt: skip
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def test_tar(tmp_path: Path) -> None:
    old_tar(tmp_path / "old.pt")
    view = torch_tar.read(str(tmp_path / "old.pt"))
    loaded = torch.load(tmp_path / "old.pt", weights_only=False)
    # torch makes a storage of its own of a view; here it is an offset into the first.
    ours, theirs = view.tree.pop("view"), loaded.pop("view")
    assert read_tensor(ours).tobytes() == theirs.numpy().tobytes()
    assert ours.pieces[0].storage == view.tree["weight"].pieces[0].storage
    same(view.tree, loaded, Compared())
    assert view.about["system"]["protocol_version"] == 1000
    assert view.about["would_run"] == []


def test_torchscript(tmp_path: Path) -> None:
    model = torch.jit.script(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)))
    torch.jit.save(model, tmp_path / "s.pt", {"note.txt": "hello"})
    view = torchscript.read(str(tmp_path / "s.pt"))
    names = view.about["state_dict"]
    expected = model.state_dict()
    assert set(names) == set(expected)
    for name, tensor in expected.items():
        found = view.tensors[names[name]]
        assert read_tensor(found).tobytes() == tensor.numpy().tobytes()
    assert view.about["extra_files"] == ["note.txt"]
    assert view.about["would_run"] == []
    assert view.tree["module"].class_name.startswith("__torch__.")


def test_frozen_torchscript_keeps_its_constants(tmp_path: Path) -> None:
    frozen = torch.jit.freeze(torch.jit.script(Net().eval()))
    torch.jit.save(frozen, tmp_path / "s.pt")
    view = torchscript.read(str(tmp_path / "s.pt"))
    shapes = sorted(t.shape for n, t in view.tensors.items() if n.startswith("constants/"))
    assert (2, 3) in shapes


def test_script_attributes_of_each_kind(tmp_path: Path) -> None:
    class Kinds(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ints = torch.jit.Attribute([1, 2], list[int])
            self.table = torch.jit.Attribute({"a": torch.ones(2)}, dict[str, torch.Tensor])
            self.floats = torch.jit.Attribute([1.5], list[float])
            self.plain = torch.zeros(3)

        def forward(self) -> torch.Tensor:
            return self.plain

    torch.jit.save(torch.jit.script(Kinds()), tmp_path / "s.pt")
    view = torchscript.read(str(tmp_path / "s.pt"))
    state = view.tree["module"].state
    assert state["ints"] == [1, 2]
    assert state["floats"] == [1.5]
    assert state["table"]["a"].shape == (2,)
    assert view.about["state_dict"] == {}
    assert view.about["would_run"] == []


def exported() -> torch.export.ExportedProgram:
    return torch.export.export(Net(), (torch.randn(1, 3),))


def test_what_lightning_says(tmp_path: Path) -> None:
    torch.save(
        {
            "pytorch-lightning_version": "2.4.0", "epoch": 3, "global_step": 120,
            "state_dict": {"w": torch.ones(1)}, "callbacks": {"EarlyStopping": {}}, "loops": {},
            "optimizer_states": [{}], "lr_schedulers": [], "hyper_parameters": {"lr": 0.1},
        },
        tmp_path / "x.ckpt",
    )  # fmt: skip
    about = torch_zip.read(str(tmp_path / "x.ckpt")).about
    assert about["kind"] == "lightning"
    assert about["lightning"]["version"] == "2.4.0"
    assert about["lightning"]["global_step"] == 120
    assert about["lightning"]["hyper_parameters"] == ["lr"]
    assert about["lightning"]["weights_only"] is False


def test_records_and_bytes_that_torch_does_not_write(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1)}, tmp_path / "x.pt")
    with (
        zipfile.ZipFile(tmp_path / "x.pt") as source,
        zipfile.ZipFile(tmp_path / "y.pt", "w") as made,
    ):
        for name in source.namelist():
            more = b"cos\nsystem\n." if name.endswith("data.pkl") else b""
            made.writestr(name, source.read(name) + more)
        made.writestr("x/config.p", b"cos\nsystem\nU\x04true\x85R.")
    view = torch_zip.read(str(tmp_path / "y.pt"))
    assert sorted(f.code for f in view.findings) == ["trailing-bytes", "unexpected-record"]
    assert view.about["would_run"] == []


def test_exported_program(tmp_path: Path) -> None:
    program = exported()
    torch.export.save(program, tmp_path / "e.pt2")
    view = pt2.read(str(tmp_path / "e.pt2"))
    seen = Compared()
    assert set(view.tree["state_dict"]) == set(program.state_dict)
    for name, tensor in program.state_dict.items():
        ours = view.tree["state_dict"][name]
        assert ours.parameter == isinstance(tensor, torch.nn.Parameter)
        same_tensor(ours, tensor, seen, name)
    for name, tensor in program.constants.items():
        found = view.tree["constants"][name]
        assert read_tensor(found).tobytes() == tensor.numpy().tobytes()
    assert view.about["torch_version"] == torch.__version__
    assert {"kind": "parameter", "parameter_name": "linear.weight"}.items() <= next(
        spec for spec in view.about["inputs"] if spec["kind"] == "parameter"
    ).items()
    assert view.about["would_run"] == []


def test_exported_program_of_before_2_7(tmp_path: Path) -> None:
    """The layout of torch 2.1 to 2.6: torch files inside a plain zip."""
    program = exported()
    with zipfile.ZipFile(tmp_path / "e.pt2", "w") as made:
        made.writestr("version", "5.1")
        made.writestr(
            "serialized_exported_program.json",
            json.dumps(
                {
                    "graph_module": {"signature": {"input_specs": []}},
                    "opset_version": {"aten": 10},
                    "schema_version": {"major": 5, "minor": 1},
                }
            ),
        )
        for part, value in (
            ("state_dict", program.state_dict),
            ("constants", program.constants),
            ("example_inputs", program.example_inputs),
        ):
            data = io.BytesIO()
            torch.save(value, data)
            made.writestr(f"serialized_{part}.pt", data.getvalue())
    view = pt2.read(str(tmp_path / "e.pt2"))
    seen = Compared()
    same({**view.tree["state_dict"]}, {**program.state_dict}, seen)
    same(view.tree["constants"], program.constants, Compared())
    keys = {t.pieces[0].storage.key for t in view.tensors.values()}
    assert len(keys) == len(set(seen.storages)) + len(program.constants) + 1
    assert view.about["schema_version"] == {"major": 5, "minor": 1}


def test_exported_program_between(tmp_path: Path) -> None:
    """The layout of torch 2.7 and 2.8: `data/weights/model.pt`."""
    data = io.BytesIO()
    torch.save({"w": torch.arange(3.0)}, data)
    with zipfile.ZipFile(tmp_path / "e.pt2", "w") as made:
        made.writestr("e/archive_format", "pt2")
        made.writestr("e/models/model.json", "{}")
        made.writestr("e/data/weights/model.pt", data.getvalue())
    view = pt2.read(str(tmp_path / "e.pt2"))
    assert read_tensor(view.tensors["state_dict/w"]).tobytes() == b"".join(
        struct.pack("<f", i) for i in range(3)
    )


def test_exported_program_that_would_run_code(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1)}, tmp_path / "w.pt")
    with (
        zipfile.ZipFile(tmp_path / "w.pt") as source,
        zipfile.ZipFile(tmp_path / "i.pt", "w") as inner,
    ):
        for name in source.namelist():
            bad = b"cos\nsystem\nU\x04true\x85R."
            inner.writestr(name, bad if name.endswith("data.pkl") else source.read(name))
    with zipfile.ZipFile(tmp_path / "e.pt2", "w") as made:
        made.writestr("e/archive_format", "pt2")
        made.writestr("e/models/model.json", "{}")
        made.writestr("e/data/weights/model.pt", (tmp_path / "i.pt").read_bytes())
    listed = pt2.read(str(tmp_path / "e.pt2")).about["would_run"]
    assert [(op.name, op.kind) for op in listed] == [("os.system", "import"), ("os.system", "call")]


@pytest.mark.parametrize("meta", [
    {"dtype": 99}, {"sizes": [{"as_int": -1}]}, {"strides": []}, {"sizes": [{"as_int": 10**9}]},
    {"storage_offset": {"as_int": 100}}, {"sizes": "abc"}, {"layout": 1}, {"dtype": []},
])  # fmt: skip
def test_exported_weights_that_make_no_sense(tmp_path: Path, meta: dict[str, Any]) -> None:
    good = {
        "dtype": 7,
        "sizes": [{"as_int": 2}],
        "strides": [{"as_int": 1}],
        "storage_offset": {"as_int": 0},
        "layout": 7,
        "requires_grad": False,
    }
    config = {"config": {"w": {"path_name": "weight_0", "tensor_meta": good | meta}}}
    with zipfile.ZipFile(tmp_path / "e.pt2", "w") as made:
        made.writestr("e/archive_format", "pt2")
        made.writestr("e/models/model.json", "{}")
        made.writestr("e/data/weights/model_weights_config.json", json.dumps(config))
        made.writestr("e/data/weights/weight_0", bytes(8))
    view = pt2.read(str(tmp_path / "e.pt2"))
    assert view.tensors == {}
    assert [f.code for f in view.findings] == ["pt2-tensor"]


def test_large_arrays_of_a_plain_pickle_stay_in_the_file(tmp_path: Path) -> None:
    arrays = {"a": np.arange(MIB, dtype="<f8"), "b": np.ones((3, MIB), ">f4", order="F")}
    for protocol in (3, 4, 5):
        path = tmp_path / "x.pkl"
        path.write_bytes(pickle.dumps(arrays | {"raw": bytes(2 * MIB)}, protocol))
        view = plain_pickle.read(str(path))
        for name, array in arrays.items():
            tensor = view.tensors[name]
            assert tensor.pieces[0].storage.inline is None
            little = array.astype(array.dtype.newbyteorder("<"))
            assert read_tensor(tensor).tobytes() == little.tobytes()
        assert view.tensors["raw"].class_name == "builtins.bytes"


def test_tensors_of_a_plain_pickle_share_their_storage(tmp_path: Path) -> None:
    for size in (10, MIB):
        base = torch.randn(size)
        path = tmp_path / "x.pkl"
        path.write_bytes(pickle.dumps([base, base.view(2, -1), base[5:]], 4))
        view = plain_pickle.read(str(path))
        same(view.tree[:1], pickle.loads(path.read_bytes())[:1], Compared())
        assert view.about["would_run"] == []
        assert view.tensors["2"].pieces[0].offset == 5


def small(kind: str, path: Path) -> Callable[[str], object]:
    """A small file of one format, and its reader."""
    value = {"w": torch.arange(4.0), "n": [1, "a"], "b": torch.ones(2, dtype=torch.bfloat16)}
    if kind == "zip":
        torch.save(value, path)
        return torch_zip.read
    if kind == "legacy":
        torch.save(value, path, _use_new_zipfile_serialization=False)
        return torch_legacy.read
    if kind == "plain":
        path.write_bytes(pickle.dumps([torch.ones(2), np.arange(3), {1: "a"}], 4))
        return plain_pickle.read
    if kind == "tar":
        old_tar(path)
        return torch_tar.read
    if kind == "torchscript":
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
        return torchscript.read
    torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.ones(2),)), path)
    return pt2.read


def thorough(read: Callable[[str], object]) -> Callable[[str], None]:
    """Read the file and every tensor in it."""

    def all_of_it(path: str) -> None:
        view = read(path)
        assert isinstance(view, View)
        for tensor in view.tensors.values():
            if tensor.pieces:
                try:
                    read_tensor(tensor)
                except HoldtrueError as error:
                    check_findings(error)

    return all_of_it


KINDS = ("zip", "legacy", "plain", "tar", "torchscript", "pt2")


@pytest.mark.parametrize("kind", KINDS)
def test_truncation(tmp_path: Path, figure, kind: str) -> None:
    """At every byte, or at 3,000 places spread over a larger file."""
    read = small(kind, tmp_path / "x")
    data = (tmp_path / "x").read_bytes()
    truncate(tmp_path / "cut", data, max(1, len(data) // 3000), read, figure, kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_truncation_at_every_byte(tmp_path: Path, figure, kind: str) -> None:
    read = small(kind, tmp_path / "x")
    truncate(tmp_path / "cut", (tmp_path / "x").read_bytes(), 1, read, figure, kind)


def truncate(path: Path, data: bytes, step: int, read, figure, kind: str) -> None:
    lengths = range(0, len(data), step)
    opened, refused = survives(path, (data[:length] for length in lengths), thorough(read))
    figure(f"truncations of a {kind} file opened", opened)
    figure(f"truncations of a {kind} file refused", refused)
    assert opened + refused == len(lengths)
    assert refused > len(lengths) * 0.3


@pytest.mark.parametrize("kind", KINDS)
def test_flipped_bytes(tmp_path: Path, figure, kind: str) -> None:
    read = small(kind, tmp_path / "x")
    data = (tmp_path / "x").read_bytes()
    opened, refused = survives(tmp_path / "bad", flips(data, 500), thorough(read))
    figure(f"flips in a {kind} file", opened + refused)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_flipped_bytes_at_length(tmp_path: Path, figure, kind: str) -> None:
    read = small(kind, tmp_path / "x")
    data = (tmp_path / "x").read_bytes()
    opened, refused = survives(tmp_path / "bad", flips(data, 10_000, seed=1), thorough(read))
    figure(f"flips in a {kind} file", opened + refused)


@pytest.mark.parametrize("kind", ["zip", "legacy", "plain"])
def test_salvage_of_every_truncation(tmp_path: Path, kind: str) -> None:
    small(kind, tmp_path / "x")
    salvage = {"zip": torch_zip, "legacy": torch_legacy, "plain": plain_pickle}[kind].salvage
    data = (tmp_path / "x").read_bytes()
    most = 0
    for part in truncations(data):
        (tmp_path / "cut").write_bytes(part)
        try:
            view = salvage(str(tmp_path / "cut"))
        except HoldtrueError as error:
            check_findings(error)
            continue
        assert view.findings
        most = max(most, len(view.tensors))
    assert most == len(small_tensors(kind))


def small_tensors(kind: str) -> list[str]:
    return ["0", "1"] if kind == "plain" else ["w", "b"]


@pytest.mark.parametrize("read", [torch_zip.read, torch_legacy.read, torch_tar.read,
                                  torchscript.read, pt2.read, plain_pickle.read])  # fmt: skip
@pytest.mark.parametrize("kind", ["missing", "directory", "fifo", "empty"])
def test_what_is_no_file(tmp_path: Path, read: Callable[[str], View], kind: str) -> None:
    path = tmp_path / "x"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        import os

        os.mkfifo(path)
    elif kind == "empty":
        path.touch()
    with pytest.raises(HoldtrueError) as caught:
        read(str(path))
    assert caught.value.report.findings
    assert kind == "empty" or isinstance(caught.value, OpenError)
