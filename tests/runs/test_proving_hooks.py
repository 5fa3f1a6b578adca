"""State that only a hook knows is found, and named by the place of the hook."""

from pathlib import Path
from typing import Any

import hooked
import pytest
import torch

import holdtrue

PLACES = {
    hooked.forward: "run.parts['model'].0._forward_hooks[0].__closure__['count']",
    hooked.forward_pre: "run.parts['model'].1._forward_pre_hooks[0].__closure__['count']",
    hooked.full_backward: "run.parts['model'].1._backward_hooks[0].__closure__['count']",
    hooked.parameter: "run.parts['model'].0.weight._backward_hooks[0].__closure__['count']",
    hooked.accumulated: (
        "run.parts['model'].0.weight._post_accumulate_grad_hooks[0].__closure__['count']"
    ),
    hooked.optimizer_step: (
        "run.parts['optimizer']._optimizer_step_pre_hooks[0].__closure__['count']"
    ),
    hooked.own_object: "run.parts['model']._forward_hooks[0].count",
}


@pytest.mark.parametrize("register", PLACES, ids=lambda register: register.__name__)
def test_what_a_hook_counts_is_named(register: Any, tmp_path: Path) -> None:
    parts, train_step = hooked.training(register)
    count = parts.pop("count")
    before = dict(count)
    (finding,) = holdtrue.prove_resume(holdtrue.Run(tmp_path, **parts), train_step).findings
    assert (finding.code, finding.confidence) == ("state-not-captured", "certain")
    assert finding.where == PLACES[register]
    if "__closure__" in finding.where:
        assert finding.command.endswith("model=model, optimizer=optimizer, count=count)")
    assert count == before


@pytest.mark.parametrize("register", PLACES, ids=lambda register: register.__name__)
def test_a_hook_whose_count_is_kept_is_no_finding(register: Any, tmp_path: Path) -> None:
    parts, train_step = hooked.training(register)
    assert holdtrue.prove_resume(holdtrue.Run(tmp_path, **parts), train_step).findings == ()


def test_a_hook_of_all_modules_is_followed(tmp_path: Path) -> None:
    parts, train_step = hooked.training(lambda model, optimizer, count: None)
    count = parts.pop("count")

    def scale(module: torch.nn.Module, given: Any, out: torch.Tensor) -> torch.Tensor:
        return out * hooked.factor(count)

    handle = torch.nn.modules.module.register_module_forward_hook(scale)
    try:
        (finding,) = holdtrue.prove_resume(holdtrue.Run(tmp_path, **parts), train_step).findings
    finally:
        handle.remove()
    place = "torch.nn.modules.module._global_forward_hooks[0].__closure__['count']"
    assert finding.where == place


def test_a_hook_that_takes_itself_off_is_put_back(tmp_path: Path) -> None:
    parts, train_step = hooked.training(lambda model, optimizer, count: None)
    del parts["count"]
    calls = iter(range(100))

    def once(module: torch.nn.Module, given: Any, out: torch.Tensor) -> torch.Tensor:
        if len(handles) and next(calls) == 4:
            handles.pop().remove()
        return out * 2

    handles: list[Any] = []
    handles.append(parts["model"].register_forward_hook(once))
    holdtrue.prove_resume(holdtrue.Run(tmp_path, **parts), train_step)
    assert len(parts["model"]._forward_hooks) == 1
