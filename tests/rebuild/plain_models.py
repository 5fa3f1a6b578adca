"""Plain models with nested constructor arguments, and whether each can be built again.

Each row: what it shows → (factory, inputs or None, expected way, or a part of the reason why not).
"""

import argparse
import enum
import functools
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import holdtrue


@dataclass
class Settings:
    width: int = 4
    sizes: list[int] = field(default_factory=lambda: [4, 4])
    dtype: torch.dtype = torch.float32


class Kind(enum.Enum):
    SMALL = 2
    LARGE = 4


Pair = namedtuple("Pair", "a b")


def double(x: torch.Tensor) -> torch.Tensor:
    return x * 2


class Block(nn.Module):
    """Nothing but attributes of the arguments' names."""

    def __init__(self, width: int, act: Any = F.relu, dropout: float = 0.1, bias: bool = True):
        super().__init__()
        self.width, self.act = width, act
        self.linear = nn.Linear(width, width, bias=bias)
        self.bias = bias
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.act(self.linear(x)))


class Silent(nn.Module):
    """Keeps no argument: nothing to match its signature with."""

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


@holdtrue.buildable
class Built(nn.Module):
    def __init__(self, *parts: Any, act: Any = F.relu, **named: Any):
        super().__init__()
        self.first = nn.ModuleList([p for p in parts if isinstance(p, nn.Module)])
        self.rest = [p for p in parts if not isinstance(p, nn.Module)]
        self.act_function = act() if isinstance(act, type) else act
        self.others = nn.ModuleDict({k: v for k, v in named.items() if isinstance(v, nn.Module)})
        self.extra = {k: v for k, v in named.items() if not isinstance(v, nn.Module)}
        self.out = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for module in (*self.first, *self.others.values()):
            x = module(x)
        return self.out(self.act_function(x))

    @classmethod
    def small(cls) -> "Built":
        return cls(nn.Linear(4, 4), act=torch.tanh)


class Inherits(Built):
    """Has no constructor of its own."""


class Overrides(Built):
    """Has one, and is not decorated."""

    def __init__(self, size: int):
        super().__init__(nn.Linear(size, size))


class Stack(nn.Module):
    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Typed(nn.Module):
    def __init__(self, width: int, norm: type[nn.Module] = nn.LayerNorm, dtype: Any = None):
        super().__init__()
        self.width = width
        self.norm = norm(width)
        self.scale = nn.Parameter(torch.ones(width, dtype=dtype))
        self.register_buffer("steps", torch.arange(width), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x) * self.scale + self.steps


class Configured(nn.Module):
    def __init__(self, settings: Settings, kind: Kind, pair: Pair, space: argparse.Namespace):
        super().__init__()
        self.settings, self.kind, self.pair, self.space = settings, kind, pair, space
        sizes = settings.sizes
        self.layers = nn.Sequential(*(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:])))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x) * self.kind.value


class Weighted(nn.Module):
    def __init__(self, weight: torch.Tensor, width: int = 4):
        super().__init__()
        self.register_buffer("weight", weight)
        self.width = width
        self.flat = [self.weight]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.flat[0]


class Recurrent(nn.Module):
    def __init__(self, hidden: int):
        super().__init__()
        self.hidden = hidden
        self.rnn = nn.LSTM(4, hidden, num_layers=2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rnn(x.unsqueeze(1))[0]


class Fixed(nn.Module):
    """Random numbers in its constructor, and a tensor that is registered nowhere."""

    def __init__(self, width: int):
        super().__init__()
        self.width = width
        self.shift = torch.full((width,), 0.5)
        self.linear = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) + self.shift


class Large(nn.Module):
    def __init__(self, width: int = 4):
        super().__init__()
        self.width = width
        self.table = torch.randn(40_000)
        self.linear = nn.Linear(width, width)


class Hidden(nn.Module):
    def __init__(self, width: int = 4):
        super().__init__()
        self.width = width
        self.hidden = [nn.Linear(width, width)]


class Raises(nn.Module):
    allowed = True

    def __init__(self, width: int = 4):
        super().__init__()
        if not Raises.allowed:
            raise RuntimeError("only once")
        Raises.allowed = False
        self.width = width


class LitLike(nn.Module):
    """As Lightning's modules: `hparams` holds the arguments of the constructor."""

    def __init__(self, width: int = 4, lr: float = 0.1):
        super().__init__()
        self.save_hyperparameters({"width": width, "lr": lr})
        self.layer = nn.Linear(width, width)

    def save_hyperparameters(self, values: dict[str, Any]) -> None:
        self.hparams = dict(values)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def head_replaced() -> nn.Module:
    model = Stack(Block(4), nn.Linear(4, 10))
    model.layers[1] = nn.Linear(4, 3)
    return model


def settings_changed() -> nn.Module:
    model = Stack(Block(4), Block(4))
    model.layers[1].dropout.p = 0.7
    model.layers[0].act = F.gelu
    return model


def cast_and_frozen() -> nn.Module:
    model = Stack(Block(4), Block(4)).to(torch.bfloat16)
    model.layers[0].requires_grad_(False)
    model.layers[1].eval()
    return model


def tied_later() -> nn.Module:
    model = Stack(nn.Linear(4, 4), nn.Linear(4, 4))
    model.layers[1].weight = model.layers[0].weight
    return model


def one_module_twice() -> nn.Module:
    block = Block(4)
    return Built(block, block)


def weight_norm() -> nn.Module:
    return Stack(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))


def layers_added() -> nn.Module:
    model = Block(4)
    model.adapter = nn.Linear(4, 4)
    return model


def layer_removed() -> nn.Module:
    model = Built(nn.Linear(4, 4), nn.Linear(4, 4))
    del model.first[1]
    return model


def channels_last() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(
        memory_format=torch.channels_last
    )


def lazy() -> nn.Module:
    model = nn.Sequential(nn.LazyLinear(4), nn.ReLU())
    model(torch.ones(2, 4))
    return model


def shared_settings() -> nn.Module:
    settings = Settings()
    return Built(settings, again=settings)


def x() -> torch.Tensor:
    return torch.linspace(-1, 1, 8).reshape(2, 4)


def image() -> torch.Tensor:
    return torch.linspace(-1, 1, 300).reshape(1, 3, 10, 10)


Row = tuple[Callable[[], nn.Module], Callable[[], torch.Tensor] | None, str]
MODELS: dict[str, Row] = {
    "attributes of the arguments' names": (lambda: Block(4), x, "signature"),
    "a functional activation": (lambda: Block(4, act=F.gelu), x, "signature"),
    "an activation of torch itself": (lambda: Block(4, act=torch.tanh), x, "signature"),
    "an activation module": (lambda: Block(4, act=nn.ELU(0.3)), x, "signature"),
    "a function of the caller's module": (lambda: Block(4, act=double), x, "signature"),
    "no bias": (lambda: Block(4, bias=False), x, "signature"),
    "a class as argument, matched with its instance": (
        lambda: Typed(4, nn.BatchNorm1d),
        x,
        "signature",
    ),
    "a dtype argument that is not kept": (lambda: Typed(4, dtype=torch.float64), x, "signature"),
    "layers as *args": (lambda: Stack(Block(4), nn.ReLU(), Stack(Block(4))), x, "signature"),
    "containers in containers": (
        lambda: nn.Sequential(nn.ModuleDict({"a": nn.ModuleList([Block(4)])}).a[0], nn.ReLU()),
        x,
        "signature",
    ),
    "a dataclass, an enum, a named tuple, a namespace": (
        lambda: Configured(
            Settings(sizes=[4, 6, 2]), Kind.LARGE, Pair(1, 2), argparse.Namespace(a=1)
        ),
        x,
        "signature",
    ),
    "a tensor argument that becomes a buffer": (
        lambda: Weighted(torch.arange(4.0)),
        x,
        "signature",
    ),
    "a recurrent layer": (lambda: Recurrent(4), x, "signature"),
    "torch's transformer": (
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(4, 2, 8, activation="gelu", batch_first=True), 2
        ),
        x,
        "signature",
    ),
    "a small tensor that is registered nowhere": (lambda: Fixed(4), x, "signature"),
    "a lazy layer after its first batch": (lazy, x, "signature"),
    "channels-last weights": (channels_last, image, "signature"),
    "@buildable: modules as *args": (lambda: Built(Block(4), nn.Linear(4, 4)), x, "buildable"),
    "@buildable: **kwargs, modules and values": (
        lambda: Built(act=nn.GELU, first=Block(4), size=torch.Size([2]), dtype=torch.float16),
        x,
        "buildable",
    ),
    "@buildable: a partial": (
        lambda: Built(act=functools.partial(F.leaky_relu, negative_slope=0.3)),
        x,
        "buildable",
    ),
    "@buildable: a classmethod factory": (Built.small, x, "buildable"),
    "@buildable: a subclass without a constructor": (lambda: Inherits(Block(4)), x, "buildable"),
    "@buildable: one module at two places": (one_module_twice, x, "buildable"),
    "@buildable: one object as two arguments": (shared_settings, x, "buildable"),
    "@buildable around a module that keeps nothing": (
        lambda: Built(Silent(4)),
        None,
        "no: Silent takes 'width'",
    ),
    "hyper-parameters, as Lightning keeps them": (lambda: LitLike(lr=0.3), x, "hparams"),
    "the head replaced after the constructor": (head_replaced, x, "signature"),
    "settings changed after the constructor": (settings_changed, x, "signature"),
    "a layer added after the constructor": (layers_added, x, "signature"),
    "a layer removed after the constructor": (layer_removed, x, "buildable"),
    "cast, partly frozen, partly in eval": (cast_and_frozen, None, "signature"),
    "weights tied after the constructor": (tied_later, x, "signature"),
    "an argument that is kept nowhere": (lambda: Silent(4), None, "no: Silent takes 'width'"),
    "a subclass whose own constructor is not decorated": (
        lambda: Overrides(4),
        None,
        "no: Overrides takes 'size'",
    ),
    "a lambda": (lambda: Block(4, act=lambda v: v), None, "no: argument/act"),
    "a local function": (
        lambda: Block(4, act=functools.wraps(double)(lambda v: v)),
        None,
        "no: argument/act",
    ),
    "weight norm put on after the constructor": (weight_norm, None, "no: a weight was parametr"),
    "a large tensor that is registered nowhere": (Large, None, "no: the model itself: table"),
    "layers in a plain list": (Hidden, None, "no: the model itself: hidden"),
    "a constructor that works once": (Raises, None, "no: "),
}


def table() -> str:
    """The rows as a Markdown table, for the documentation."""
    ways = {
        "signature": "yes, from its attributes",
        "buildable": "yes, from the recorded arguments",
        "hparams": "yes, from `hparams`",
    }
    rows = [
        f"| {name} | {ways.get(way, 'no, and says why')} |" for name, (_, _, way) in MODELS.items()
    ]
    return "\n".join(["| model | built again |", "|---|---|", *rows])
