"""A probe tells whether a restored model still computes what it did."""

import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import holdtrue
from holdtrue.limits import override


class Net(nn.Module):
    """With everything that a forward may change or draw."""

    def __init__(self, act=F.relu, scale=1.0):
        super().__init__()
        self.act, self.scale, self.calls, self.cache = act, scale, 0, None
        self.layer, self.norm, self.drop = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x, double=False):
        self.calls += 1
        self.seen += 1
        self.seen = self.seen + 1
        self.cache = self.act(self.norm(self.layer(x)))
        y = self.drop(self.cache) * self.scale + torch.rand(4)
        return {"y": y * 2 if double else y, "parts": (self.cache, [y.sum()])}


class Prepare:
    def __init__(self, mean=0.5):
        self.mean = mean

    def __call__(self, x):
        return (x - self.mean,)


@pytest.fixture
def inputs():
    return torch.linspace(-1, 1, 12).reshape(3, 4)


@pytest.fixture
def keep(tmp_path):
    def keep(model, probe, **more):
        holdtrue.save(tmp_path / "c", model=model, probe=probe, overwrite=True, **more)
        return holdtrue.open(tmp_path / "c")

    return keep


def said(report):
    return [f.code for f in report.findings if f.code.startswith("probe")]


def finding(report):
    (found,) = [f for f in report.findings if f.code.startswith("probe")]
    return found


def test_the_same_model_is_bit_equal(keep, inputs, figure):
    report = keep(Net(), inputs).restore(model=Net(), probe=True)
    assert said(report) == ["probe-equal"]
    assert "3 outputs" in finding(report).what
    figure("probes recomputed")


@pytest.mark.parametrize(
    "other",
    [
        lambda: Net(F.gelu),
        lambda: Net(scale=1.001),
        lambda: Net(torch.tanh),
        lambda: Net().double(),
    ],
    ids=["activation", "constant", "function", "dtype"],
)
def test_another_function_is_different(keep, inputs, other, figure):
    checkpoint = keep(Net(), inputs)
    target = other()
    given = inputs.to(next(target.parameters()).dtype)
    report = checkpoint.restore(
        model=target,
        probe=True if given.dtype == inputs.dtype else given,
        allow=["architecture-changed", "dtype-changed"],
    )
    if given.dtype == inputs.dtype:
        assert said(report) == ["probe-different"]
        assert "largest difference" in finding(report).what
        assert not report.ok
    else:
        assert report.not_checked
    figure("probes recomputed")


def test_another_dtype_is_said(keep, inputs):
    class Cast(nn.Module):
        def __init__(self, dtype):
            super().__init__()
            self.layer, self.dtype = nn.Linear(4, 4).to(dtype), dtype

        def forward(self, x):
            return self.layer(x.to(self.dtype))

    checkpoint = keep(Cast(torch.float32), inputs)
    report = checkpoint.restore(
        model=Cast(torch.bfloat16), probe=True, allow=["dtype-narrowed", "architecture-changed"]
    )
    assert said(report) == ["probe-different"]
    assert "float32 [3, 4] became bfloat16 [3, 4]" in finding(report).what


def test_another_order_of_sums_is_close(keep, inputs):
    class Sums(nn.Module):
        def __init__(self, backwards):
            super().__init__()
            self.weight, self.backwards = nn.Parameter(torch.randn(4, 2000)), backwards

        def forward(self, x):
            if self.backwards:
                return x.flip(-1) @ self.weight.flip(0).contiguous() * 1.0000001
            return x @ self.weight

    report = keep(Sums(False), inputs).restore(
        model=Sums(True), probe=True, allow=["architecture-changed"]
    )
    assert said(report) == ["probe-close"]
    assert report.ok


def test_preprocessing_takes_part(keep, inputs):
    probe = holdtrue.Probe(inputs, preprocess="prep")
    checkpoint = keep(Net(), probe, prep=Prepare())
    same = checkpoint.restore(model=Net(), prep=Prepare(0.0), probe=True)
    assert said(same) == ["probe-equal"]  # the restore gave it its state back

    class Other(Prepare):
        def __call__(self, x):
            return (x * 2 - self.mean,)

    report = holdtrue.verify(checkpoint.path, model=Net, preprocess=Other())
    assert said(report) == ["probe-different", "probe-preprocessing"]
    report = holdtrue.verify(checkpoint.path, model=Net, preprocess=Prepare())
    assert said(report) == ["probe-equal"]
    report = checkpoint.restore(model=Net(), probe=True)
    assert report.not_checked == ("the probe: it needs prep to be given",)


def test_a_stochastic_model_says_so(keep, inputs):
    class Stochastic(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(x) + int.from_bytes(os.urandom(4), "big")

    report = keep(Stochastic(), inputs).restore(model=Stochastic(), probe=True)
    assert said(report) == ["probe-unstable"]
    assert report.ok


def test_nothing_is_changed_by_a_probe(keep, inputs):
    model = Net()
    model.norm.eval()
    kept = {n: t.clone() for n, t in model.state_dict().items()}
    flags = [m.training for m in model.modules()]
    buffer = model.seen
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    given = inputs.clone()
    keep(model, inputs).restore(model=model, probe=True)
    assert model.calls == 0
    assert model.cache is None
    assert model.seen is buffer
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in kept.items())
    assert flags == [m.training for m in model.modules()]
    assert torch.equal(given, inputs)
    assert states[0] == random.getstate()
    assert states[1] == np.random.get_state()[1].tolist()
    assert torch.equal(states[2], torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    "form",
    [
        lambda x: (x, True),
        lambda x: {"x": x, "double": True},
        lambda x: holdtrue.Probe({"x": x}, part="model"),
    ],
)
def test_forms_of_inputs(keep, inputs, form):
    report = keep(Net(), form(inputs)).restore(model=Net(), probe=True)
    assert said(report) == ["probe-equal"]


def test_large_inputs_and_outputs_are_kept_as_digests(keep, inputs):
    with override(probe_bytes=16):
        checkpoint = keep(Net(), inputs)
    assert checkpoint["probe"]["inputs"] is None
    assert checkpoint["probe"]["outputs"]["y"]["values"] is None
    report = checkpoint.restore(model=Net(), probe=True)
    assert "too large to keep" in report.not_checked[0]
    assert said(checkpoint.restore(model=Net(), probe=inputs)) == ["probe-equal"]
    other = checkpoint.restore(model=Net(), probe=inputs + 1)
    assert "not those that were saved" in other.not_checked[0]
    report = checkpoint.restore(model=Net(F.gelu), probe=inputs, allow=["architecture-changed"])
    assert "by how much is not known" in finding(report).what


@pytest.mark.parametrize(
    "probe",
    [
        torch.ones(3, 5),
        {"nothing": 1},
        (),
        object(),
        holdtrue.Probe(torch.ones(3, 4), part="absent"),
        holdtrue.Probe(torch.ones(3, 4), preprocess="absent"),
    ],
)
def test_a_probe_that_does_not_run_fails_the_save(keep, probe, tmp_path):
    with pytest.raises(holdtrue.SaveError) as caught:
        keep(Net(), probe)
    assert caught.value.report.findings[0].code == "probe-failed"
    assert not (tmp_path / "c").exists()


def test_without_a_probe_nothing_is_claimed(tmp_path, inputs):
    holdtrue.save(tmp_path / "c", model=Net())
    report = holdtrue.open(tmp_path / "c").restore(model=Net(), probe=True)
    assert report.not_checked == ("the probe: none was saved",)
    torch.save(Net().state_dict(), tmp_path / "c.pt")
    report = holdtrue.open(tmp_path / "c.pt").restore(model=Net(), probe=True)
    assert report.not_checked == ("the probe: none was saved",)


def test_verify_leaves_a_given_model_alone(keep, inputs):
    checkpoint = keep(Net(), inputs)
    model = Net(F.gelu)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    assert said(holdtrue.verify(checkpoint.path, model=model)) == ["probe-different"]
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in before.items())


def test_a_run_probes_every_save(tmp_path, inputs):
    model = Net()
    run = holdtrue.Run(tmp_path / "run", model=model, probe=inputs)
    run.save(1, wait=True)
    assert said(run.latest().restore(model=Net(), probe=True)) == ["probe-equal"]
    assert run.resume() == 1


def test_verify_on_the_command_line(tmp_path, inputs):
    (tmp_path / "made.py").write_text(
        "from torch import nn\ndef net(): return nn.Sequential(nn.Linear(4, 4), nn.ReLU())\n"
        "def other(): return nn.Sequential(nn.Linear(4, 4), nn.GELU())\n"
    )
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    holdtrue.save(tmp_path / "c", model=model, probe=inputs)
    for name, status, code in (
        ("made:net", 0, "probe-equal"),
        ("made:other", 1, "probe-different"),
        ("made:absent", 2, "model-unavailable"),
    ):
        program = f"import sys; sys.argv=['holdtrue','verify','c','--model','{name}']\n"
        program += "from holdtrue.cli import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": "src:" + os.pathsep.join(p for p in sys.path if p)},
        )
        assert done.returncode == status, done.stdout + done.stderr
        assert code in done.stdout + done.stderr
