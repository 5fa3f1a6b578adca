"""Models of plain torch, built again from their checkpoints: each row of the table in the docs."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from plain_models import MODELS, Block, Built, Raises, Silent, Stack, table
from rebuilt_models import assert_same_model, assert_same_outputs
from torch import nn

import holdtrue

DOCS = Path(__file__).parent.parent.parent / "docs"
TRUSTED = ["plain_models"]


@pytest.fixture
def keep(tmp_path):
    def keep(model, **more):
        holdtrue.save(tmp_path / "c", model=model, overwrite=True, **more)
        return holdtrue.open(tmp_path / "c")

    return keep


def reason(checkpoint):
    return checkpoint.manifest.parts["model"].rebuild.reason


@pytest.mark.parametrize("name", MODELS)
def test_plain_models(name, keep, figure):
    make, inputs, expected = MODELS[name]
    Raises.allowed = True
    torch.manual_seed(1)
    model = make()
    checkpoint = keep(model)
    known = checkpoint.manifest.parts["model"].rebuild
    if expected.startswith("no: "):
        assert known.recipe is None
        assert known.reason.startswith(expected.removeprefix("no: "))
        with pytest.raises(holdtrue.RestoreError) as caught:
            checkpoint.build(trust=TRUSTED)
        (finding,) = caught.value.report.findings
        assert finding.code == "not-rebuildable"
        assert "inspect --source" in finding.fix
        figure("models that are honestly refused")
        return
    assert known.recipe is not None, known.reason
    assert known.recipe.via == expected
    built = checkpoint.build(trust=TRUSTED)
    assert_same_model(model, built)
    if inputs is not None:
        assert_same_outputs(model, built, inputs())
    figure("plain models rebuilt")


def test_the_table_in_the_documentation_is_this_one():
    assert table() in (DOCS / "rebuild.md").read_text()


def test_what_is_built_trains(keep):
    built = keep(Stack(Block(4), Block(4))).build(trust=TRUSTED)
    optimizer = torch.optim.SGD(built.parameters(), lr=0.1)
    before = [p.detach().clone() for p in built.parameters()]
    built(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, built.parameters(), strict=True))


def test_a_copy_remembers_its_arguments(keep):
    built = keep(copy.deepcopy(Built(Block(4)))).build(trust=TRUSTED)
    assert isinstance(built, Built)


def test_arguments_are_recorded_as_they_were(keep):
    settings = {"width": 4}
    model = Built(settings, act=nn.ReLU)
    settings["width"] = 99
    model.rest = [{"width": 4}]
    assert keep(model).build(trust=TRUSTED).rest == [{"width": 4}]


def test_wrappers_are_looked_through(keep):
    model = Block(4)
    built = keep(torch.nn.DataParallel(model)).build(trust=TRUSTED)
    assert_same_model(model, built)


def test_saving_leaves_no_trace_in_random_states_or_the_model(keep):
    model = Built(Block(4), act=nn.GELU)
    attributes = dict(vars(model))
    state = torch.get_rng_state()
    keep(model)
    assert torch.equal(state, torch.get_rng_state())
    assert vars(model) == attributes


def test_a_change_between_saves_is_seen(keep):
    """Proofs are kept from save to save; only for a model that is as it was."""
    model = Stack(Block(4), nn.Linear(4, 2))
    assert not keep(model).manifest.parts["model"].rebuild.recipe.modules
    first = keep(model).manifest.parts["model"].rebuild
    assert keep(model).manifest.parts["model"].rebuild == first
    model.layers[1] = nn.Linear(4, 3)
    model.layers[0].dropout.p = 0.9
    checkpoint = keep(model)
    assert_same_model(model, checkpoint.build(trust=TRUSTED))
    assert checkpoint.build(trust=TRUSTED).layers[0].dropout.p == 0.9


def test_classes_that_are_not_trusted_are_named(keep):
    with pytest.raises(holdtrue.RestoreError) as caught:
        keep(Built(Block(4))).build()
    (finding,) = caught.value.report.findings
    assert finding.code == "class-not-trusted"
    assert set(finding.places) == {"plain_models.Built", "plain_models.Block"}
    assert "trust=[Built, Block]" in finding.fix


def test_torchs_own_layers_need_no_trust(keep):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GELU())
    assert_same_model(model, keep(model).build())


def test_a_class_that_changed_since_is_a_finding(keep, monkeypatch):
    checkpoint = keep(Block(4))

    def narrower(self, width, **_):
        nn.Module.__init__(self)
        self.linear = nn.Linear(width, 3)

    monkeypatch.setattr(Block, "__init__", narrower)
    with pytest.raises(holdtrue.RestoreError) as caught:
        checkpoint.build(trust=[Block])
    assert "shape-mismatch" in {f.code for f in caught.value.report.errors}


def test_a_class_that_gained_a_buffer_is_a_finding(keep, monkeypatch):
    checkpoint = keep(Block(4))
    construct = Block.__init__

    def more(self, *args, **kwargs):
        construct(self, *args, **kwargs)
        self.register_buffer("new", torch.ones(2), persistent=False)

    monkeypatch.setattr(Block, "__init__", more)
    with pytest.raises(holdtrue.RestoreError) as caught:
        checkpoint.build(trust=TRUSTED)
    assert [f.where for f in caught.value.report.errors] == ["model/new"]


def test_decorating_something_else_is_an_error():
    with pytest.raises(TypeError, match=r"subclasses of torch\.nn\.Module"):
        holdtrue.buildable(int)


def test_other_parts_are_not_built(keep):
    checkpoint = keep(Silent(4), classes=["a"])
    with pytest.raises(holdtrue.RestoreError):
        checkpoint.build("classes")
    with pytest.raises(KeyError):
        checkpoint.build("absent")


def test_inspect_says_whether(keep, capsys, monkeypatch):
    from holdtrue.cli import main

    built = "can be built from its constructor's arguments, trusting plain_models.Block"
    refused = "cannot be built without its code: Silent takes 'width'"
    for model, said in ((Block(4), built), (Silent(4), refused)):
        checkpoint = keep(model)
        monkeypatch.setattr(sys, "argv", ["holdtrue", "inspect", str(checkpoint.path)])
        with pytest.raises(SystemExit):
            main()
        assert said in capsys.readouterr().out


def test_whole_pickled_models(tmp_path, figure):
    for name in (
        "attributes of the arguments' names",
        "a functional activation",
        "layers as *args",
        "a recurrent layer",
        "weights tied after the constructor",
        "cast, partly frozen, partly in eval",
        "channels-last weights",
        "an argument that is kept nowhere",
        "a dataclass, an enum, a named tuple, a namespace",
    ):
        make, inputs, _ = MODELS[name]
        model = make()
        torch.save(model, tmp_path / "m.pt")
        built = holdtrue.open(tmp_path / "m.pt").build(trust=[*TRUSTED, "argparse"])
        assert_same_model(model, built)
        if inputs is not None:
            assert_same_outputs(model, built, inputs())
        figure("whole pickled models rebuilt without unpickling")


def test_a_state_dict_says_that_it_is_none(tmp_path):
    torch.save(Block(4).state_dict(), tmp_path / "w.pt")
    with pytest.raises(holdtrue.RestoreError) as caught:
        holdtrue.open(tmp_path / "w.pt").build(trust=[Block])
    assert caught.value.report.findings[0].code == "not-rebuildable"


PEAK = """
import sys, torch, holdtrue
from torch import nn
torch.set_num_threads(1)
def status(field):
    line = next(l for l in open("/proc/self/status") if l.startswith(field + ":"))
    return int(line.split()[1]) * 1024
warm = nn.Sequential(nn.Linear(4, 4))
holdtrue.save(sys.argv[1] + "-warm", model=warm)
holdtrue.open(sys.argv[1] + "-warm").build()
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
before = status("VmRSS")
model = holdtrue.open(sys.argv[1]).build()
print(status("VmHWM") - before, sum(p.numel() * 4 for p in model.parameters()))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measured on Linux only")
def test_peak_memory_is_one_model(tmp_path):
    model = nn.Sequential(*(nn.Linear(2048, 2048) for _ in range(16)))
    holdtrue.save(tmp_path / "large", model=model)
    program = [sys.executable, "-c", PEAK, str(tmp_path / "large")]
    out = subprocess.run(program, check=True, capture_output=True, text=True).stdout
    used, size = map(int, out.split())
    assert size == 16 * (2048 * 2048 + 2048) * 4
    # One model and the reading buffers of a few threads; two models would be 2.0.
    assert 0.9 * size < used < 1.35 * size, f"{used / size:.2f} models"
