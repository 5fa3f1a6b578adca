"""A training that is asked to stop."""

import random
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

import holdtrue

STEPS = 12


def train(place: str, diary: str, workers: int, pause: float) -> None:
    """Says in `diary` which step begins, and makes it last: a signal is to come in its middle."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters(), 0.1)
    data = TensorDataset(torch.arange(48.0).reshape(12, 4) / 48)
    run = holdtrue.Run(place, preemption=True, model=model, optimizer=optimizer)
    first = run.resume()
    batches = iter(DataLoader(data, num_workers=workers)) if workers else None
    for step in range(first, STEPS):
        batch = next(batches)[0] if batches else data.tensors[0][step : step + 1]
        with Path(diary).open("a") as file:
            file.write(f"{step}\n")
        time.sleep(pause)
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()
        run.stop_if_asked(step + 1)
    run.save(STEPS)
    run.close()
