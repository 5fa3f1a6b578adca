"""The training states that are kept: built to a size, and spoiled before each load to prove it."""

import re
from collections.abc import Iterator
from typing import Any

import torch
from msgspec import Struct
from torch import nn

MIB, GIB = 1 << 20, 1 << 30
_SMALL = 2560  # float32: tensors of 10 KB


class Block(nn.Module):
    """One layer of a GPT: attention and feed-forward, each behind a norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = (
            t.view(batch, length, self.heads, -1).transpose(1, 2)
            for t in self.qkv(self.norm1(x)).chunk(3, dim=-1)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Gpt(nn.Module):
    """Embedding, layers, norm and head; no tied weights, which some of the others refuse."""

    def __init__(self, vocabulary: int, width: int, layers: int) -> None:
        super().__init__()
        self.vocabulary, self.width, self.layers = vocabulary, width, layers
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.Sequential(*[Block(width, max(1, width // 64)) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.blocks(self.embedding(tokens))))


class State(Struct, eq=False):
    """A model and its optimizer, or thousands of small tensors without one."""

    name: str
    model: nn.Module
    optimizer: torch.optim.Optimizer | None
    nbytes: int  # of all tensors

    @property
    def parts(self) -> dict[str, Any]:
        """As holdtrue takes them."""
        found: dict[str, Any] = {"model": self.model}
        if self.optimizer is not None:
            found["optimizer"] = self.optimizer
        return found

    def state_dicts(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dicts(self, found: dict[str, Any]) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(found[name])

    def flat(self) -> dict[str, torch.Tensor]:
        """Every tensor under one name: what formats of tensors alone are given. The optimizer's
        numbers beside tensors (learning rates, betas) are not among them."""
        found = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        if self.optimizer is not None:
            for index, of_one in self.optimizer.state_dict()["state"].items():
                for name, tensor in of_one.items():
                    found[f"optimizer.{index}.{name}"] = tensor
        return found

    def change(self) -> None:
        """As a step of training would: no file of the save before can be taken again."""
        with torch.no_grad():
            for tensor in self.flat().values():
                tensor.view(-1)[:1].add_(1)

    def spoil(self) -> list[float]:
        """Overwrite both ends of every tensor; returns what they were, for `check`."""
        with torch.no_grad():
            before = _ends(self)
            for tensor in self.flat().values():
                tensor.view(-1)[0] = tensor.view(-1)[-1] = -12345.0
        return before

    def put_back(self, before: list[float]) -> None:
        """What `spoil` took away, after a load that failed."""
        ends = iter(before)
        with torch.no_grad():
            for tensor in self.flat().values():
                tensor.view(-1)[0] = next(ends)
                tensor.view(-1)[-1] = next(ends)

    def check(self, before: list[float]) -> None:
        """Raises RuntimeError where a load has not brought back what `spoil` took away."""
        wrong = sum(a != b for a, b in zip(before, _ends(self), strict=True))
        if wrong:
            raise RuntimeError(f"{wrong} of {len(before)} values looked at were not restored")


def _ends(state: State) -> list[float]:
    flat = [tensor.detach().view(-1) for tensor in state.flat().values()]
    return torch.stack([end for tensor in flat for end in (tensor[0], tensor[-1])]).tolist()


def sizes(text: str) -> str:
    """One size as it is named everywhere: `1 GiB`, `128 MiB`, `5000 x 10 KB`. Raises ValueError."""
    asked = text.replace(" ", "").lower()
    if found := re.fullmatch(r"(\d+)(x10kb)?", asked):
        return f"{int(found[1])} x 10 KB"
    if found := re.fullmatch(r"(\d+)(mib|gib)", asked):
        return f"{int(found[1])} {'MiB' if found[2] == 'mib' else 'GiB'}"
    raise ValueError(f"{text!r} is no size: say 1GiB, 128MiB, or 5000x10KB")


def about(name: str) -> int:
    """The bytes of the state of that name, more or less, before it is built."""
    count, unit = name.split()[:2]
    return int(count) * {"GiB": GIB, "MiB": MIB, "x": 4 * _SMALL}[unit]


def build(name: str, seed: int = 0) -> State:
    """The state of that name."""
    torch.manual_seed(seed)
    count, unit = int(name.split()[0]), name.split()[1]
    if unit == "x":
        many = nn.ParameterList([nn.Parameter(torch.randn(_SMALL)) for _ in range(count)])
        return _counted(name, many, None)
    model = shaped(count * (GIB if unit == "GiB" else MIB))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return _counted(name, model, optimizer)


def shaped(nbytes: int) -> Gpt:
    """A model that is about so many bytes together with AdamW's two moments."""
    width = 1024 if nbytes >= GIB // 2 else 512 if nbytes >= 64 * MIB else 128
    vocabulary = 8 * width
    parameters = nbytes // 12  # float32, and two moments
    layers = max(1, round((parameters - 2 * vocabulary * width) / (12 * width * width)))
    return Gpt(vocabulary, width, layers)


def tensors_of(state: State) -> Iterator[torch.Tensor]:
    yield from state.flat().values()


def _counted(name: str, model: nn.Module, optimizer: torch.optim.Optimizer | None) -> State:
    state = State(name, model, optimizer, 0)
    state.nbytes = sum(t.numel() * t.element_size() for t in state.flat().values())
    return state
