"""Where the model comes from, and what is said of it beside names and shapes."""

import os
import subprocess
import sys

import pytest
import torch
from fitting import codes, fill, saved
from torch import nn

import holdtrue

SOURCE = """
import torch
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(4, 3), nn.ReLU())

def fits(): return Net()
def other(): return nn.Sequential(nn.Linear(4, 2), nn.ReLU())
def fails(): raise OSError("no such data")
def nothing(): return None
def sized(size): return nn.Sequential(nn.Linear(4, size))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("doctor")
    (made / "made.py").write_text(SOURCE)
    (made / "broken.py").write_text("import torch\nraise RuntimeError('at import')\n")
    torch.save(nn.Sequential(nn.Linear(4, 3)).state_dict(), made / "file.pt")
    return made


def doctor(folder, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = "import sys; from holdtrue.cli import main; main()"
    paths = os.pathsep.join([os.fspath(p) for p in sys.path if p])
    return subprocess.run(
        [sys.executable, "-c", program, "doctor", "file.pt", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, "COLUMNS": "200"},
    )


@pytest.mark.parametrize(
    ("name", "status", "says"),
    [
        ("made:fits", 0, "train mode"),
        ("made.py:Net", 0, ""),
        ("made:other", 1, "number of classes"),
        ("made:fails", 2, "OSError"),
        ("made:nothing", 2, "returned no torch.nn.Module"),
        ("made:sized", 2, "(size)"),
        ("made:absent", 2, "fits"),
        ("absent:fits", 2, "No module named"),
        ("absent.py:fits", 2, "there is no file"),
        ("broken:fits", 2, "at import"),
        ("made", 2, "names no function"),
    ],
)
def test_a_model_by_name(name, status, says, folder):
    done = doctor(folder, "--model", name)
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    if name not in ("made:fits", "made.py:Net"):
        assert says in " ".join((done.stdout + done.stderr).split())
    if status == 2:
        assert "model-unavailable" in done.stdout + done.stderr


def test_a_model_larger_than_memory(tmp_path):
    def huge() -> nn.Module:
        return nn.Sequential(nn.Linear(2**22, 2**22), nn.Linear(4, 3))

    report = holdtrue.diagnose(saved({"1.weight": torch.ones(3, 4)}, tmp_path), model=huge)
    assert "missing-keys" in codes(report, "error")


def test_a_factory_that_needs_values_is_called_for_real(tmp_path):
    def build() -> nn.Module:
        made = nn.Linear(3, 2)
        return made if float(made.weight.sum().detach()) < 1e9 else nn.Linear(9, 9)

    path = saved(nn.Linear(3, 2).state_dict(), tmp_path)
    assert not codes(holdtrue.diagnose(path, model=build))


def test_an_exception_of_the_factory_is_told_with_its_line(tmp_path):
    def build() -> nn.Module:
        raise ValueError("no config")

    path = saved({"w": torch.ones(2)}, tmp_path)
    (error,) = holdtrue.diagnose(path, model=build).errors
    assert error.code == "model-unavailable"
    assert "no config" in error.why
    assert "test_fit_models.py:" in error.why
    (error,) = holdtrue.diagnose(path, model=3).errors
    assert error.code == "model-unavailable"


def test_a_whole_model_that_computes_something_else(tmp_path):
    path = saved(nn.Sequential(nn.Conv2d(3, 3, 3, stride=2), nn.ReLU(), nn.Linear(2, 2)), tmp_path)
    target = nn.Sequential(nn.Conv2d(3, 3, 3), nn.GELU(), nn.Linear(2, 2))
    found = [f for f in holdtrue.diagnose(path, model=target).findings if f.severity == "warning"]
    assert {f.code for f in found} == {"architecture-changed"}
    assert ("ReLU", "GELU") in {(f.saved, f.expected) for f in found}
    assert any("stride" in (f.saved or "") for f in found)
    same = nn.Sequential(nn.Conv2d(3, 3, 3, stride=2), nn.ReLU(), nn.Linear(2, 2))
    assert not codes(holdtrue.diagnose(path, model=same), "error", "warning")


class Loose(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 2)
        self.scale = torch.ones(2, requires_grad=True)
        self.layers = [nn.Linear(2, 2)]


def test_what_torch_does_not_know_of(tmp_path):
    report = holdtrue.diagnose(saved(Loose().state_dict(), tmp_path), model=Loose())
    assert codes(report, "warning") == {"tensor-unregistered", "modules-unregistered"}


def test_frozen_parameters_and_modes_are_notes(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    model[0].bias.requires_grad_(False)
    report = holdtrue.diagnose(saved(model.state_dict(), tmp_path), model=model)
    assert codes(report, "note") == {"parameters-frozen", "train-mode"}
    assert not codes(report, "error", "warning")


def test_our_own_checkpoint_gives_what_restore_finds(tmp_path):
    holdtrue.save(tmp_path / "c", model=fill(nn.Sequential(nn.Linear(4, 3), nn.ReLU())))
    for target in (
        nn.Sequential(nn.Linear(4, 2), nn.ReLU()),
        nn.Sequential(nn.Linear(4, 3), nn.GELU()),
        nn.Sequential(nn.Linear(4, 3, bias=False), nn.ReLU()),
    ):
        with pytest.raises(holdtrue.RestoreError) as caught:
            holdtrue.open(tmp_path / "c").restore(model=target)
        said = holdtrue.diagnose(tmp_path / "c", model=target)
        assert codes(said, "error") == codes(caught.value.report, "error")
    fitting = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    assert not codes(holdtrue.diagnose(tmp_path / "c", model=fitting), "error", "warning")
