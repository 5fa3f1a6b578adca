"""A small training script: handwritten digits, a convolutional network, and a holdtrue Run.

Its arguments are the run's directory and a file for the losses. Killed at any moment and started
again, it goes on as if nothing had happened.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import holdtrue

EPOCHS = 12
BATCH = 64


class DigitsNet(nn.Module):
    """8×8 grey images to ten classes: input [batch, 1, 8, 8], output [batch, 10] logits."""

    def __init__(self, width: int = 48, dropout: float = 0.25) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.head = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(2 * width * 16, 128), nn.ReLU(), nn.Linear(128, 10)
        )

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(images))
        return logits


def digits() -> tuple[TensorDataset, TensorDataset]:
    """Training and validation images; a fixed split, one in five for validation."""
    images, labels = load_digits(return_X_y=True)
    held_out = np.arange(len(labels)) % 5 == 0
    x = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    y = torch.tensor(labels)
    return TensorDataset(x[~held_out], y[~held_out]), TensorDataset(x[held_out], y[held_out])


def train(run_dir: Path, losses_file: Path, epochs: int = EPOCHS) -> None:
    """Train to the end, from wherever `run_dir` is; one JSON line for each step's loss."""
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)
    training, validation = digits()
    loader = DataLoader(training, BATCH, shuffle=True, drop_last=True)
    steps = len(loader)
    model = DigitsNet()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=epochs * steps)
    keep = holdtrue.Keep(last=2, best=1, by="val_loss")

    with holdtrue.Run(
        run_dir, keep=keep, model=model, optimizer=optimizer, scheduler=scheduler, loader=loader
    ) as run:
        step = run.resume()
        with losses_file.open("a") as log:
            for _ in range(step // steps, epochs):
                for images, labels in loader:
                    loss = nn.functional.cross_entropy(model(images), labels)
                    optimizer.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    scheduler.step()
                    step += 1
                    log.write(json.dumps({"step": step, "loss": float(loss.item()).hex()}) + "\n")
                    log.flush()
                run.save(step, metrics=evaluate(model, validation))


@torch.no_grad()
def evaluate(model: nn.Module, validation: TensorDataset) -> dict[str, float]:
    model.eval()
    images, labels = validation.tensors
    logits = model(images)
    model.train()
    return {
        "val_loss": nn.functional.cross_entropy(logits, labels).item(),
        "accuracy": (logits.argmax(1) == labels).float().mean().item(),
    }


def main(arguments: Sequence[str]) -> None:
    run_dir, losses_file = arguments
    torch.set_num_threads(1)  # for so small a network, a second thread costs more than it brings
    train(Path(run_dir), Path(losses_file))
