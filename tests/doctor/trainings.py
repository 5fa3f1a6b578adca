"""Real, short trainings, and their states as scripts save them."""

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.stem = nn.Linear(4, 8)
        self.norm = nn.BatchNorm1d(8)
        self.body = nn.Linear(8, 8)
        self.head = nn.Linear(8, classes)

    def forward(self, x):
        return self.head(torch.relu(self.body(self.norm(self.stem(x)))))


class Swapped(Net):
    """The same layers, two of them defined in another order."""

    def __init__(self):
        super().__init__()
        stem, body = self.stem, self.body
        del self.stem, self.body
        self.body, self.stem = body, stem


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    "plain-sgd": lambda p: torch.optim.SGD(p, 0.1),
    "adam": lambda p: torch.optim.Adam(p, 1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-3, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 1e-3, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, 1e-2),
    "adadelta": lambda p: torch.optim.Adadelta(p),
    "adamax": lambda p: torch.optim.Adamax(p),
    "nadam": lambda p: torch.optim.NAdam(p),
    "radam": lambda p: torch.optim.RAdam(p),
    "asgd": lambda p: torch.optim.ASGD(p),
    "rprop": lambda p: torch.optim.Rprop(p),
    "adafactor": lambda p: torch.optim.Adafactor(p),
    "lbfgs": lambda p: torch.optim.LBFGS(p),
}
L = torch.optim.lr_scheduler
SCHEDULERS = {
    "step": lambda o: L.StepLR(o, 3),
    "multi-step": lambda o: L.MultiStepLR(o, [3, 6]),
    "cosine": lambda o: L.CosineAnnealingLR(o, 20),
    "restarts": lambda o: L.CosineAnnealingWarmRestarts(o, 4),
    "one-cycle": lambda o: L.OneCycleLR(o, 0.1, total_steps=50),
    "cyclic": lambda o: L.CyclicLR(o, 1e-4, 1e-2, cycle_momentum=False),
    "lambda": lambda o: L.LambdaLR(o, lambda epoch: 0.9**epoch),
    "linear": lambda o: L.LinearLR(o),
    "polynomial": lambda o: L.PolynomialLR(o, 20),
    "exponential": lambda o: L.ExponentialLR(o, 0.9),
    "chained": lambda o: L.ChainedScheduler([L.ConstantLR(o), L.ExponentialLR(o, 0.9)]),
    "sequential": lambda o: L.SequentialLR(o, [L.LinearLR(o), L.CosineAnnealingLR(o, 20)], [4]),
}


def train(model, optimizer, scheduler=None, steps=8):
    torch.manual_seed(steps)
    batch = torch.randn(6, 4)

    def closure():
        optimizer.zero_grad()
        loss = model(batch).square().mean()
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)
        if scheduler is not None:
            scheduler.step()


def saved(path, model, optimizer=None, scheduler=None, **more):
    state = {"epoch": 8, "model": model.state_dict(), **more}
    if optimizer is not None:
        state["optimizer"] = optimizer.state_dict()
    if scheduler is not None:
        state["scheduler"] = scheduler.state_dict()
    torch.save(state, path)
    return path


def loud(report):
    """What is above a note."""
    return [f for f in report.findings if f.severity != "note"]


def codes(report):
    return {f.code for f in loud(report)}
