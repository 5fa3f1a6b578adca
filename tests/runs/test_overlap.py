"""The copy that goes on beside the next forward and backward pass: exact, or it fails loudly."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import holdtrue
from holdtrue.runs import overlap


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """The copy behind does not begin before this is set."""
    go, real = threading.Event(), overlap.Deferred.copy

    def copy(self: Any, subject: str) -> None:
        assert go.wait(60)
        real(self, subject)

    monkeypatch.setattr(overlap.Deferred, "copy", copy)
    return go


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Linear(16, 2))


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), 0.1)


def fused(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), 0.1, fused=True)


def lbfgs(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.LBFGS(model.parameters(), max_iter=3)


def backward(parts: dict[str, Any]) -> torch.Tensor:
    parts["optimizer"].zero_grad()
    loss: torch.Tensor = parts["model"](torch.randn(8, 16)).square().mean()
    loss.backward()
    return loss


def advance(parts: dict[str, Any]) -> None:
    if isinstance(parts["optimizer"], torch.optim.LBFGS):
        parts["optimizer"].step(lambda: backward(parts))
    else:
        backward(parts)
        parts["optimizer"].step()


def state(parts: dict[str, Any], folder: Path) -> Path:
    """What the parts are now, kept apart from the run."""
    holdtrue.save(folder, **parts)
    return folder


def same(kept: Path, checkpoint: Path | str) -> bool:
    return holdtrue.diff(kept, checkpoint).equal


@pytest.mark.parametrize("make", [adam, fused, lbfgs])
def test_a_step_right_after_the_save_is_not_in_it(
    make: Callable[..., Any], tmp_path: Path, slow: threading.Event
) -> None:
    model = network()
    parts = {"model": model, "optimizer": make(model)}
    advance(parts)
    expected = state(parts, tmp_path / "expected")
    run = holdtrue.Run(tmp_path / "run", overlap=True, **parts)
    saving = run.save(1)
    backward(parts)  # changes BatchNorm's buffers and the random state; must not wait
    assert not saving.done
    threading.Timer(0.1, slow.set).start()
    advance(parts)  # waits
    run.close()
    assert same(expected, run.path)
    assert not same(expected, state(parts, tmp_path / "later"))


def test_two_optimizers_and_accumulated_gradients(tmp_path: Path, slow: threading.Event) -> None:
    gan = {"generator": network(), "critic": network()}
    parts: dict[str, Any] = {
        **gan,
        "first": adam(gan["generator"]),
        "second": torch.optim.SGD(gan["critic"].parameters(), lr=0.1, momentum=0.9),
    }

    def advance_both() -> None:
        for name, optimizer in (("generator", "first"), ("critic", "second")):
            parts[optimizer].zero_grad()
            for _ in range(2):
                parts[name](torch.randn(8, 16)).square().mean().backward()
            parts[optimizer].step()

    slow.set()
    advance_both()
    run = holdtrue.Run(tmp_path / "run", overlap=True, **parts)
    for step in (1, 2, 3):
        expected = state(parts, tmp_path / f"expected-{step}")
        run.save(step)
        advance_both()
        run.flush()
        assert same(expected, run.path)
    run.close()


@pytest.mark.parametrize("place", ["model/0.weight", "optimizer/0.weight.exp_avg"])
def test_what_is_changed_past_the_optimizer_fails_loudly(
    place: str, tmp_path: Path, slow: threading.Event
) -> None:
    model = network()
    parts: dict[str, Any] = {"model": model, "optimizer": adam(model)}
    advance(parts)
    run = holdtrue.Run(tmp_path / "run", overlap=True, **parts)
    run.save(1)
    weight = model[0].weight
    with torch.no_grad():
        (weight if "model" in place else parts["optimizer"].state[weight]["exp_avg"]).add_(1)
    slow.set()
    with pytest.raises(holdtrue.SaveError) as caught:
        run.flush()
    (finding,) = caught.value.report.findings
    assert finding.code == "changed-while-copied"
    assert "0.weight" in finding.where
    assert run.steps() == []
    run.save(1)
    advance(parts)
    run.close()
    assert run.steps() == [1]


def test_a_write_that_is_counted_late_is_found_before_publishing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch counts a write when it has ended; the copy may have ended before that."""
    model = network()
    parts: dict[str, Any] = {"model": model, "optimizer": adam(model)}
    real = overlap.Deferred.copy

    def copy(self: Any, subject: str) -> None:
        real(self, subject)
        torch.autograd.graph.increment_version(model[0].weight)

    run = holdtrue.Run(tmp_path / "run", overlap=True, **parts)
    monkeypatch.setattr(overlap.Deferred, "copy", copy)
    run.save(1)
    with pytest.raises(holdtrue.SaveError, match="changed-while-copied"):
        run.close()
    assert list(tmp_path.glob("run/step-*")) == []


def test_buffers_and_what_no_optimizer_has_are_copied_at_once(
    tmp_path: Path, slow: threading.Event
) -> None:
    model = network()
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "extra": torch.ones(3)}
    expected = state(parts, tmp_path / "expected")
    run = holdtrue.Run(tmp_path / "run", overlap=True, **parts)
    run.save(1)
    with torch.no_grad():
        model[2].weight.zero_()  # nobody steps it
        model[1].running_mean.fill_(7)
    parts["extra"].zero_()
    slow.set()
    run.close()
    assert same(expected, run.path)


def test_after_close_nothing_is_left_on_the_optimizer(tmp_path: Path) -> None:
    model = network()
    optimizer = adam(model)
    with holdtrue.Run(tmp_path / "run", overlap=True, model=model, optimizer=optimizer):
        assert optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_pre_hooks
