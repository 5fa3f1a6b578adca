"""Real models of many kinds, small, with names and sizes by chance."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.diagnosis.broken import At

Factory = Callable[[], nn.Module]


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.act = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.act(self.norm(self.conv(x)))


class ConvNet(nn.Module):
    def __init__(self, width: int = 8, classes: int = 5, channels: int = 3, depth: int = 2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.layers = nn.Sequential(*(Residual(width) for _ in range(depth)))
        self.fc = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.layers(self.bn1(self.stem(x))).mean((2, 3)))


class Mlp(nn.Module):
    """Layers under names by chance, all of other shapes."""

    def __init__(self, names: list[str], widths: list[int]) -> None:
        super().__init__()
        self.names = names
        for name, before, after in zip(names, widths, widths[1:], strict=False):
            self.add_module(name, nn.Linear(before, after))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name in self.names:
            x = torch.tanh(getattr(self, name)(x))
        return x


class Attention(nn.Module):
    def __init__(self, width: int, fused: bool, kv: int | None = None, bias: bool = True) -> None:
        super().__init__()
        kv = kv or width
        if fused:
            self.qkv_proj = nn.Linear(width, width + 2 * kv, bias=bias)
        else:
            self.q_proj = nn.Linear(width, width, bias=bias)
            self.k_proj = nn.Linear(width, kv, bias=bias)
            self.v_proj = nn.Linear(width, kv, bias=bias)
        self.out_proj = nn.Linear(width, width, bias=bias)


class Transformer(nn.Module):
    """Parameters of a decoder, as state dicts see it; never called."""

    def __init__(
        self, width: int = 12, vocabulary: int = 40, length: int = 16, depth: int = 2,
        fused: bool = False, kv: int | None = None, bias: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.embed_tokens = nn.Embedding(vocabulary, width)
        self.position_embeddings = nn.Embedding(length, width)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "attn": Attention(width, fused, kv, bias),
                    "norm": nn.LayerNorm(width),
                    "mlp": nn.Linear(width, 4 * width),
                    "back": nn.Linear(4 * width, width),
                }
            )
            for _ in range(depth)
        )
        self.lm_head = nn.Linear(width, vocabulary, bias=False)


def sequential(width: int = 6, classes: int = 3) -> nn.Sequential:
    """Only classes of torch: can be pickled whole and read anywhere."""
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(1, width, 3),
            norm=nn.BatchNorm2d(width),
            act=nn.ReLU(),
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            head=nn.Linear(width, classes),
        )
    )


def any_model(at: At) -> Factory:
    """A kind of model, and sizes, by chance."""
    rng = at.rng
    kind = rng.choice(("conv", "mlp", "decoder", "sequential"))
    width = rng.choice((8, 12, 16))
    if kind == "conv":
        classes, depth = rng.randint(3, 9), rng.randint(1, 3)
        return lambda: ConvNet(width, classes, depth=depth)
    if kind == "mlp":
        names = list(OrderedDict.fromkeys(at.word(3) for _ in range(rng.randint(3, 5))))
        widths = rng.sample(range(3, 40), len(names) + 1)
        return lambda: Mlp(names, widths)
    if kind == "decoder":
        vocabulary, depth = rng.randint(30, 90), rng.randint(1, 3)
        return lambda: Transformer(width, vocabulary, depth=depth)
    classes = rng.randint(2, 9)
    return lambda: sequential(width, classes)


def lived(model: nn.Module) -> nn.Module:
    """The model with values as after some training: nothing is left as it was initialised."""
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            if name.endswith("num_batches_tracked"):
                tensor.fill_(417)
            elif name.endswith("running_var"):
                tensor.uniform_(0.3, 2.0)
            elif tensor.is_floating_point():
                tensor.add_(torch.randn_like(tensor) * 0.05)
    return model


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy that later changes of the model do not reach."""
    return OrderedDict((k, v.detach().clone()) for k, v in model.state_dict().items())


def _hush() -> None:
    """No bars and no advice while files are made."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def bert(seed_labels: int = 0) -> nn.Module:
    """A tiny BERT from its configuration; with labels, a classifier on top."""
    from transformers import BertConfig, BertForSequenceClassification, BertModel

    _hush()

    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=24, num_labels=seed_labels or 2,
    )  # fmt: skip
    return BertForSequenceClassification(config) if seed_labels else BertModel(config)


def gpt2(vocabulary: int = 60) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    _hush()
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=vocabulary, n_positions=20, n_embd=16, n_layer=2, n_head=2)
    )


def llama(vocabulary: int = 64, tied: bool = False) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    _hush()
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=tied,
        )
    )


def steps(model: nn.Module, optimizer: Any, scheduler: Any = None, count: int = 3) -> None:
    """Real steps of the optimizer, with gradients by chance: any model, no data."""
    for _ in range(count):
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    optimizer.zero_grad()
