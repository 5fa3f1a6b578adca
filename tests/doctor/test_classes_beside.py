"""Classes that a file needs: of installed packages, of modules beside it, of neither."""

import sys
import types

import pytest
import torch

import holdtrue
from holdtrue.doctor.importable import findable


def _codes(path):
    return {finding.code: finding for finding in holdtrue.diagnose(path).findings}


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """A whole model of a class `localnet.Net`, whose module is then forgotten."""
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("localnet")
    module.Net = type("Net", (torch.nn.Linear,), {"__module__": "localnet"})
    monkeypatch.setitem(sys.modules, "localnet", module)
    torch.save(module.Net(3, 2), "whole.pt")
    monkeypatch.delitem(sys.modules, "localnet")
    return tmp_path


def test_a_class_that_is_nowhere(saved):
    assert "not installed" in _codes("whole.pt")["class-missing"].why


@pytest.mark.parametrize("name", ["localnet.py", "localnet/__init__.py"])
def test_a_class_of_a_module_in_the_current_directory(name, saved):
    (saved / name).parent.mkdir(exist_ok=True)
    (saved / name).write_text("raise RuntimeError('imported')\nclass Net:\n    pass\n")
    found = _codes("whole.pt")
    assert "class-missing" not in found
    assert "localnet only from the current directory" in found["whole-model"].why
    assert "localnet" not in sys.modules


def test_a_module_in_the_current_directory_without_the_class(saved):
    (saved / "localnet.py").write_text("class Other:\n    pass\n")
    assert "current directory has no such name" in _codes("whole.pt")["class-missing"].why


def test_a_class_that_the_installed_torch_lacks(tmp_path, monkeypatch):
    cls = type("NoSuchLayer", (torch.nn.Linear,), {"__module__": "torch.nn"})
    monkeypatch.setattr(torch.nn, "NoSuchLayer", cls, raising=False)
    torch.save(torch.nn.Sequential(cls(3, 2)), tmp_path / "m.pt")
    monkeypatch.undo()
    found = _codes(tmp_path / "m.pt")
    assert "torch.nn.NoSuchLayer" in found["class-missing"].what


@pytest.mark.parametrize(
    "name",
    ["torch.nn.Linear", "torch.nn.modules.linear.Linear", "torch.nn.ModuleList", "torch.Tensor",
     "torch.nn.Parameter", "torch.optim.Adam", "torch.nn.functional.relu", "torch.Size",
     "torch.optim.lr_scheduler.StepLR", "torch.float32", "torch.device", "numpy.ndarray",
     "torch.nn.init.zeros_", "numpy.random.RandomState", "collections.OrderedDict"],
)  # fmt: skip
def test_names_that_are_there(name):
    assert findable(name) == "here"
