"""Trainings whose parts have names in this module, as a fresh process finds them."""

from typing import Any

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.Linear(2, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)

scale = None


def train_step(step: int) -> float:
    optimizer.zero_grad()
    loss = model(torch.rand(4, 2)).square().mean()
    loss.backward()
    optimizer.step()
    return loss.item()


def by_hash(step: int) -> float:
    return train_step(step) + hash("a word")  # another one in each process


def scaled(step: int) -> float:
    return train_step(step) * (scale or 1)


class Trainer:
    def __init__(self) -> None:
        self.net = nn.Linear(2, 1)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)

    def step(self) -> torch.Tensor:
        self.optimizer.zero_grad()
        loss: torch.Tensor = self.net(torch.rand(4, 2)).square().mean()
        loss.backward()
        self.optimizer.step()
        return loss


trainer = Trainer()


class Places:
    """Gives its position, as a loader does; an iterator is made anew after each resume."""

    def __init__(self) -> None:
        self.at = 0

    def __iter__(self) -> Any:
        while True:
            self.at += 1
            yield self.at / 10

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


places = Places()
iterator = iter(places)


def begin() -> None:
    global iterator
    iterator = iter(places)


def by_place(step: int) -> float:
    return train_step(step) * next(iterator)


def make() -> tuple[dict[str, Any], Any]:
    made = Trainer()
    return {"model": made.net, "optimizer": made.optimizer}, made.step
