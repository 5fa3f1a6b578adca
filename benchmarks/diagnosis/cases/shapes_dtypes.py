"""Names that fit, and sizes or types that do not."""

from typing import Any

import torch
from torch import nn

from benchmarks.diagnosis.broken import At, Broken, Mended, Tell, variants
from benchmarks.diagnosis.checks import equal, holds
from benchmarks.diagnosis.models import (
    Attention,
    ConvNet,
    Mlp,
    Transformer,
    bert,
    gpt2,
    lived,
    llama,
    sequential,
    state,
)  # fmt: skip


@variants("conv", "sequential", "bert")
def other_number_of_classes(at: At, kind: str) -> Broken:
    """The head is new; everything else is wanted."""
    before, after = at.rng.sample(range(3, 12), 2)
    make: Any = {
        "conv": lambda n: ConvNet(8, n), "sequential": lambda n: sequential(6, n), "bert": bert,
    }[kind]  # fmt: skip
    head = {"conv": "fc.", "sequential": "head.", "bert": "classifier."}[kind]
    truth = state(lived(make(before)))
    return Broken(
        path=at.save(truth), finds="shape-mismatch", place=f"{head}weight",
        mend=holds(truth, but=head), targets={"model": make(after)},
        cause="size mismatch for|class(es)?\\b.*number|number of classes|head",
        cure="drop|head|classes|ignore_mismatched",
    )  # fmt: skip


@variants("gpt2", "llama", "plain")
def tokens_were_added(at: At, kind: str) -> Broken:
    make: Any = {"gpt2": gpt2, "llama": llama, "plain": lambda n: Transformer(8, n)}[kind]
    before = at.rng.choice((48, 64))
    truth = state(lived(make(before + at.rng.randint(1, 5))))
    place = {"gpt2": "wte", "llama": "embed_tokens", "plain": "embed_tokens"}[kind]
    return Broken(
        path=at.save(truth), finds="shape-mismatch", place=(place, "lm_head"),
        mend=Tell("vocab|token"), targets={"model": make(before)},
        cause="size mismatch for|vocab|tokens", cure="resize_token_embeddings|vocab",
    )  # fmt: skip


def other_channels(at: At) -> Broken:
    truth = state(lived(ConvNet(8, channels=3)))
    return Broken(
        path=at.save(truth), finds="shape-mismatch", place="stem.weight", mend=Tell("channel"),
        targets={"model": ConvNet(8, channels=at.rng.choice((1, 4)))},
        cause="size mismatch for|channel", cure="channel",
    )  # fmt: skip


def longer_sequences(at: At) -> Broken:
    truth = state(lived(Transformer(8, length=16)))
    return Broken(
        path=at.save(truth), finds="shape-mismatch", place="position_embeddings",
        mend=Tell("position|sequence|length"), targets={"model": Transformer(8, length=32)},
        cause="size mismatch for|position.*(length|sequence)|sequence",
        cure="interpolat|length|max_position",
    )  # fmt: skip


@variants("conv", "decoder", "mlp")
def another_width(at: At, kind: str) -> Broken:
    """Every shape differs: the model was built in another size."""
    make: Any = {
        "conv": ConvNet, "decoder": Transformer, "mlp": lambda w: Mlp(["fa", "fb"], [w, 2 * w, w]),
    }[kind]  # fmt: skip
    before, after = at.rng.sample((8, 12, 16, 20), 2)
    truth = state(lived(make(before)))
    return Broken(
        path=at.save(truth), finds="shape-mismatch", place=next(n for n in truth if "weight" in n),
        mend=Tell("size|width|wider|narrower|hidden"), targets={"model": make(after)},
        cause="size mismatch for|width|hidden size|other size",
        cure="width|hidden|config|build the",
    )  # fmt: skip


@variants("fewer here", "more here")
def other_depth(at: At, which: str) -> Broken:
    few, many = at.rng.randint(1, 2), at.rng.randint(3, 4)
    saved, here = (many, few) if which == "fewer here" else (few, many)
    truth = state(lived(Transformer(8, depth=saved)))
    return Broken(
        path=at.save(truth), finds="unexpected-keys" if saved > here else "missing-keys",
        place=f"blocks.{few}.", mend=Tell("layer|depth|block"),
        targets={"model": Transformer(8, depth=here)},
        cause="Missing key|Unexpected key|layers|depth", cure="layers|depth",
    )  # fmt: skip


@variants("file has Conv1D", "model has Conv1D")
def transposed(at: At, which: str) -> Broken:
    """GPT-2's Conv1D keeps weights the other way round."""
    from transformers.pytorch_utils import Conv1D

    width = at.rng.choice((6, 10))

    class Block(nn.Module):
        def __init__(self, conv: bool) -> None:
            super().__init__()
            self.c_fc = Conv1D(4 * width, width) if conv else nn.Linear(width, 4 * width)
            self.c_proj = Conv1D(width, 4 * width) if conv else nn.Linear(4 * width, width)

    saved = nn.Sequential(*(Block(which == "file has Conv1D") for _ in range(2)))
    target = nn.Sequential(*(Block(which == "model has Conv1D") for _ in range(2)))
    tensors = state(lived(saved))
    truth = {n: t.T.contiguous() if t.dim() == 2 else t for n, t in tensors.items()}
    return Broken(
        path=at.save(tensors), finds="transposed", place="c_fc.weight", mend=holds(truth),
        targets={"model": target}, cause="transpos", cure=r"transpos|\.T",
    )  # fmt: skip


@variants(
    ("fused file", None, True), ("fused file", 4, True), ("fused file", None, False),
    ("split file", None, True), ("split file", 4, True), ("split file", None, False),
)  # fmt: skip
def qkv(at: At, which: str, kv: int | None, bias: bool) -> Broken:
    """Query, key and value in one matrix or in three."""
    width = at.rng.choice((8, 12))
    fused, split = (Transformer(width, fused=f, kv=kv, bias=bias) for f in (True, False))
    saved, target = (fused, split) if which == "fused file" else (split, fused)
    tensors = state(lived(saved))
    truth: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        sizes = [width, kv or width, kv or width]
        if "qkv_proj" in name:
            for part, piece in zip("qkv", tensor.split(sizes), strict=True):
                truth[name.replace("qkv_proj", f"{part}_proj")] = piece
        elif any(f"{part}_proj" in name for part in "qkv"):
            if "q_proj" in name:
                pieces = [tensors[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
                truth[name.replace("q_proj", "qkv_proj")] = torch.cat(pieces)
        else:
            truth[name] = tensor
    return Broken(
        path=at.save(tensors), finds="qkv", place="_proj", mend=holds(truth),
        targets={"model": target}, cause="fused|split|query", cure="cat|chunk|split|fuse",
    )  # fmt: skip


class _Scaled(nn.Module):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.rand(shape))


@variants(((), (1,)), ((1,), ()))
def one_element(at: At, before: tuple[int, ...], after: tuple[int, ...]) -> Broken:
    """A number in a tensor without dimensions is not a vector of one."""
    truth = state(lived(_Scaled(before)))
    return Broken(
        path=at.save(truth), finds=("shape-mismatch", "one-element"), place="scale",
        mend=Tell("0-d|one element|one-element|scalar|dimension"),
        targets={"model": _Scaled(after)}, cause="size mismatch for|scalar|0-d|one element",
        cure="reshape|scalar|squeeze",
    )  # fmt: skip


def convolution_for_linear(at: At) -> Broken:
    """[out, in, 1, 1] against [out, in]: a 1×1 convolution became a linear layer."""
    into, out = at.rng.sample(range(3, 12), 2)
    saved = nn.Sequential(nn.Conv2d(into, out, 1))
    return Broken(
        path=at.save(state(saved)), finds="shape-mismatch", place="0.weight",
        mend=Tell(r"1.?[×x].?1|dimension|reshape|conv"),
        targets={"model": nn.Sequential(nn.Linear(into, out))},
        cause="size mismatch for|convolution|dimension", cure="squeeze|reshape",
    )  # fmt: skip


def another_rank(at: At) -> Broken:
    def lora(rank: int) -> nn.Module:
        return nn.ModuleDict(
            {"lora_A": nn.Linear(8, rank, bias=False), "lora_B": nn.Linear(rank, 8, bias=False)}
        )

    before, after = at.rng.sample((2, 4, 8, 16), 2)
    truth = {f"blk.{n}": t for n, t in state(lived(lora(before))).items()}
    return Broken(
        path=at.save(truth), finds="shape-mismatch", place="lora_", mend=Tell("rank"),
        targets={"model": nn.ModuleDict({"blk": lora(after)})}, cause="size mismatch for|rank",
        cure=r"rank|\br=",
    )  # fmt: skip


def _cast(truth: dict[str, torch.Tensor], dtype: torch.dtype) -> Mended:
    def check(seen: Any) -> bool:
        here = seen["model"].state_dict()
        return all(equal(here[n], t.to(here[n].dtype)) for n, t in truth.items())

    return Mended(check)


@variants(torch.float16, torch.bfloat16)
def narrower_here(at: At, dtype: torch.dtype) -> Broken:
    """float32 was saved; the model here is of half precision."""
    truth = state(lived(ConvNet(8)))
    return Broken(
        path=at.save(truth), finds="dtype-narrowed", place="stem.weight", mend=_cast(truth, dtype),
        targets={"model": ConvNet(8).to(dtype)}, cause="narrow|precision|float16",
        cure="float32|dtype|precision",
    )  # fmt: skip


def beyond_half_precision(at: At) -> Broken:
    """Values that become infinite in float16."""
    truth = state(lived(ConvNet(8)))
    truth["fc.weight"][0, at.rng.randrange(8)] = 1e5 * (1 + at.rng.random())
    return Broken(
        path=at.save(truth), finds="beyond-range", place="fc.weight", deep=True,
        mend=Tell("65504|range|inf|bfloat16|float32"), targets={"model": ConvNet(8).half()},
        cause="range|overflow|inf", cure="bfloat16|float32",
    )  # fmt: skip


@variants(
    (torch.complex64, torch.float32), (torch.float32, torch.int64), (torch.int8, torch.float32)
)  # fmt: skip
def another_kind_of_number(at: At, before: torch.dtype, after: torch.dtype) -> Broken:
    """load_state_dict casts without a word: halves of numbers, fractions and scales are lost."""

    class Table(nn.Module):
        def __init__(self, dtype: torch.dtype) -> None:
            super().__init__()
            self.line = nn.Linear(3, 2)
            turned = 1j if dtype.is_complex else 0
            self.register_buffer("table", (torch.rand(5, 3) * 90 + turned).to(dtype))

    return Broken(
        path=at.save(state(Table(before))), place="table",
        finds=("dtype-narrowed", "dtype-converted", "dtype-changed", "dtype-widened"),
        mend=Tell("complex|imaginary|integer|int8|fraction|scale|round"),
        targets={"model": Table(after)}, cause="dtype|complex|integer", cure="dtype|real|cast",
    )  # fmt: skip


def flattened(at: At) -> Broken:
    """Each parameter as one row of numbers: saved out of FSDP's or DeepSpeed's storage."""
    make = lambda: ConvNet(8)  # noqa: E731
    truth = state(lived(make()))
    tensors = {n: t.flatten() for n, t in truth.items()}
    return Broken(
        path=at.save(tensors), finds=("shape-mismatch", "flat"), place="stem.weight",
        mend=Tell("flat|1-D|one dimension|reshape"), targets={"model": make()},
        cause="size mismatch for|flat", cure="before wrapping|full|reshape",
    )  # fmt: skip


def attention_of_another_head_count(at: At) -> Broken:
    """Key and value of grouped heads against full ones."""
    width = at.rng.choice((8, 12))
    truth = state(lived(nn.ModuleDict({"attn": Attention(width, False, 4)})))
    return Broken(
        path=at.save(truth), finds="shape-mismatch", place="k_proj", mend=Tell("size|width|head"),
        targets={"model": nn.ModuleDict({"attn": Attention(width, False)})},
        cause="size mismatch for|head", cure="num_key_value|heads",
    )  # fmt: skip
