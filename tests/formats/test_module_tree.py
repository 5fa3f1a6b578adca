"""A whole pickled model gives its state dict and its modules with the class gone."""

import sys
import types
from pathlib import Path

import pytest
import torch
from same_as_torch import Compared, same_tensor

from holdtrue.formats import torch_legacy, torch_zip
from holdtrue.formats.module_tree import find_modules, module_nodes, state_dict
from holdtrue.formats.view import LazyTensor
from holdtrue.records.inert import Record

SOURCE = """
import torch

class Block(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.width = width
        self.linear = torch.nn.Linear(width, width, bias=False)
        self.norm = torch.nn.BatchNorm1d(width)
        self.register_buffer("mask", torch.ones(width), persistent=False)
        self.register_parameter("absent", None)

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(7, 4)
        self.blocks = torch.nn.ModuleList(Block(4) for _ in range(2))
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.head = torch.nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight
        self.twice = self.blocks[0]
        self.classes = ["a", "b"]
        self.act = torch.nn.GELU(approximate="tanh")
        self.parts = torch.nn.ParameterList([torch.nn.Parameter(torch.ones(2)) for _ in range(2)])
        self.named = torch.nn.ParameterDict({"x": torch.nn.Parameter(torch.zeros(1))})
        self.blocks[1].eval()
        self.me = [self]
"""


@pytest.fixture
def model_file(tmp_path: Path, request: pytest.FixtureRequest):
    """A pickled model, and what it was; its module is gone before the test runs."""
    zipped = getattr(request, "param", True)
    module = types.ModuleType("vanished_package")
    sys.modules["vanished_package"] = module
    exec(SOURCE, module.__dict__)
    try:
        torch.manual_seed(1)
        model = module.Net()
        for parameter in model.blocks[1].parameters():
            parameter.requires_grad = False
        path = tmp_path / "model.pt"
        torch.save(model, path, _use_new_zipfile_serialization=zipped)
        names = {
            name: type(part).__qualname__
            for name, part in model.named_modules(remove_duplicate=False)
        }
        training = {n: m.training for n, m in model.named_modules(remove_duplicate=False)}
        expected = model.state_dict(keep_vars=True)
    finally:
        del sys.modules["vanished_package"]
    return path, expected, names, training


@pytest.mark.parametrize("model_file", [True, False], indirect=True, ids=["zip", "legacy"])
def test_state_dict_with_the_class_gone(model_file) -> None:
    path, expected, _, _ = model_file
    with pytest.raises((ModuleNotFoundError, AttributeError)):
        torch.load(path, weights_only=False)
    view = (torch_zip if path.read_bytes()[:2] == b"PK" else torch_legacy).read(str(path))
    assert view.about["kind"] == "module"
    found = state_dict(view.tree)
    assert list(found) == list(expected)
    seen = Compared()
    for name, tensor in expected.items():
        assert found[name].requires_grad == tensor.requires_grad
        piece = found[name].pieces[0]
        seen.storages.setdefault(piece.storage.key, tensor.untyped_storage().data_ptr())
        same_tensor(found[name], tensor, seen, name)
    assert found["head.weight"] is found["embed.weight"]
    assert found["twice.linear.weight"] is found["blocks.0.linear.weight"]


def test_module_tree(model_file) -> None:
    path, _, names, training = model_file
    nodes = {node.path: node for node in module_nodes(torch_zip.read(str(path)).tree)}
    assert list(nodes) == list(names)
    assert {p: n.class_name.rpartition(".")[2] for p, n in nodes.items()} == names
    assert {p: n.training for p, n in nodes.items()} == training
    assert nodes[""].class_name == "vanished_package.Net"
    assert nodes[""].attributes["classes"] == ["a", "b"]
    assert nodes["blocks.0"].attributes == {"width": 4}
    assert nodes["blocks.0"].non_persistent == ("mask",)
    assert nodes["blocks.0"].parameters == ("absent",)
    assert nodes["act"].attributes == {"approximate": "tanh"}
    assert nodes["blocks.0.norm"].attributes["eps"] == 1e-5


def test_would_run_names_the_classes_and_their_places(model_file) -> None:
    path, *_ = model_file
    would_run = torch_zip.read(str(path)).about["would_run"]
    places = {op.name: op.place for op in would_run if op.kind == "call"}
    assert places["vanished_package.Net"] == "the top"
    assert places["vanished_package.Block"] == "_modules/blocks/_modules/0"
    assert {op.severity for op in would_run if op.name.startswith("torch.")} == {"library"}


def test_models_inside_a_checkpoint(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    torch.save({"model": model, "ema": torch.nn.DataParallel(model), "n": 1}, tmp_path / "c.pt")
    found = find_modules(torch_zip.read(str(tmp_path / "c.pt")).tree, "c.pt")
    assert list(found) == ["model", "ema"]
    assert list(state_dict(found["ema"])) == ["module.weight", "module.bias"]


def test_old_pickles_without_newer_attributes() -> None:
    tensor = LazyTensor(dtype="float32", shape=(1,), stride=(1,))
    child = Record(
        class_name="old.Layer",
        state={"_parameters": {"w": tensor}, "_buffers": {"b": tensor}, "_modules": {}},
    )
    model = Record(
        class_name="old.Net",
        state={
            "_backend": None,
            "_parameters": {},
            "_buffers": {},
            "_modules": {"a": child, "none": None},
            "training": True,
        },
    )
    assert list(state_dict(model)) == ["a.w", "a.b"]
    root, inner = module_nodes(model)
    assert (root.training, inner.training) == (True, None)


def test_a_module_inside_itself_ends() -> None:
    modules: dict[str, object] = {}
    model = Record(
        class_name="Loop", state={"_parameters": {}, "_buffers": {}, "_modules": modules}
    )
    modules["self"] = model
    assert [node.path for node in module_nodes(model)] == [""]


def test_traced_modules(tmp_path: Path) -> None:
    traced = torch.fx.symbolic_trace(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU()))
    torch.save(traced, tmp_path / "m.pt")
    view = torch_zip.read(str(tmp_path / "m.pt"))
    assert list(state_dict(view.tree)) == ["0.weight", "0.bias"]
    listed = {op.name: op.severity for op in view.about["would_run"]}
    assert listed["torch.fx.graph_module.reduce_graph_module"] == "dangerous"


def test_lazy_and_subclassed_parameters(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.LazyLinear(3), torch.nn.Linear(2, 2))
    model[1].weight.note = "kept"
    torch.save(model, tmp_path / "m.pt")
    found = state_dict(torch_zip.read(str(tmp_path / "m.pt")).tree)
    assert found["0.weight"].layout == "uninitialized"
    assert found["1.weight"].parameter
    assert found["1.weight"].state == {"note": "kept"}


class Marked(torch.Tensor):
    """A subclass with an attribute of its own."""


def test_tensor_subclasses(tmp_path: Path) -> None:
    tensor = torch.arange(3.0).as_subclass(Marked)
    tensor.unit = "m"
    buffer = torch.nn.Buffer(torch.ones(2))
    torch.save({"marked": tensor, "buffer": buffer}, tmp_path / "m.pt")
    view = torch_zip.read(str(tmp_path / "m.pt"))
    marked = view.tensors["marked"]
    assert marked.class_name is not None
    assert marked.class_name.endswith(".Marked")
    assert marked.state == {"unit": "m"}
    assert view.tensors["buffer"].shape == (2,)
    assert [op.kind for op in view.about["would_run"] if op.name.endswith("Marked")] == ["import"]


def test_wrapper_subclass(tmp_path: Path) -> None:
    from torch.testing._internal.two_tensor import TwoTensor

    both = TwoTensor(torch.arange(4.0), torch.ones(4))
    torch.save({"both": both}, tmp_path / "m.pt")
    view = torch_zip.read(str(tmp_path / "m.pt"))
    found = view.tensors["both"]
    assert found.layout == "subclass"
    assert found.shape == (4,)
    assert found.class_name is not None
    assert found.class_name.endswith("TwoTensor")
    seen = Compared()
    same_tensor(found.components["a"], both.a, seen, "a")
    same_tensor(found.components["b"], both.b, seen, "b")


def test_jagged_tensors(tmp_path: Path) -> None:
    parts = [torch.ones(2, 3), torch.zeros(4, 3)]
    torch.save(torch.nested.nested_tensor(parts, layout=torch.jagged), tmp_path / "m.pt")
    found = torch_zip.read(str(tmp_path / "m.pt")).tree
    assert found.layout == "nested"
    same_tensor(found.components["values"], torch.cat(parts), Compared(), "values")
    same_tensor(found.components["offsets"], torch.tensor([0, 2, 6]), Compared(), "offsets")


def test_a_whole_optimizer(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    torch.save(optimizer, tmp_path / "o.pt")
    view = torch_zip.read(str(tmp_path / "o.pt"))
    state = view.tree.state["state"]
    (weight, bias) = view.tree.state["param_groups"][0]["params"]
    assert [key.value for key in state] == [weight, bias]
    assert all("momentum_buffer" in entry for entry in state.values())
