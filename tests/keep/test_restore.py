"""Restoring: all or nothing, in place, and every difference said in words that help."""

import copy
import random
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from snapshots import everything, first_difference
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR, StepLR

import holdtrue
from holdtrue.restore import apply


class Net(nn.Module):
    def __init__(self, classes: int = 2, extra: bool = False, dtype: Any = None) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 4, 3)
        self.norm = nn.BatchNorm1d(4)
        self.fc = nn.Linear(4, classes, dtype=dtype)
        self.register_buffer("scale", torch.rand(3), persistent=False)
        if extra:
            self.extra = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.norm(self.conv(x)).mean(-1))


class Preprocessor:
    """Takes its state through `load_state_dict`; `fails` makes it raise half-way."""

    def __init__(self, fails: bool = False) -> None:
        self.mean, self.steps, self.fails = np.random.rand(3), [random.random()], fails

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean = state["mean"]
        if self.fails:
            self.fails = False  # the way back works
            raise RuntimeError("half-way through")
        self.steps = state["steps"]


class Vocabulary:
    """Takes its state through `__setstate__`."""

    def __init__(self, fails: bool = False) -> None:
        self.words, self.fails = {"a": random.random()}, fails

    def __getstate__(self) -> dict[str, Any]:
        return {"words": self.words}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.words = state["words"]
        if self.fails:
            raise ValueError("these are not my words")


Parts = dict[str, Any]


def training(seed: int, steps: int = 3, net: Net | None = None, **other: Any) -> Parts:
    """A trained model with all that stands beside it."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    model = net or Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01 * seed)
    scheduler = OneCycleLR(optimizer, max_lr=0.1, total_steps=50)
    for _ in range(steps):
        optimizer.zero_grad()
        x = torch.randn(4, 1, 8).to(model.conv.weight.dtype)
        model(x).square().sum().backward()
        optimizer.step()
        scheduler.step()
    parts: Parts = {
        "model": model,
        "optimizer": optimizer,
        "scheduler": scheduler,
        "prep": Preprocessor(),
        "vocabulary": Vocabulary(),
        "history": [0.1 * seed, {"epoch": seed}],
        "classes": ("cat", "dog"),
        "mean": np.random.rand(4),
        "bias": torch.rand(4),
    }
    return {**parts, **other}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    holdtrue.save(tmp_path / "kept", **training(1))
    return tmp_path / "kept"


def codes(report: holdtrue.Report, severity: str | None = None) -> set[str]:
    return {f.code for f in report.findings if severity in (None, f.severity)}


def refused(path: Path, parts: Parts, kind: Any = holdtrue.HoldtrueError, **more: Any) -> Any:
    """Restoring raises, and not one bit of anything was changed."""
    before = everything(**parts)
    with pytest.raises(kind) as caught:
        holdtrue.open(path).restore(**parts, **more)
    assert first_difference(before, everything(**parts)) == ""
    text = str(caught.value)
    assert "Traceback" not in text
    assert "weights_only" not in text
    return caught.value.report


# -- all or nothing -----------------------------------------------------------------------------


def test_a_fitting_checkpoint_restores_everything(saved: Path) -> None:
    parts, source = training(2), training(1)
    report = holdtrue.open(saved).restore(**parts)

    assert report.ok
    for name, tensor in source["model"].state_dict().items():
        assert torch.equal(parts["model"].state_dict()[name], tensor)
    assert torch.equal(parts["model"].scale, source["model"].scale)
    for p, q in zip(source["model"].parameters(), parts["model"].parameters(), strict=True):
        for key, value in source["optimizer"].state[p].items():
            assert torch.equal(parts["optimizer"].state[q][key], value)
    assert parts["scheduler"].state_dict() == source["scheduler"].state_dict()
    assert parts["optimizer"].param_groups[0]["lr"] == source["optimizer"].param_groups[0]["lr"]
    assert np.array_equal(parts["prep"].mean, source["prep"].mean)
    assert parts["vocabulary"].words == source["vocabulary"].words
    assert parts["history"] == [0.1, {"epoch": 1}]
    assert np.array_equal(parts["mean"], source["mean"])
    assert torch.equal(parts["bias"], source["bias"])
    assert torch.rand(3).tolist() == (training(1), torch.rand(3))[1].tolist()


def _missing(p: Parts) -> None:
    p.update(training(2, net=Net(extra=True)))


def _other_scheduler(p: Parts) -> None:
    p["scheduler"] = StepLR(p["optimizer"], 3)


def _other_optimizer(p: Parts) -> None:
    p["optimizer"] = torch.optim.SGD(p["model"].parameters(), lr=0.1, momentum=0.9)


def _fewer_parameters(p: Parts) -> None:
    p["optimizer"] = torch.optim.AdamW(p["model"].fc.parameters())


BAD: dict[str, tuple[Callable[[Parts], Any], str]] = {
    "missing key": (_missing, "missing-keys"),
    "shape": (lambda p: p.update(training(2, net=Net(classes=5))), "shape-mismatch"),
    "narrower dtype": (
        lambda p: p.update(training(2, steps=0, net=Net(dtype=torch.float16))),
        "dtype-narrowed",
    ),
    "other optimizer": (_other_optimizer, "class-changed"),
    "other scheduler": (_other_scheduler, "part-kind-changed"),
    "fewer parameters": (_fewer_parameters, "optimizer-params-unexpected"),
    "value that differs": (lambda p: p.update(classes=("cat", "fish")), "value-differs"),
    "array of another shape": (lambda p: p.update(mean=np.zeros(5)), "value-differs"),
    "tensor of another shape": (lambda p: p.update(bias=torch.zeros(5)), "shape-mismatch"),
    "object of another class": (lambda p: p.update(prep=Vocabulary()), "part-kind-changed"),
    "a part that is not there": (lambda p: p.update(shedule=p["scheduler"]), "part-missing"),
    "a model for a value": (lambda p: p.update(classes=nn.Linear(1, 1)), "part-kind-changed"),
    "a value for a model": (lambda p: p.update(model=[1]), "part-kind-changed"),
    "load_state_dict that raises": (lambda p: p.update(prep=Preprocessor(True)), "target-refused"),
    "__setstate__ that raises": (lambda p: p.update(vocabulary=Vocabulary(True)), "target-refused"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_checkpoint_changes_nothing(case: str, saved: Path) -> None:
    spoil, code = BAD[case]
    parts = training(2)
    spoil(parts)
    found = codes(refused(saved, parts, holdtrue.RestoreError), "error")
    assert code in found


def test_an_unexpected_key_changes_nothing(tmp_path: Path) -> None:
    holdtrue.save(tmp_path / "kept", **training(1, net=Net(extra=True)))
    report = refused(tmp_path / "kept", training(2), holdtrue.RestoreError)
    assert codes(report, "error") == {"unexpected-keys", "optimizer-params-unexpected"}


def test_failures_in_the_last_object_undo_all_before_it(saved: Path) -> None:
    parts = training(2)
    parts["vocabulary"] = Vocabulary(fails=True)
    last = {k: parts[k] for k in parts if k != "vocabulary"} | {"vocabulary": parts["vocabulary"]}
    report = refused(saved, last, holdtrue.RestoreError)
    finding = report.errors[0]
    assert finding.where == "vocabulary"
    assert finding.why == "these are not my words"


@pytest.mark.parametrize("part", ["model", "optimizer", "prep", "mean", "rng"])
def test_a_wrong_digest_in_the_last_bytes_changes_nothing(part: str, saved: Path) -> None:
    file = saved / f"{part}.safetensors"
    if part == "rng" and not file.exists():
        pytest.skip("the random states of this machine hold no tensor")
    with file.open("r+b") as f:
        f.seek(-1, 2)
        last = f.read(1)
        f.seek(-1, 2)
        f.write(bytes([last[0] ^ 1]))
    report = refused(saved, training(2), holdtrue.DamageError)
    assert codes(report) == {"digest-mismatch"}


def test_keyboard_interrupt_in_an_object_undoes_too(saved: Path) -> None:
    class Interrupted(Preprocessor):
        def load_state_dict(self, state: dict[str, Any]) -> None:
            super().load_state_dict(state)
            if self.fails is not None:
                self.fails = None  # type: ignore[assignment]
                raise KeyboardInterrupt

    Interrupted.__module__, Interrupted.__qualname__ = Preprocessor.__module__, "Preprocessor"
    parts = training(2)
    parts["prep"] = Interrupted()
    parts["prep"].fails = False
    steps, mean = parts["prep"].steps, parts["prep"].mean
    with pytest.raises(KeyboardInterrupt):
        holdtrue.open(saved).restore(**parts)
    assert parts["prep"].steps == steps
    assert np.array_equal(parts["prep"].mean, mean)


# -- in place -----------------------------------------------------------------------------------


def test_tensors_are_filled_in_place(saved: Path) -> None:
    parts = training(2)
    model, optimizer = parts["model"], parts["optimizer"]
    held = [*model.parameters(), *model.buffers()]
    held += [v for s in optimizer.state.values() for v in s.values()] + [parts["bias"]]
    before = [(id(t), t.data_ptr(), t._version) for t in held]
    history, mean = parts["history"], parts["mean"]

    holdtrue.open(saved).restore(**parts)

    now = [*model.parameters(), *model.buffers()]
    now += [v for s in optimizer.state.values() for v in s.values()] + [parts["bias"]]
    assert [(id(t), t.data_ptr()) for t in now] == [(i, p) for i, p, _ in before]
    assert all(t._version > v for t, (_, _, v) in zip(now, before, strict=True))
    assert parts["history"] is history
    assert parts["mean"] is mean
    assert optimizer.param_groups[0]["params"][0] is model.conv.weight


def test_an_optimizer_built_before_still_trains_the_model(saved: Path) -> None:
    parts, source = training(2), training(1)
    holdtrue.open(saved).restore(**parts)
    for run in (parts, source):
        torch.manual_seed(9)
        for _ in range(3):
            run["optimizer"].zero_grad()
            run["model"](torch.randn(4, 1, 8)).square().sum().backward()
            run["optimizer"].step()
            run["scheduler"].step()
    for p, q in zip(source["model"].parameters(), parts["model"].parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Python's own handler, also where the tests run in the background with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("at", ["fill", "_run"])
def test_ctrl_c_waits_until_the_target_is_whole(
    at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    saved_state: dict[str, Any] = {"model": Net(), "vocabulary": Vocabulary()}
    holdtrue.save(tmp_path / "kept", **saved_state)
    targets: dict[str, Any] = {"model": Net(), "vocabulary": Vocabulary()}
    real = getattr(apply, at)

    def pressed(*given: Any, **named: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return real(*given, **named)

    monkeypatch.setattr(apply, at, pressed)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        holdtrue.open(tmp_path / "kept").restore(**targets)
    assert signal.getsignal(signal.SIGINT) is before
    for name, tensor in saved_state["model"].state_dict().items():
        assert torch.equal(tensor, targets["model"].state_dict()[name]), name
    assert targets["vocabulary"].words == saved_state["vocabulary"].words


def test_a_restore_in_another_thread_leaves_signals_alone(tmp_path: Path) -> None:
    holdtrue.save(tmp_path / "kept", model=Net())
    checkpoint, done = holdtrue.open(tmp_path / "kept"), []
    thread = threading.Thread(target=lambda: done.append(checkpoint.restore(model=Net())))
    thread.start()
    thread.join()
    assert done


def test_a_backward_over_a_restore_is_refused_by_autograd(saved: Path) -> None:
    model = training(2)["model"]
    loss = model(torch.randn(4, 1, 8)).square().sum()
    holdtrue.open(saved).restore(model=model)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_strided_and_shared_targets_are_filled_where_they_are(tmp_path: Path) -> None:
    torch.manual_seed(1)
    holdtrue.save(tmp_path / "kept", model=nn.Conv2d(3, 4, 3))
    target = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    strides = target.weight.stride()
    holdtrue.open(tmp_path / "kept").restore(model=target)
    torch.manual_seed(1)
    assert torch.equal(target.weight, nn.Conv2d(3, 4, 3).weight)
    assert target.weight.stride() == strides


# -- only, rename, allow ------------------------------------------------------------------------


def test_only_restores_what_fits_a_pattern(saved: Path) -> None:
    model, source = Net(), training(1)["model"]
    before = copy.deepcopy(model.state_dict())
    report = holdtrue.open(saved).restore(model=model, only=["fc.*", "model/norm.weight"])
    assert report.ok
    for name, tensor in model.state_dict().items():
        chosen = name.startswith("fc.") or name == "norm.weight"
        want = source.state_dict()[name] if chosen else before[name]
        assert torch.equal(tensor, want), name


def test_only_that_fits_nothing_is_an_error(saved: Path) -> None:
    report = refused(saved, {"model": Net()}, holdtrue.RestoreError, only="fx.*")
    assert codes(report, "error") == {"only-matches-nothing"}
    assert "conv.*, norm.*, fc.*" in report.errors[0].why


def test_only_ignores_what_else_differs(tmp_path: Path) -> None:
    holdtrue.save(tmp_path / "kept", model=Net(classes=7, extra=True))
    assert holdtrue.open(tmp_path / "kept").restore(model=Net(), only="conv.*").ok


class Renamed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.ModuleDict({"conv": nn.Conv1d(1, 4, 3), "norm": nn.BatchNorm1d(4)})
        self.head = nn.Linear(4, 2)
        self.register_buffer("scale", torch.rand(3), persistent=False)


@pytest.mark.parametrize(
    "rename",
    [
        {"fc.*": "head.*", "conv.*": "stem.conv.*", "norm.*": "stem.norm.*"},
        {"fc.weight": "head.weight", "fc.b*s": "head.b*s", "scale": "scale", "*.*": "stem.*.*"},
        {"model/fc.*": "model/head.*", "conv.*": "stem.conv.*", "norm.*": "stem.norm.*"},
    ],
)
def test_rename_maps_saved_names(rename: dict[str, str], saved: Path) -> None:
    source = training(1)
    model = Renamed()
    optimizer = torch.optim.AdamW(model.parameters())
    report = holdtrue.open(saved).restore(model=model, optimizer=optimizer, rename=rename)
    assert report.ok
    assert torch.equal(model.head.weight, source["model"].fc.weight)
    assert torch.equal(model.stem["norm"].running_var, source["model"].norm.running_var)
    theirs = source["optimizer"].state[source["model"].fc.weight]["exp_avg"]
    assert torch.equal(optimizer.state[model.head.weight]["exp_avg"], theirs)


def test_two_names_renamed_to_one_are_refused(saved: Path) -> None:
    rename = {"conv.weight": "x", "fc.weight": "x"}
    report = refused(saved, {"model": Net()}, holdtrue.RestoreError, rename=rename)
    assert "rename-collides" in codes(report, "error")


def test_a_rename_that_fits_nothing_is_said(saved: Path) -> None:
    report = holdtrue.open(saved).restore(model=Net(), rename={"fx.*": "fc.*"})
    assert "rename-unused" in codes(report, "warning")


def test_an_unknown_code_to_allow_is_refused_with_the_nearest(saved: Path) -> None:
    report = refused(saved, {"model": Net()}, holdtrue.RestoreError, allow=["missing-key"])
    assert codes(report, "error") == {"allow-unknown"}
    assert "'missing-keys'" in report.errors[0].fix


def test_allow_given_as_one_string(saved: Path) -> None:
    report = holdtrue.open(saved).restore(model=Net(extra=True), allow="missing-keys")
    assert report.ok


def _allowed(saved: Path, code: str, **targets: Any) -> holdtrue.Report:
    """Refused without the code, and restored with it, as a note."""
    refused(saved, targets, holdtrue.RestoreError)
    report = holdtrue.open(saved).restore(**targets, allow=[code])
    assert report.ok
    assert code in codes(report, "note")
    return report


def test_allow_missing_keys(saved: Path) -> None:
    model = Net(extra=True)
    kept = model.extra.weight.clone()
    _allowed(saved, "missing-keys", model=model)
    assert torch.equal(model.extra.weight, kept)
    assert torch.equal(model.fc.weight, training(1)["model"].fc.weight)


def test_allow_unexpected_keys(tmp_path: Path) -> None:
    holdtrue.save(tmp_path / "kept", model=Net(extra=True))
    _allowed(tmp_path / "kept", "unexpected-keys", model=Net())


def test_allow_shape_mismatch_keeps_the_head_and_starts_its_moments_fresh(saved: Path) -> None:
    parts = training(2, steps=0, net=Net(classes=5))
    model, optimizer = parts["model"], parts["optimizer"]
    head = model.fc.weight.clone()
    _allowed(saved, "shape-mismatch", model=model, optimizer=optimizer)
    assert torch.equal(model.fc.weight, head)
    assert model.fc.weight not in optimizer.state
    assert model.conv.weight in optimizer.state
    model(torch.randn(4, 1, 8)).sum().backward()
    optimizer.step()


def test_allow_dtype_narrowed_reports_the_largest_change(tmp_path: Path) -> None:
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0 + 2**-12, 70000.0]]))
    holdtrue.save(tmp_path / "kept", model=model)
    target = nn.Linear(2, 1, bias=False).half()
    report = _allowed(tmp_path / "kept", "dtype-narrowed", model=target)
    finding = next(f for f in report.findings if f.code == "dtype-narrowed")
    assert "largest change 0.000244" in finding.where
    assert "1 overflow" in finding.where
    assert target.weight.tolist() == [[1.0, float("inf")]]


def test_allow_dtype_changed(tmp_path: Path) -> None:
    holdtrue.save(tmp_path / "kept", model=nn.Linear(2, 1, dtype=torch.complex64))
    target = nn.Linear(2, 1)
    _allowed(tmp_path / "kept", "dtype-changed", model=target)


def test_widening_is_a_note(tmp_path: Path) -> None:
    source = nn.Linear(3, 3).bfloat16()
    holdtrue.save(tmp_path / "kept", model=source)
    target = nn.Linear(3, 3)
    report = holdtrue.open(tmp_path / "kept").restore(model=target)
    assert "dtype-widened" in codes(report, "note")
    assert torch.equal(target.weight, source.weight.float())


def test_allow_class_changed(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2)).sum().backward()
    optimizer.step()
    holdtrue.save(tmp_path / "kept", model=model, optimizer=optimizer)
    akin = torch.optim.AdamW(model.parameters())
    _allowed(tmp_path / "kept", "class-changed", model=model, optimizer=akin)
    assert akin.state[model.weight]["step"] == 1


def test_allow_parameters_that_came_or_went(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    whole = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    half = torch.optim.SGD(model[0].parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(2)).sum().backward()
    whole.step()
    half.step()
    holdtrue.save(tmp_path / "whole", model=model, optimizer=whole)
    holdtrue.save(tmp_path / "half", model=model, optimizer=half)
    fresh = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    _allowed(tmp_path / "half", "optimizer-params-missing", model=model, optimizer=fresh)
    assert set(map(id, fresh.state)) == set(map(id, model[0].parameters()))
    fresh = torch.optim.SGD(model[0].parameters(), lr=0.1, momentum=0.9)
    _allowed(tmp_path / "whole", "optimizer-params-unexpected", model=model, optimizer=fresh)


def test_allow_merged_groups(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    two = [{"params": [model.weight], "weight_decay": 0.5}, {"params": [model.bias]}]
    holdtrue.save(tmp_path / "kept", model=model, optimizer=torch.optim.SGD(two, lr=0.1))
    one = torch.optim.SGD(model.parameters(), lr=0.3)
    _allowed(tmp_path / "kept", "optimizer-groups-merged", model=model, optimizer=one)
    assert one.param_groups[0]["lr"] == 0.3


def test_allow_value_differs_and_part_missing(saved: Path) -> None:
    _allowed(saved, "value-differs", classes=("x",))
    _allowed(saved, "part-missing", modle=Net())


def test_allow_another_loader(tmp_path: Path) -> None:
    data = torch.utils.data.TensorDataset(torch.arange(10.0))
    loader = torch.utils.data.DataLoader(data, batch_size=2, shuffle=True)
    holdtrue.save(tmp_path / "kept", loader=loader)
    _allowed(tmp_path / "kept", "loader-changed", loader=torch.utils.data.DataLoader(data, 3))


# -- requires_grad, flags, ties -----------------------------------------------------------------


def test_frozen_parameters_are_frozen_again_and_the_reverse(tmp_path: Path) -> None:
    source, target = Net(), Net()
    source.conv.requires_grad_(False)
    target.fc.requires_grad_(False)
    holdtrue.save(tmp_path / "kept", model=source)
    report = holdtrue.open(tmp_path / "kept").restore(model=target)
    assert "requires-grad-restored" in codes(report, "note")
    want = {n: p.requires_grad for n, p in source.named_parameters()}
    assert {n: p.requires_grad for n, p in target.named_parameters()} == want


def test_training_flags_are_restored(tmp_path: Path) -> None:
    source = Net().train()
    source.norm.eval()
    holdtrue.save(tmp_path / "kept", model=source)
    target = Net().eval()
    holdtrue.open(tmp_path / "kept").restore(model=target)
    assert {n: m.training for n, m in target.named_modules()} == {
        n: m.training for n, m in source.named_modules()
    }


class Tied(nn.Module):
    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        if tied:
            self.head.weight = self.embed.weight


def test_a_tie_is_made_again(tmp_path: Path) -> None:
    source, target = Tied(True), Tied(False)
    holdtrue.save(tmp_path / "kept", model=source)
    embed = target.embed.weight
    report = holdtrue.open(tmp_path / "kept").restore(model=target)
    assert "tie-restored" in codes(report, "warning")
    assert target.head.weight is target.embed.weight
    assert target.embed.weight is embed
    assert torch.equal(embed, source.embed.weight)


def test_a_tie_is_not_made_behind_an_optimizers_back(tmp_path: Path) -> None:
    holdtrue.save(tmp_path / "kept", model=Tied(True))
    target = Tied(False)
    optimizer = torch.optim.SGD(target.parameters(), lr=0.1)
    report = refused(tmp_path / "kept", {"model": target, "opt": optimizer}, allow=["part-missing"])
    assert codes(report, "error") == {"tie-lost"}
    holdtrue.open(tmp_path / "kept").restore(
        model=target, opt=optimizer, allow=["part-missing", "tie-lost"]
    )
    assert target.head.weight is not target.embed.weight
    assert torch.equal(target.head.weight, target.embed.weight)


def test_an_untied_checkpoint_into_a_tied_target(tmp_path: Path) -> None:
    source, target = Tied(False), Tied(True)
    holdtrue.save(tmp_path / "kept", model=source)
    report = refused(tmp_path / "kept", {"model": target}, holdtrue.RestoreError)
    assert codes(report, "error") == {"tie-conflict"}
    holdtrue.open(tmp_path / "kept").restore(model=target, allow=["tie-conflict"])
    assert torch.equal(target.embed.weight, source.embed.weight)
    assert target.head.weight is target.embed.weight


def test_untied_but_equal_values_fit_a_tied_target(tmp_path: Path) -> None:
    source = Tied(False)
    source.head.load_state_dict(source.embed.state_dict())
    holdtrue.save(tmp_path / "kept", model=source)
    assert holdtrue.open(tmp_path / "kept").restore(model=Tied(True)).ok


# -- modules with a state of their own ------------------------------------------------------------


class Extra(nn.Module):
    def __init__(self, seen: int = 0, fails: bool = False) -> None:
        super().__init__()
        self.seen, self.fails, self.weight = seen, fails, nn.Parameter(torch.rand(2))

    def get_extra_state(self) -> dict[str, int]:
        return {"seen": self.seen}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.seen = state["seen"]
        if self.fails:
            self.fails = False
            raise RuntimeError("no")


class Packed(nn.Module):
    """Writes its weight in a form of its own, as quantised layers do."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.values, self.bias = torch.arange(3.0) * factor, nn.Parameter(torch.rand(3))

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "packed"] = (self.values, 2)

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, metadata: Any, strict: bool,
        missing_keys: Any, unexpected_keys: Any, error_msgs: Any,
    ) -> None:  # fmt: skip
        self.values = state_dict.pop(prefix + "packed")[0]
        super()._load_from_state_dict(
            state_dict, prefix, metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def test_extra_state(tmp_path: Path) -> None:
    holdtrue.save(tmp_path / "kept", model=nn.Sequential(Extra(5), Extra(7)))
    target = nn.Sequential(Extra(), Extra())
    holdtrue.open(tmp_path / "kept").restore(model=target)
    assert [m.seen for m in target] == [5, 7]
    failing = nn.Sequential(Extra(1), Extra(2, fails=True))
    before = everything(model=failing[0])
    with pytest.raises(holdtrue.RestoreError):
        holdtrue.open(tmp_path / "kept").restore(model=failing)
    assert everything(model=failing[0]) == before
    assert failing[1].seen == 2


def test_a_state_dict_of_its_own(tmp_path: Path) -> None:
    source, target = nn.Sequential(Packed(3.0)), nn.Sequential(Packed())
    holdtrue.save(tmp_path / "kept", model=source)
    holdtrue.open(tmp_path / "kept").restore(model=target)
    assert torch.equal(target[0].values, source[0].values)
    assert torch.equal(target[0].bias, source[0].bias)


def test_a_quantized_layer(tmp_path: Path) -> None:
    if not torch.backends.quantized.supported_engines or (
        torch.backends.quantized.engine in ("none", "")
    ):
        pytest.skip("this torch has no quantised engine")

    def quantized(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)

    source, target = quantized(1), quantized(2)
    x = torch.rand(5, 4)
    holdtrue.save(tmp_path / "kept", model=source)
    holdtrue.open(tmp_path / "kept").restore(model=target)
    assert torch.equal(source(x), target(x))


def test_state_without_a_home_is_said(tmp_path: Path) -> None:
    holdtrue.save(tmp_path / "kept", model=nn.Sequential(Extra(5)))

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(2))

    _allowed(tmp_path / "kept", "unexpected-keys", model=nn.Sequential(Plain()))


def test_extra_state_that_the_file_lacks_is_said(tmp_path: Path) -> None:
    plain = nn.Sequential(nn.Module())
    plain[0].weight = nn.Parameter(torch.rand(2))
    holdtrue.save(tmp_path / "kept", model=plain)
    _allowed(tmp_path / "kept", "missing-keys", model=nn.Sequential(Extra(5)))


# -- parts and random states ----------------------------------------------------------------------


def test_a_mistyped_part_is_suggested(saved: Path) -> None:
    report = refused(saved, {"modle": Net()}, holdtrue.RestoreError)
    assert codes(report, "error") == {"part-missing"}
    assert "'model'" in report.errors[0].fix


def test_parts_that_were_not_asked_for_are_a_note(saved: Path) -> None:
    report = holdtrue.open(saved).restore(model=Net())
    assert codes(report, "note") == {"parts-left"}
    finding = report.findings[0]
    assert "optimizer" in finding.places


@pytest.fixture
def rng_moved(saved: Path) -> Callable[..., bool]:
    def moved(**arguments: Any) -> bool:
        torch.manual_seed(5)
        before = torch.get_rng_state()
        holdtrue.open(saved).restore(**arguments)
        return not torch.equal(before, torch.get_rng_state())

    return moved


def test_random_states_come_back_with_an_optimizer_or_on_request(
    rng_moved: Callable[..., bool],
) -> None:
    parts = training(2)
    both = {"model": parts["model"], "optimizer": parts["optimizer"]}
    assert not rng_moved(model=parts["model"])
    assert rng_moved(**both)
    assert not rng_moved(**both, rng=False)
    assert rng_moved(model=parts["model"], rng=True)
    assert rng_moved(rng=True)


def test_every_report_says_what_where_and_what_to_do(saved: Path) -> None:
    for spoil, _ in BAD.values():
        parts = training(2)
        spoil(parts)
        with pytest.raises(holdtrue.RestoreError) as caught:
            holdtrue.open(saved).restore(**parts)
        for finding in caught.value.report.errors:
            assert finding.what
            assert finding.where
            assert finding.why
            assert finding.fix
