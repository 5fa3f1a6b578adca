"""What is no tensor: kept in a holdtrue checkpoint, listed everywhere else."""

import collections
import datetime
import pathlib
import sys
import types

import numpy as np
import pytest
import torch
from making import assert_same, numbers

import holdtrue
from holdtrue.doctor.keeping import Kept
from holdtrue.doctor.value_nodes import TreeEncoder
from holdtrue.errors import OpenError
from holdtrue.limits import override
from holdtrue.records.inert import InertKey, NamedReference, Record
from holdtrue.records.values import Decoding, decode


class Thing:
    def __init__(self, **state):
        self.__dict__.update(state)


class Ordered(dict):
    pass


def through(value, tmp_path, name="value"):
    """A value as torch.save and a conversion hand it on."""
    torch.save({name: value, "model": {"w": torch.ones(1)}}, tmp_path / "a.pt")
    made = holdtrue.convert(tmp_path / "a.pt", tmp_path / "c", overwrite=True)
    return holdtrue.open(tmp_path / "c")[name], made


@pytest.mark.parametrize(
    "value",
    [
        None, True, 3, -(1 << 70), 2.5, float("inf"), 1 + 2j, "text", "\ud800", b"bytes",
        bytearray(b"x"), [1, [2]], (1, (2,)), {1, 2}, frozenset({"a"}), {"a": 1, 2: "b"},
        {"$": 1}, {(1, "x"): 2}, collections.OrderedDict(a=1), collections.Counter("aab"),
        collections.deque([1, 2], 5), range(3), slice(1, None, 2), np.float32(2.5), np.dtype("<i4"),
        torch.float16, torch.Size([1, 2]), torch.device("cuda:1"),
        np.datetime64("2024-01-01"),
    ],
    ids=repr,
)  # fmt: skip
def test_plain_values_are_equal_and_of_the_same_type(value, tmp_path):
    found, made = through(value, tmp_path)
    assert found == value
    assert type(found) is type(value)
    assert not made.report.findings


def test_nan_and_defaultdict_and_paths(tmp_path):
    value = collections.defaultdict(list, a=[1])
    found, _ = through({"d": value, "nan": float("nan")}, tmp_path)
    assert found["d"] == value
    assert found["d"].default_factory is list
    assert found["nan"] != found["nan"]
    found, _ = through(pathlib.PurePosixPath("/usr/lib"), tmp_path)
    assert found == pathlib.PurePosixPath("/usr/lib")


def test_arrays_come_back_as_arrays(tmp_path):
    arrays = {
        "c": np.arange(6.0).reshape(2, 3),
        "f": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "dates": np.array(["2024-01-01", "2025-02-02"], "M8[D]"),
        "names": np.array(["a", "bc"]),
    }
    found, made = through({"arrays": arrays, "n": 1}, tmp_path)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found["arrays"][name], array)
        assert found["arrays"][name].dtype == array.dtype
    assert not made.report.findings


def test_objects_of_lost_classes_are_inert_records(tmp_path, monkeypatch):
    module = types.ModuleType("gone_package")
    module.Thing, module.Ordered = Thing, Ordered
    monkeypatch.setitem(sys.modules, "gone_package", module)
    monkeypatch.setattr(Thing, "__module__", "gone_package")
    monkeypatch.setattr(Ordered, "__module__", "gone_package")
    shared = Thing(a=1)
    value = {
        "thing": Thing(lr=0.1, inner=shared, weight=numbers("float32", 3)),
        "again": shared,
        "when": datetime.datetime(2024, 1, 2),
        "ordered": Ordered(x=1),
    }
    torch.save({"config": value, "model": {"w": torch.ones(2)}}, tmp_path / "a.pt")
    monkeypatch.delitem(sys.modules, "gone_package")
    made = holdtrue.convert(tmp_path / "a.pt", tmp_path / "c")
    assert not made.report.findings
    found = holdtrue.open(tmp_path / "c")["config"]
    assert isinstance(found["thing"], Record)
    assert found["thing"].class_name == "gone_package.Thing"
    assert found["thing"].state["lr"] == 0.1
    assert found["thing"].state["inner"] is found["again"]
    assert_same(found["thing"].state["weight"], value["thing"].weight)
    assert found["when"].class_name == "datetime.datetime"
    assert found["ordered"].items == [("x", 1)]
    assert "gone_package" not in sys.modules


def test_a_whole_model_keeps_its_modules_beside_its_weights(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU()).eval()
    model[0].train()
    torch.save({"net": model, "step": 4}, tmp_path / "a.pt")
    made = holdtrue.convert(tmp_path / "a.pt", tmp_path / "c")
    assert not made.report.findings
    ck = holdtrue.open(tmp_path / "c")
    assert ck.parts == ("net", "net_object", "step")
    assert ck.manifest.parts["net"].class_name == "torch.nn.modules.container.Sequential"
    assert ck.manifest.parts["net"].state["training"] == {"": False, "0": True}
    record = ck["net_object"]
    assert record.state["_modules"]["1"].class_name == "torch.nn.modules.activation.ReLU"
    size = sum(t.numel() * t.itemsize for t in model.state_dict().values())
    assert sum(f.nbytes - f.header for f in ck.manifest.files.values()) == size
    target = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU())
    assert ck.restore(net=target, allow=["class-changed"]).ok
    assert_same(target[0].weight, model[0].weight)
    assert [m.training for m in target.modules()] == [m.training for m in model.modules()]


def test_one_state_dict_under_two_names_is_stored_once(tmp_path):
    state = {"w": numbers("float32", 100, 100)}
    torch.save({"model": state, "ema": state, "n": 1}, tmp_path / "a.pt")
    made = holdtrue.convert(tmp_path / "a.pt", tmp_path / "c")
    ck = holdtrue.open(tmp_path / "c")
    assert set(ck.parts) == {"model", "ema", "n"}
    assert_same(ck["ema"]["w"], state["w"])
    assert made.nbytes < 45_000


def test_nested_state_dicts_are_modules_and_values(tmp_path):
    state = {"w": numbers("float32", 4)}
    optimizer = {"state": {0: {"m": torch.ones(4)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    torch.save({"trainer": {"net": state, "best": 3}, "optimizer": optimizer}, tmp_path / "a.pt")
    holdtrue.convert(tmp_path / "a.pt", tmp_path / "c")
    ck = holdtrue.open(tmp_path / "c")
    assert {name: p.kind for name, p in ck.manifest.parts.items()} == {
        "net": "module",
        "trainer": "value",
        "optimizer": "value",
    }
    assert ck["trainer"]["best"] == 3
    assert ck["optimizer"]["param_groups"] == optimizer["param_groups"]
    assert_same(ck["optimizer"]["state"][0]["m"], torch.ones(4))


def test_what_a_flat_format_cannot_hold_is_listed(tmp_path):
    whole = {
        "epoch": 3,
        "net": {
            "model": {"w": torch.ones(9), "b": torch.ones(3), "note": "hi"},
            "thing": Thing(a=1),
        },
        "small": {"w": torch.ones(2)},
    }
    torch.save(whole, tmp_path / "a.pt")
    for dst in ("b.pt", "b.safetensors"):
        made = holdtrue.convert(tmp_path / "a.pt", tmp_path / dst)
        (finding,) = made.report.findings
        assert finding.code == "values-not-carried"
        assert finding.severity == "warning"
        assert [place.split(" ")[0] for place in finding.places] == [
            "epoch",
            "net/model/note",
            "net/thing",
            "small",
        ]
        assert "Thing" in str(made.report)
        assert made.report.ok


def test_a_part_is_chosen_by_path_or_name(tmp_path):
    whole = {"a": {"ema": {"w": torch.zeros(1)}}, "b": {"w": torch.ones(5), "v": torch.ones(5)}}
    torch.save(whole, tmp_path / "a.pt")
    for part, size in ((None, 2), ("b", 2), ("ema", 1), ("a/ema", 1)):
        made = holdtrue.convert(tmp_path / "a.pt", tmp_path / "x.pt", part=part, overwrite=True)
        assert made.tensors == size
    holdtrue.convert(tmp_path / "a.pt", tmp_path / "c", part="ema")
    assert holdtrue.open(tmp_path / "c").parts == ("ema",)
    with pytest.raises(OpenError, match="part-missing"):
        holdtrue.convert(tmp_path / "a.pt", tmp_path / "y.pt", part="nothing")


def test_a_part_of_a_holdtrue_checkpoint(tmp_path):
    holdtrue.save(tmp_path / "c", net=torch.nn.Linear(2, 2), ema=torch.nn.Linear(3, 3), n=5)
    holdtrue.convert(tmp_path / "c", tmp_path / "d", part="net")
    assert holdtrue.open(tmp_path / "d").parts == ("net",)
    assert holdtrue.verify(tmp_path / "d").ok
    made = holdtrue.convert(tmp_path / "c", tmp_path / "e.pt", part="net")
    assert set(torch.load(tmp_path / "e.pt", weights_only=True)) == {"weight", "bias"}
    assert {p.split(" ")[0] for f in made.report.findings for p in f.places} == {"ema", "n", "rng"}


def test_a_copy_of_a_holdtrue_checkpoint_is_the_same(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(4, 2)).sum().backward()
    optimizer.step()
    base = torch.arange(20.0)
    views = {"a": base[:12], "b": base[4:], "q": torch.eye(3).to_sparse()}
    holdtrue.save(tmp_path / "c", model=model, optimizer=optimizer, views=views, n={"a": {1}})
    holdtrue.convert(tmp_path / "c", tmp_path / "d")
    first, second = holdtrue.open(tmp_path / "c"), holdtrue.open(tmp_path / "d")
    assert first.manifest.parts == second.manifest.parts
    assert first.manifest.tensors == second.manifest.tensors
    assert first.manifest.files == second.manifest.files


@pytest.mark.parametrize(
    ("value", "left"),
    [
        ({InertKey(Record(class_name="a.B")): 1, "x": 2}, 1),
        ({InertKey(Record(class_name="a.B")), 3}, 1),
        ([object()], 1),
        (Record(class_name="bad\ud800"), 1),
    ],
)
def test_what_has_no_node_is_left_out_by_name(value, left):
    kept = Kept()
    node = TreeEncoder(kept, "p", value).encode(value)
    assert len(kept.left_out) == left
    decode(node, Decoding(tensor=lambda key: key))


def test_sharing_and_cycles():
    inner = [1]
    record = Record(class_name="a.B", args=(inner,), kwargs={"k": inner}, state={"s": inner})
    tree = {"one": record, "two": record, "list": inner, "t": (inner,)}
    tree["self"] = tree
    tree["type"] = NamedReference("a.B")
    kept = Kept()
    found = decode(TreeEncoder(kept, "p", tree).encode(tree), Decoding(tensor=str))
    assert found["one"] is found["two"]
    assert found["one"].args[0] is found["list"] is found["t"][0] is found["one"].state["s"]
    assert found["one"].kwargs["k"] is found["list"]
    assert found["self"] is found
    assert found["type"] == NamedReference("a.B")
    assert not kept.left_out


def test_an_object_inside_itself_is_left_out():
    state: dict = {}
    record = Record(class_name="a.B", state=state)
    state["me"] = record
    kept = Kept()
    TreeEncoder(kept, "p", record).encode(record)
    assert kept.left_out == {"p/me": "it contains itself"}


def test_a_tree_that_unfolds_without_end_is_refused_in_time():
    record: object = "x"
    for _ in range(60):  # a record can be referred to, so this stays small
        record = Record(class_name="a.B", args=(record, record))
    decode(TreeEncoder(Kept(), "p", record).encode(record), Decoding(tensor=str))
    pairs: tuple = ()
    for _ in range(60):  # a tuple cannot: its hash would reach into all of it
        pairs = (pairs, pairs)
    with override(entries=10_000), pytest.raises(OpenError, match="over-budget"):
        TreeEncoder(Kept(), "p", pairs).encode(pairs)
    text = "x" * 10_000
    with override(manifest_bytes=100_000), pytest.raises(OpenError, match="over-budget"):
        TreeEncoder(Kept(), "p", [text] * 100).encode([text] * 100)
