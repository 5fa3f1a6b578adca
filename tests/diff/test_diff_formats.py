"""One state in every format, each against each; and what only some formats hold."""

import argparse
import copy
import itertools
import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import nn

import holdtrue
from holdtrue.doctor.name_mapping import PrefixMapping
from holdtrue.errors import HoldtrueError

CORPUS = Path(
    os.environ.get("HOLDTRUE_CORPUS", Path(__file__).resolve().parents[3] / "shared/corpus")
)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, 7)
        self.norm = nn.BatchNorm1d(7)
        self.tied = nn.Linear(5, 7, bias=False)
        self.tied.weight = self.first.weight
        self.small = nn.Linear(7, 3).to(torch.float16)
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.register_buffer("empty", torch.zeros(0, 3))
        self.register_buffer("scale", torch.tensor(2.5, dtype=torch.float64))
        self.register_buffer("hidden", torch.arange(3.0), persistent=False)


def shards(place, state):
    place.mkdir()
    names = sorted(state)
    weight_map = {}
    for index, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-0000{index}-of-00002.safetensors"
        save_file({name: state[name].clone() for name in part}, place / file)
        weight_map |= dict.fromkeys(part, file)
    body = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (place / "model.safetensors.index.json").write_text(json.dumps(body))


def write_all(place, model):
    """The formats' names, and where each stands."""
    place.mkdir(exist_ok=True)
    state = model.state_dict()
    torch.save(state, place / "zip")
    torch.save(state, place / "legacy", _use_new_zipfile_serialization=False)
    torch.save(model, place / "whole")
    save_file({name: tensor.clone() for name, tensor in state.items()}, place / "safetensors")
    shards(place / "shards", state)
    dcp.save(state, checkpoint_id=str(place / "dcp"), no_dist=True)
    np.savez(place / "npz", **{name: tensor.numpy() for name, tensor in state.items()})
    np.savez_compressed(place / "packed", **{n: t.numpy() for n, t in state.items()})
    holdtrue.save(place / "holdtrue", model=model)
    torch.save({"state_dict": state}, place / "nested")
    return {path.name.removesuffix(".npz"): path for path in sorted(place.iterdir())}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    torch.manual_seed(0)
    model = Net()
    model.norm(torch.randn(4, 7))
    return model, write_all(tmp_path_factory.mktemp("formats") / "a", model)


@pytest.mark.filterwarnings("ignore")
def test_one_state_in_every_pair_of_formats_is_equal(written, figure):
    _, paths = written
    assert len(paths) == 10
    for a, b in itertools.product(paths, repeat=2):
        found = holdtrue.diff(paths[a], paths[b])
        assert found.equal, f"{a} against {b}:\n{found}"
        assert found.equal_tensors >= 13
        figure("diff: pairs of formats equal")


@pytest.mark.filterwarnings("ignore")
def test_one_changed_number_is_found_in_every_pair_of_formats(written, tmp_path, figure):
    model, paths = written
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.small.bias[1] = model.small.bias[1] + 1
    apart = float((other.small.bias.double() - model.small.bias.double()).abs().max())
    others = write_all(tmp_path / "b", other)
    for a, b in itertools.product(paths, others):
        found = holdtrue.diff(paths[a], others[b])
        (row,) = found.changed
        assert row.name.endswith("small.bias")
        assert (row.numbers.differing, row.numbers.max_abs) == (1, apart)
        assert (found.added, found.removed, found.renamed, found.values) == ((), (), (), ()), str(
            found
        )
        assert not found.equal
        figure("diff: pairs of formats with one change found")


def test_non_persistent_buffers_are_a_note(written):
    _, paths = written
    found = holdtrue.diff(paths["holdtrue"], paths["zip"])
    assert any("non-persistent buffer, model/hidden" in note for note in found.notes)
    whole = holdtrue.diff(paths["holdtrue"], paths["whole"])
    assert whole.equal_tensors == found.equal_tensors + 1


def test_requires_grad_and_strides_are_notes(tmp_path):
    a = torch.arange(6.0).reshape(2, 3)
    torch.save({"t": a}, tmp_path / "a.pt")
    torch.save({"t": a.t().contiguous().t().requires_grad_()}, tmp_path / "b.pt")
    found = holdtrue.diff(tmp_path / "a.pt", tmp_path / "b.pt")
    assert found.equal
    assert any(note.startswith("stride differs") for note in found.notes)
    assert any(note.startswith("requires_grad differs") for note in found.notes)


def test_a_whole_model_is_compared_with_its_attributes(tmp_path):
    model = Net()
    torch.save(model, tmp_path / "a")
    model.norm.eps = 1e-3
    model.eval()
    torch.save(model, tmp_path / "b")
    found = holdtrue.diff(tmp_path / "a", tmp_path / "b")
    assert not found.changed
    rows = {row.path: (row.a, row.b) for row in found.values}
    assert rows["norm/eps"] == ("1e-05", "0.001")
    assert rows["norm/training"] == ("True", "False")


def test_two_of_holdtrue_by_parameter_name(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    first = torch.optim.Adam(model.parameters(), lr=0.1)
    second = torch.optim.Adam(list(model.parameters())[::-1], lr=0.2)
    for optimizer in (first, second):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    random.seed(1)
    holdtrue.save(tmp_path / "a", model=model, optimizer=first)
    random.seed(2)
    holdtrue.save(tmp_path / "b", model=model, optimizer=second)
    found = holdtrue.diff(tmp_path / "a", tmp_path / "b")
    rows = {row.path: row for row in found.values}
    assert (rows["optimizer/groups/0/settings/lr"].a, rows["optimizer/groups/0/settings/lr"].b) == (
        "0.1",
        "0.2",
    )
    assert rows["rng/python/1"].count > 500
    assert not found.added
    assert not found.removed
    assert not found.renamed


def test_an_optimizer_of_holdtrue_equals_that_of_torch(tmp_path):
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    schedule.step()
    holdtrue.save(tmp_path / "a", model=model, optimizer=optimizer, schedule=schedule, epoch=4)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(),
             "schedule": schedule.state_dict(), "epoch": 4}  # fmt: skip
    torch.save(state, tmp_path / "b")
    found = holdtrue.diff(tmp_path / "a", tmp_path / "b")
    assert found.equal, str(found)
    assert found.equal_values > 20
    state["optimizer"]["param_groups"][0]["lr"] = 0.5
    torch.save(state, tmp_path / "b")
    (row,) = holdtrue.diff(tmp_path / "a", tmp_path / "b").values
    assert row.path == "optimizer/param_groups/0/lr"


class Counting(nn.Module):
    """Extra state, and an entry that `_save_to_state_dict` adds."""

    def __init__(self, seen):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.seen = seen

    def get_extra_state(self):
        return {"seen": self.seen}

    def set_extra_state(self, state):
        self.seen = state["seen"]

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "table"] = torch.arange(self.seen)


def test_what_modules_add_to_their_state_dict(tmp_path):
    model = nn.Sequential(Counting(3), nn.Linear(2, 2))
    holdtrue.save(tmp_path / "a", model=model)
    torch.save(model.state_dict(), tmp_path / "b")
    found = holdtrue.diff(tmp_path / "a", tmp_path / "b")
    assert found.equal, str(found)
    assert found.equal_tensors == 4
    model[0].seen = 4
    torch.save(model.state_dict(), tmp_path / "b")
    found = holdtrue.diff(tmp_path / "a", tmp_path / "b")
    assert [(row.name, row.what) for row in found.changed] == [("model/0.table", ("shape",))]
    assert [(row.path, row.a, row.b) for row in found.values] == [("0._extra_state/seen", "3", "4")]


def test_a_module_without_tensors(tmp_path):
    holdtrue.save(tmp_path / "a", model=nn.ReLU(), epoch=1)
    holdtrue.save(tmp_path / "b", model=nn.ReLU(), epoch=1)
    assert holdtrue.diff(tmp_path / "a", tmp_path / "b").equal


def test_checkpoints_of_a_run(tmp_path):
    model = nn.Linear(2, 1)
    model.weight.data.zero_()
    keep = holdtrue.Keep(last=5, best=1, by="loss")
    with holdtrue.Run(tmp_path / "run", keep=keep, model=model, note="x") as run:
        for step, loss in ((1, 0.5), (2, 0.1), (3, 0.9)):
            model.weight.data += 1
            run.save(step, metrics={"loss": loss}, wait=True)
    found = holdtrue.diff(tmp_path / "run@best", tmp_path / "run")
    assert [row.name for row in found.changed] == ["model/weight"]
    assert found.changed[0].numbers.max_abs == 1.0
    assert "step 2 → 3" in found.notes
    assert "metric loss 0.1 → 0.9" in found.notes
    assert holdtrue.diff(tmp_path / "run@3", tmp_path / "run").equal


def test_torchscript_against_its_state_dict(tmp_path):
    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(2, 3), nn.ReLU())

        def forward(self, x):
            return self.inner(x)

    model = Small()
    torch.jit.save(torch.jit.script(model), tmp_path / "a")
    torch.save(model.state_dict(), tmp_path / "b")
    found = holdtrue.diff(tmp_path / "a", tmp_path / "b")
    assert found.equal, str(found)
    assert found.equal_tensors == 2


@pytest.mark.parametrize(
    ("prefix", "renames"),
    [("module.", True), ("_orig_mod.", True), ("model/", False), ("state_dict/model.", True),
     ("state_dict/", False), ("a/b/", False)],
)  # fmt: skip
def test_one_prefix_maps_every_name(tmp_path, prefix, renames):
    state = dict(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).state_dict())
    dicts, _, start = prefix.rpartition("/")
    wrapped = {start + name: tensor.clone() for name, tensor in state.items()}
    wrapped[f"{start}1.bias"] += 1
    for name in reversed(dicts.split("/") if dicts else []):
        wrapped = {name: wrapped}
    torch.save({**state, "epoch": 3}, tmp_path / "a")
    torch.save({**wrapped, "epoch": 3}, tmp_path / "b")
    for a, b, old, new in (("a", "b", "", prefix), ("b", "a", prefix, "")):
        found = holdtrue.diff(tmp_path / a, tmp_path / b)
        assert found.mapping == PrefixMapping(a=old, b=new, count=4)
        assert found.mapping.renames == renames
        assert str(found.mapping) in str(found)
        assert [row.name for row in found.changed] == [f"{old}1.bias"]
        assert found.equal_tensors == 3
        assert (found.added, found.removed, found.renamed, found.values) == ((), (), (), ()), str(
            found
        )


def test_names_that_differ_are_a_difference_though_every_tensor_is_equal(tmp_path):
    state = nn.Linear(2, 2).state_dict()
    torch.save(dict(state), tmp_path / "a")
    torch.save({f"module.{name}": t for name, t in state.items()}, tmp_path / "b")
    found = holdtrue.diff(tmp_path / "a", tmp_path / "b")
    assert not found.equal
    assert found.equal_tensors == 2


def test_a_prefix_never_makes_two_names_one(tmp_path):
    a = {"module.w": torch.ones(2), "module.b": torch.ones(3), "w": torch.zeros(2)}
    torch.save(a, tmp_path / "a")
    torch.save({"w": torch.ones(2), "b": torch.ones(3)}, tmp_path / "b")
    found = holdtrue.diff(tmp_path / "a", tmp_path / "b")
    assert [row.name for row in found.changed] == ["w"]
    told = {row.name for row in found.removed} | {n for row in found.renamed for n in row.a}
    told |= {n for n in a if found.mapping and n == "module.b"}
    assert "module.w" in told


def test_renamed_tensors_are_found_by_content(tmp_path):
    torch.manual_seed(0)
    a = {"x": torch.randn(3), "y": torch.randn(3), "z": torch.randn(2, 2), "same": torch.ones(1)}
    b = {"p": a["y"].clone(), "q": a["x"].clone(), "r": a["z"].reshape(4), "same": torch.ones(1)}
    torch.save(a, tmp_path / "a")
    save_file(b, tmp_path / "b")
    found = holdtrue.diff(tmp_path / "a", tmp_path / "b")
    assert {(row.a, row.b) for row in found.renamed} == {(("x",), ("q",)), (("y",), ("p",))}
    assert not any(row.ambiguous for row in found.renamed)
    assert [row.name for row in found.removed] == ["z"]  # another shape is no rename
    assert [row.name for row in found.added] == ["r"]
    assert not found.equal


def test_ambiguous_renames_say_so(tmp_path):
    torch.save({"x": torch.zeros(3), "y": torch.zeros(3)}, tmp_path / "a")
    torch.save({"p": torch.zeros(3), "q": torch.zeros(3)}, tmp_path / "b")
    found = holdtrue.diff(tmp_path / "a", tmp_path / "b")
    (row,) = found.renamed
    assert row.ambiguous
    assert (set(row.a), set(row.b)) == ({"x", "y"}, {"p", "q"})
    assert "ambiguous" in str(found)


def test_same_bytes_of_another_dtype_are_no_rename(tmp_path):
    torch.save({"x": torch.tensor([1], dtype=torch.int32)}, tmp_path / "a")
    torch.save({"p.q": torch.tensor([1], dtype=torch.int32).view(torch.float32)}, tmp_path / "b")
    found = holdtrue.diff(tmp_path / "a", tmp_path / "b")
    assert not found.renamed
    assert len(found.added) == len(found.removed) == 1


@pytest.mark.skipif(not CORPUS.is_dir(), reason=f"no corpus at {CORPUS}")
def test_published_files_equal_themselves_and_differ_from_others(figure):
    before = None
    for path in sorted(p for p in (CORPUS / "weights").rglob("*") if p.is_file()):
        try:
            found = holdtrue.diff(path, path)
        except HoldtrueError:
            continue  # pointers and the like, which other tests name
        assert found.equal, path
        assert str(found)
        figure("diff: published files against themselves")
        if before is not None:
            forth, back = holdtrue.diff(before, path), holdtrue.diff(path, before)
            assert forth.equal == back.equal
            figure("diff: published files against one another")
        before = path


def test_a_converted_file_is_equal_to_its_source(tmp_path):
    """Objects of unknown classes too: what convert keeps of them, diff finds on both sides."""
    state = {"w": torch.arange(3.0), "args": argparse.Namespace(lr=0.1), "epoch": 3}
    torch.save(state, tmp_path / "theirs.pt")
    holdtrue.convert(tmp_path / "theirs.pt", tmp_path / "ours", to="holdtrue")
    assert holdtrue.diff(tmp_path / "theirs.pt", tmp_path / "ours").equal
