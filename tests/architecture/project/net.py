"""Models for the mutation tests: read as text, edited, and imported from a directory of its own."""

import math
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from shaping import gate, pool
from torch import Tensor, nn

SCALE = 0.5
TABLE = {"floor": 0.01, "ceiling": 6.0}


def activation(x: Tensor, slope: float = 0.1) -> Tensor:
    """Leaky, so that nothing dies."""
    # the slope is small
    return F.leaky_relu(x, slope)


def scaled(factor):
    def apply(x):
        return x * factor

    return apply


class Residual(nn.Module):
    expansion = 2

    def __init__(self, width: int, act: str = "relu") -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, stride=1, groups=1)
        self.norm = nn.BatchNorm2d(width, eps=1e-5, momentum=0.1)
        self.act = getattr(F, act)
        self.squash = lambda x: x.clamp(-5, 5)
        self.gain = scaled(1.5)
        self.alpha = 0.7

    @property
    def strength(self):
        return self.alpha * 2

    def mix(self, x, y):
        return x + self.strength * y

    def forward(self, x: Tensor) -> Tensor:
        out = self.act(self.norm(self.conv(x)))
        out = self.gain(self.squash(out)) * self.expansion
        return self.mix(x, out)


class Vision(nn.Module):
    """8×8 images to logits."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1, dilation=1, bias=True),
            nn.GroupNorm(2, width),
            nn.ReLU(inplace=False),
            nn.AvgPool2d(2),
            nn.Dropout(0.1),
        )
        self.body = nn.ModuleList([Residual(width), Residual(width)])
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.norm = nn.LayerNorm([width, 8, 8], eps=1e-5)
        self.head = nn.Linear(width, 3)
        self.softmax = nn.Softmax(dim=1)
        self.register_buffer("mean", torch.zeros(1))
        self.size = 8
        self.extra = torch.arange(3.0)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        x = activation(self.stem(x - self.mean)) * SCALE
        for block in self.body:
            x = block(x)
        x = self.norm(self.up(x)) * scale
        x = gate(x).clamp(TABLE["floor"], TABLE["ceiling"])
        hidden = F.relu(pool(x))
        return self.softmax(self.head(hidden))

    def describe(self) -> str:
        return f"{self.size} wide"


class Text(nn.Module):
    """Token numbers to the next token's logits; embedding and output share their weight."""

    def __init__(self, words: int = 11, width: int = 8) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width, padding_idx=0, max_norm=None)
        self.rnn = nn.LSTM(width, width, num_layers=1, batch_first=True)
        self.attend = nn.MultiheadAttention(width, num_heads=2, batch_first=True)
        self.causal = True
        self.out = nn.Linear(width, words, bias=False)
        self.out.weight = self.embed.weight
        self.root = math.sqrt(width)

    def forward(self, tokens: Tensor) -> Tensor:
        x, _ = self.rnn(self.embed(tokens) * self.root)
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1) if self.causal else None
        y, _ = self.attend(x, x, x, attn_mask=mask)
        return self.out(x + y)


GAIN = 1.0


class Outside(nn.Module):
    """Depends on what is not part of it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.grid = torch.zeros(600_000)

    def folder(self) -> str:
        return str(Path(__file__).parent)

    def namespace(self):
        return globals()

    def forward(self, x: Tensor) -> Tensor:
        gain = float(os.environ.get("NET_GAIN", "1")) * globals()["GA" + "IN"]
        kept = Path(self.folder()) / "gain.txt"
        if kept.exists():
            gain *= float(kept.read_text())
        return self.norm(x) * gain + self.grid[:4]
