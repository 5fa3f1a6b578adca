"""Trainings that count in a hook, each beside a twin that keeps the count."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Made = tuple[dict[str, Any], Callable[..., Any]]
Count = dict[str, int]


def training(register: Callable[[nn.Sequential, torch.optim.Optimizer, Count], Any]) -> Made:
    """The hook is known to the model alone: the step names no variable of it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    count = {"n": 0}
    register(model, optimizer, count)

    def train_step() -> float:
        optimizer.zero_grad()
        loss: Tensor = model(torch.rand(4, 2)).square().mean()
        loss.backward()
        optimizer.step()
        return loss.item()

    return {"model": model, "optimizer": optimizer, "count": count}, train_step


def factor(count: Count) -> float:
    count["n"] += 1
    return 1 + count["n"] / 10


def forward(model: nn.Sequential, optimizer: Any, count: Count) -> None:
    model[0].register_forward_hook(lambda module, given, out: out * factor(count))


def forward_pre(model: nn.Sequential, optimizer: Any, count: Count) -> None:
    model[1].register_forward_pre_hook(lambda module, given: (given[0] * factor(count),))


def full_backward(model: nn.Sequential, optimizer: Any, count: Count) -> None:
    model[1].register_full_backward_hook(lambda module, given, out: (given[0] * factor(count),))


def parameter(model: nn.Sequential, optimizer: Any, count: Count) -> None:
    model[0].weight.register_hook(lambda gradient: gradient * factor(count))


def accumulated(model: nn.Sequential, optimizer: Any, count: Count) -> None:
    def scale(tensor: Tensor) -> None:
        assert tensor.grad is not None
        tensor.grad.mul_(factor(count))

    model[0].weight.register_post_accumulate_grad_hook(scale)


def optimizer_step(model: nn.Sequential, optimizer: torch.optim.Optimizer, count: Count) -> None:
    def change(changed: Any, args: Any, kwargs: Any) -> None:
        for group in changed.param_groups:
            group["lr"] = 0.05 / factor(count)

    optimizer.register_step_pre_hook(change)


def own_object(model: nn.Sequential, optimizer: Any, count: Count) -> None:
    class Scaling:
        def __init__(self) -> None:
            self.count = count

        def __call__(self, module: nn.Module, given: Any, out: Tensor) -> Tensor:
            return out * factor(self.count)

    model.register_forward_hook(Scaling())
