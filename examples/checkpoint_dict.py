"""Keep the dict that a training script has always kept.

    python examples/checkpoint_dict.py [directory]

Many scripts gather state_dicts in one dict, and load them with `load_state_dict`. Such a dict is a
value as any other: it comes back as it was, and no line of the loading code has to change.
"""

import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

import holdtrue


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    optimizer.zero_grad()
    loss = model(torch.ones(4, 3)).square().mean()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def main(directory: Path) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    losses = [step(model, optimizer) for _ in range(3)]

    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "losses": losses,
    }
    holdtrue.save(directory / "checkpoint", state=state)

    loaded = holdtrue.open(directory / "checkpoint")["state"]
    fresh = nn.Linear(3, 2)
    other = torch.optim.Adam(fresh.parameters())
    fresh.load_state_dict(loaded["model"])
    other.load_state_dict(loaded["optimizer"])

    assert loaded["losses"] == losses
    assert [step(fresh, other) for _ in range(5)] == [step(model, optimizer) for _ in range(5)]
    print(f"resumed after epoch {loaded['epoch']}: the next five losses are equal")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()))
