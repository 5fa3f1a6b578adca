"""Trainings that forget something, each beside a twin that does not."""

import functools
import itertools
import os
import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

Made = tuple[dict[str, Any], Callable[..., Any]]

COUNT = 0
SEEN: dict[str, float] = {}
SCALE = None


def training(factor: Callable[[int], float], **parts: Any) -> Made:
    """A small training whose loss is multiplied by a factor that a plant decides."""
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def train_step(step: int) -> float:
        optimizer.zero_grad()
        loss = (model(torch.rand(4, 2)) * (1 + factor(step))).square().mean()
        loss.backward()
        optimizer.step()
        return loss.item()

    return {"model": model, "optimizer": optimizer, **parts}, train_step


def torch_generator(kept: bool) -> Made:
    own = torch.Generator().manual_seed(1)
    parts = {"own": own} if kept else {}
    return training(lambda step: torch.rand((), generator=own).item(), **parts)


def numpy_generator(kept: bool) -> Made:
    own = np.random.default_rng(1)
    return training(lambda step: own.random(), **({"own": own} if kept else {}))


def python_generator(kept: bool) -> Made:
    own = random.Random(1)
    return training(lambda step: own.random(), **({"own": own} if kept else {}))


def global_counter(kept: bool) -> Made:
    def factor(step: int) -> float:
        global COUNT
        COUNT += 1
        return (step if kept else COUNT) / 10

    return training(factor)


def module_cache(kept: bool) -> Made:
    SEEN.clear()

    def factor(step: int) -> float:
        SEEN["mean"] = 0.9 * SEEN.get("mean", 0.0) + 0.1 * step
        return SEEN["mean"]

    return training(factor, **({"seen": SEEN} if kept else {}))


class Trainer:
    """Its step is a method; what it counts is an attribute of its own."""

    def __init__(self) -> None:
        self.parts, self._step = training(self.factor)
        self.average, self.told = 0.0, 0

    def factor(self, step: int) -> float:
        self.average = 0.5 * self.average + 0.1
        self.told += 1  # changes, and decides nothing
        return self.average

    def train_step(self, step: int) -> float:
        value: float = self._step(step)
        return value


def attribute(kept: bool) -> Made:
    trainer = Trainer()
    kept_parts = {"average": SimpleNamespace()} if kept else {}
    if kept:
        trainer.factor = lambda step: 0.1 * step  # type: ignore[method-assign]
        trainer.parts, trainer._step = training(trainer.factor)
    return {**trainer.parts, **kept_parts}, trainer.train_step


def closure_cell(kept: bool) -> Made:
    calls = 0

    def factor(step: int) -> float:
        nonlocal calls
        calls += 1
        return (step if kept else calls) / 10

    return training(factor)


def default_argument(kept: bool) -> Made:
    def factor(step: int, history: list[float] = []) -> float:
        history.append(step / 10)
        return sum(history) / 10

    return training(factor, **({"history": factor.__defaults__[0]} if kept else {}))


def list_position(kept: bool) -> Made:
    values = [i / 10 for i in range(1000)]
    places = iter(values)
    return training(lambda step: values[step] if kept else next(places))


def opaque_position(kept: bool) -> Made:
    count = itertools.count()
    return training(lambda step: (step if kept else next(count)) / 10)


def generator_position(kept: bool) -> Made:
    def numbers() -> Iterator[float]:
        for i in range(10_000):
            yield i / 10

    made = numbers()
    return training(lambda step: step / 10 if kept else next(made))


def loader_position(kept: bool) -> Made:
    data = TensorDataset(torch.arange(1000.0) / 1000)
    batches = iter(DataLoader(data, batch_size=1, shuffle=True))
    return training(lambda step: data.tensors[0][step].item() if kept else next(batches)[0].item())


def clock(kept: bool) -> Made:
    return training(lambda step: 0.1 if kept else time.perf_counter() % 1)


def entropy(kept: bool) -> Made:
    return training(lambda step: 0.1 if kept else os.urandom(1)[0] / 256)


def unknown_chance(kept: bool) -> Made:
    return training(lambda step: 0.1 if kept else torch.Generator().seed() % 97 / 97)


def environment_variable(kept: bool) -> Made:
    os.environ.pop("FORGETFUL", None)

    def factor(step: int) -> float:
        count = int(os.environ.get("FORGETFUL", "0"))
        os.environ["FORGETFUL"] = str(count + 1)
        return (step if kept else count) / 10

    return training(factor)


def scheduler(kept: bool) -> Made:
    parts, train_step = training(lambda step: 0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(parts["optimizer"], 0.9)
    made = torch.optim.lr_scheduler.LambdaLR(parts["optimizer"], lambda e: 1 / (1 + e))
    del schedule

    def scheduled(step: int) -> float:
        value: float = train_step(step)
        made.step()
        return value

    return {**parts, **({"scheduler": made} if kept else {})}, scheduled


def gradients(kept: bool) -> Made:
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def train_step() -> torch.Tensor:
        if kept:
            optimizer.zero_grad()
        loss: torch.Tensor = model(torch.rand(4, 2)).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    return {"model": model, "optimizer": optimizer}, train_step


def norm_momentum(kept: bool) -> Made:
    norm = nn.BatchNorm1d(2)
    model = nn.Sequential(norm, nn.Dropout(0.5))

    def factor(step: int) -> float:
        if not kept:
            norm.momentum *= 0.9
        value: torch.Tensor = model(torch.rand(4, 2)).sum() / 10 + norm.running_mean.sum()
        return value.item()

    return training(factor, norm=model)


def module_attribute(kept: bool) -> Made:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("kept", torch.zeros(()))
            self.calls = 0

        def forward(self) -> torch.Tensor:
            self.calls += 1
            self.kept += 1
            return (self.kept if kept else torch.tensor(float(self.calls))) / 10

    module = Counting()
    return training(lambda step: module().item(), counting=module)


def first_batch(kept: bool) -> Made:
    """Set once, by whatever comes first: the same for the rest of this process."""
    global SCALE
    SCALE = None

    def factor(step: int) -> float:
        global SCALE
        if SCALE is None:
            SCALE = 0.25 if kept else (step + 1) / 8
        return SCALE

    return training(factor)


def cached_function(kept: bool) -> Made:
    @functools.lru_cache
    def draw(place: int) -> float:
        return torch.rand(()).item()

    return training(lambda step: 0.1 if kept else draw(step // 4))


def loose_tensor(kept: bool) -> Made:
    average = torch.zeros(())

    def factor(step: int) -> float:
        average.mul_(0.9).add_(0.1 * step)
        return average.item()

    return training(factor, **({"average": average} if kept else {}))


def history(kept: bool) -> Made:
    last: deque[float] = deque(maxlen=3)

    def factor(step: int) -> float:
        last.append(step / 10)
        return sum(last)

    return training(factor, **({"last": last} if kept else {}))


def class_attribute(kept: bool) -> Made:
    class Settings:
        calls = 0

    def factor(step: int) -> float:
        Settings.calls += 1
        return (step if kept else Settings.calls) / 10

    return training(factor)


def log_only(kept: bool) -> Made:
    """Changes much that decides nothing: is no reason for a finding."""
    log: list[float] = []
    seen = {"calls": 0}

    def factor(step: int) -> float:
        log.append(time.time())
        seen["calls"] += 1
        return 0.1

    return training(factor)


def file_count(folder: Path, most: int = 10**6) -> Made:
    """Counts in a file, up to `most`: then the steps repeat, whatever is tried just then."""
    place = folder / "count"
    place.write_text("0")

    def factor(step: int) -> float:
        count = int(place.read_text())
        place.write_text(str(min(count + 1, most)))
        return count / 10

    return training(factor)
