"""Keep the preprocessing beside the model that was trained with it.

    python examples/preprocessor.py [directory]

A network that expects standardised inputs is worth little without the mean and the standard
deviation. Here they live in an ordinary object, which is kept as one more part.
"""

import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

import holdtrue


class Standardizer:
    """Learns mean and standard deviation; nothing in it knows about checkpoints."""

    def __init__(self) -> None:
        self.mean = torch.zeros(3)
        self.std = torch.ones(3)

    def fit(self, x: Tensor) -> None:
        self.mean, self.std = x.mean(0), x.std(0)

    def __call__(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def main(directory: Path) -> None:
    torch.manual_seed(0)
    data = torch.randn(100, 3) * torch.tensor([1.0, 20.0, 0.1]) + torch.tensor([5.0, -3.0, 0.0])
    prepare, model = Standardizer(), nn.Linear(3, 2)
    prepare.fit(data)
    expected = model(prepare(data))

    holdtrue.save(directory / "model", model=model, prepare=prepare, classes=["cat", "dog"])

    # Another day, another process:
    fresh, again = nn.Linear(3, 2), Standardizer()
    checkpoint = holdtrue.open(directory / "model")
    checkpoint.restore(model=fresh, prepare=again)

    assert torch.equal(fresh(again(data)), expected)
    print(f"classes {checkpoint['classes']}, mean {again.mean.tolist()}")
    print("the same outputs, bit for bit")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()))
