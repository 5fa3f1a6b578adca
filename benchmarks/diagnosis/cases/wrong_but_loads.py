"""Loads without an error, and is not what was meant."""

from copy import deepcopy
from typing import Any

import torch
from torch import nn

from benchmarks.diagnosis.broken import At, Broken, Tell, variants
from benchmarks.diagnosis.checks import holds
from benchmarks.diagnosis.models import (
    ConvNet,
    Transformer,
    any_model,
    gpt2,
    lived,
    sequential,
    state,
    steps,
)  # fmt: skip

_EARLIER = "earlier|previous|before|last good|another checkpoint"


def _file(at: At, tensors: dict[str, torch.Tensor]) -> Any:
    """Any format, by chance."""
    from safetensors.torch import save_file

    kind = at.rng.choice(("zip", "legacy", "safetensors", "nested"))
    if kind == "safetensors":
        path = at.path(".safetensors")
        save_file({n: t.contiguous() for n, t in tensors.items()}, path)
        return path
    value = {"state_dict": tensors, "epoch": 3} if kind == "nested" else tensors
    return at.save(value, _use_new_zipfile_serialization=kind != "legacy")


@variants(
    (float("nan"), torch.float32), (float("inf"), torch.float32), (float("-inf"), torch.float32),
    (float("nan"), torch.bfloat16), (float("inf"), torch.float16),
)  # fmt: skip
def not_a_number(at: At, value: float, dtype: torch.dtype) -> Broken:
    """Training diverged, and went on being saved."""
    tensors = {
        n: t.to(dtype) if t.is_floating_point() else t for n, t in state(lived(ConvNet(8))).items()
    }
    name = at.rng.choice([n for n, t in tensors.items() if n.endswith("weight") and t.dim() > 1])
    flat = tensors[name].flatten()
    for _ in range(at.rng.randint(1, 5)):
        flat[at.rng.randrange(flat.numel())] = value
    tensors[name] = flat.reshape(tensors[name].shape)
    finds = "nan" if value != value else "infinite"
    return Broken(
        path=_file(at, tensors), finds=finds, place=name, deep=True, mend=Tell(_EARLIER),
        cause=finds[:3], cure=_EARLIER,
    )  # fmt: skip


def diverged_everywhere(at: At) -> Broken:
    tensors = state(lived(any_model(at)()))
    tensors = {
        n: torch.full_like(t, float("nan")) if t.is_floating_point() else t
        for n, t in tensors.items()
    }
    return Broken(
        path=_file(at, tensors), finds="nan", place=next(iter(tensors)), deep=True,
        mend=Tell(_EARLIER), cause="nan", cure=_EARLIER,
    )  # fmt: skip


@variants("conv", "linear")
def weights_all_zero(at: At, which: str) -> Broken:
    tensors = state(lived(ConvNet(8)))
    name = "layers.0.conv.weight" if which == "conv" else "fc.weight"
    tensors[name].zero_()
    return Broken(
        path=_file(at, tensors), finds="all-zero", place=name, deep=True,
        mend=Tell(_EARLIER + "|again"), cause="zero", cure=_EARLIER,
    )  # fmt: skip


def weights_all_equal(at: At) -> Broken:
    tensors = state(lived(ConvNet(8)))
    tensors["layers.0.conv.weight"].fill_(at.rng.random())
    return Broken(
        path=_file(at, tensors), finds="constant", place="layers.0.conv.weight", deep=True,
        mend=Tell("initiali|trained|" + _EARLIER), cause="constant|equal", cure=_EARLIER,
    )  # fmt: skip


@variants(-0.5, 0.0, float("nan"))
def dead_batchnorm(at: At, value: float) -> Broken:
    tensors = state(lived(ConvNet(8)))
    name = at.rng.choice(("bn1.running_var", "layers.1.norm.running_var"))
    tensors[name][at.rng.randrange(8)] = value
    if value == 0.0:
        tensors[name].zero_()
    return Broken(
        path=_file(at, tensors), finds=("batchnorm", "nan") if value != value else "batchnorm",
        place=name, deep=True, mend=Tell("statistic|calibrat|BatchNorm|variance|" + _EARLIER),
        cause="variance|running_var", cure="calibrat|" + _EARLIER,
    )  # fmt: skip


def denormals(at: At) -> Broken:
    """Weights that decayed to where arithmetic is slow and about nothing is left."""
    tensors = state(lived(ConvNet(8)))
    tensors["layers.0.conv.weight"].mul_(1e-41)
    return Broken(
        path=_file(at, tensors), finds="denormal", place="layers.0.conv.weight", deep=True,
        mend=Tell("denormal|flush|decay|" + _EARLIER), cause="denormal", cure="flush|decay",
    )  # fmt: skip


def adapter_that_does_nothing(at: At) -> Broken:
    tensors = {}
    for i in range(3):
        tensors[f"base_model.model.h.{i}.q_proj.lora_A.weight"] = torch.randn(4, 16)
        tensors[f"base_model.model.h.{i}.q_proj.lora_B.weight"] = torch.zeros(16, 4)
    return Broken(
        path=_file(at, tensors), finds="lora-zero", place="lora_B", deep=True,
        mend=Tell("train|nothing|zero|matched"), cause="lora.*zero|zero.*lora", cure="train",
    )  # fmt: skip


def embedding_rows_never_trained(at: At) -> Broken:
    """Tokens were added after training: their rows are zero."""
    tensors = state(lived(Transformer(8, 60)))
    tensors["embed_tokens.weight"][-at.rng.randint(4, 9) :] = 0
    return Broken(
        path=_file(at, tensors), finds="embedding-rows", place="embed_tokens.weight", deep=True,
        mend=Tell("row|token|train"), cause="row|token", cure="train|resize",
    )  # fmt: skip


@variants("negative", "nan", "exploded")
def optimizer_moments(at: At, how: str) -> Broken:
    model = lived(ConvNet(8))
    optimizer = torch.optim.Adam(model.parameters())
    steps(model, optimizer, count=4)
    kept = optimizer.state_dict()
    index = at.rng.choice(list(kept["state"]))
    second = kept["state"][index]["exp_avg_sq"]
    second.flatten()[0] = {"negative": -1.0, "nan": float("nan"), "exploded": 1e30}[how]
    if how == "exploded":
        second.fill_(1e30)
    path = at.save({"model": state(model), "optimizer": kept, "epoch": 4})
    return Broken(
        path=path, finds=("moments", "nan") if how == "nan" else "moments", place="exp_avg_sq",
        deep=True, mend=Tell(_EARLIER + "|fresh|new optimizer"), cause="exp_avg_sq|moment",
        cure=_EARLIER + "|fresh",
    )  # fmt: skip


def steps_of_two_moments(at: At) -> Broken:
    """Live tensors were written while training went on: parts are of another step."""
    model = lived(ConvNet(8))
    optimizer = torch.optim.Adam(model.parameters())
    steps(model, optimizer, count=5)
    kept = optimizer.state_dict()
    for index in list(kept["state"])[len(kept["state"]) // 2 :]:
        kept["state"][index]["step"] += at.rng.randint(1, 3)
    path = at.save({"model": state(model), "optimizer": kept})
    return Broken(
        path=path, finds="steps-differ", place="step", deep=True,
        mend=Tell("snapshot|copy|while|froz|later|step"), cause="step", cure="snapshot|copy",
    )  # fmt: skip


@variants("ema", "best")
def two_models_that_are_one(at: At, name: str) -> Broken:
    """`best = model.state_dict()` is no copy: it went on being trained."""
    make = any_model(at)
    live = lived(make()).state_dict()
    path = at.save({"model": live, name: {n: t.clone() for n, t in live.items()}, "epoch": 8})
    return Broken(
        path=path, finds="equal-models", place=name, deep=True, mend=Tell("copy|clone|alias|same"),
        cause="equal|identical|same values", cure="clone|deepcopy",
    )  # fmt: skip


def raw_and_averaged(at: At) -> Broken:
    """Both are in the file; whoever takes the first takes the one that was not evaluated."""
    make = any_model(at)
    raw = state(lived(make()))
    averaged = {n: t * 0.99 if t.is_floating_point() else t for n, t in raw.items()}
    path = at.save({"model": raw, "ema": averaged, "step": 900})
    return Broken(
        path=path, finds=("raw-and-ema", "ambiguous"), place=("ema", "model"), mend=Tell("ema"),
        targets={"model": make()}, cause="Unexpected.*ema", cure="ema|source",
    )  # fmt: skip


def nothing_of_it_fits(at: At) -> Broken:
    """Another model's file: strict=False would load nothing and say nothing."""
    path = _file(at, state(lived(gpt2())))
    return Broken(
        path=path, finds=("nothing-restored", "names", "missing-keys"),
        place=("conv.weight", "model", path.name),
        mend=Tell("another model|other|none|no |0 %|missing"), targets={"model": sequential()},
        cause="Missing key", cure="another model|other file",
    )  # fmt: skip


def half_of_it_fits(at: At) -> Broken:
    """strict=False would leave the rest as it was initialised."""
    truth = state(lived(ConvNet(8, depth=4)))
    tensors = {n: t for n, t in truth.items() if not n.startswith(("layers.2", "layers.3"))}
    return Broken(
        path=_file(at, tensors), finds="missing-keys", place="layers.2", mend=holds(tensors),
        targets={"model": ConvNet(8, depth=4)}, cause="Missing key",
        cure="strict=False|depth|initiali",
    )  # fmt: skip


_CHANGES: dict[str, tuple[Any, Any, str]] = {
    "activation": (nn.ReLU(), nn.GELU(), "ReLU|GELU"),
    "slope": (nn.LeakyReLU(0.01), nn.LeakyReLU(0.2), "negative_slope"),
    "eps": (nn.BatchNorm2d(6), nn.BatchNorm2d(6, eps=1e-3), "eps"),
    "stride": (nn.Conv2d(6, 6, 3), nn.Conv2d(6, 6, 3, stride=2), "stride"),
    "padding": (nn.Conv2d(6, 6, 3), nn.Conv2d(6, 6, 3, padding=1), "padding"),
    "pooling": (nn.MaxPool2d(2), nn.AvgPool2d(2), "Pool"),
}


@variants(*_CHANGES)
def another_function_under_the_same_names(at: At, what: str) -> Broken:
    """A whole model was saved; the one here answers otherwise, with the same weights."""
    before, after, says = _CHANGES[what]

    def make(module: nn.Module) -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 6, 3), deepcopy(module), nn.BatchNorm2d(6))

    saved, target = make(before), make(after)
    return Broken(
        path=at.save(lived(saved).eval()), finds="architecture-changed", place="1", mend=Tell(says),
        targets={"model": target.eval()}, cause=says, cure="build|architecture",
    )  # fmt: skip


def pickled_while_training(at: At) -> Broken:
    """A whole model in train mode: Dropout and BatchNorm answer differently each time."""
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.4), nn.Linear(6, 2))
    path = at.save(lived(model).train())
    return Broken(
        path=path, finds="training-mode", place=path.name, mend=Tell(r"eval\(\)"), cause="train",
        cure=r"eval\(\)",
    )  # fmt: skip


@variants("list of modules", "plain tensor", "dict of modules")
def not_registered(at: At, what: str) -> Broken:
    """What a module holds in a list or as a plain tensor is in no state dict."""
    attribute = at.word(3)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)
            value: Any = torch.randn(3)
            if "modules" in what:
                several = [nn.Linear(3, 3), nn.Linear(3, 2)]
                value = several if what.startswith("list") else {"a": several[0], "b": several[1]}
            setattr(self, attribute, value)

    model = Net()
    return Broken(
        path=_file(at, state(model)), finds="unregistered", place=attribute,
        mend=Tell("register|ModuleList|ModuleDict"), targets={"model": Net()}, cause=attribute,
        cure="register|ModuleList",
    )  # fmt: skip


class _Tied(nn.Module):
    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 6), nn.Linear(6, 20, bias=False)
        if tied:
            self.head.weight = self.embed.weight


def tied_here_and_two_in_the_file(at: At) -> Broken:
    """The last of two keys wins, without a word."""
    return Broken(
        path=_file(at, state(lived(_Tied(False)))), finds="tie-conflict",
        place=("embed.weight", "head.weight"), mend=Tell("ti(e|ed)|untie|one of"),
        targets={"model": _Tied()}, cause=r"\btied?\b|share", cure="untie|tie",
    )  # fmt: skip


def tied_in_the_file_and_two_here(at: At) -> Broken:
    model = lived(_Tied())
    path = at.save(model.state_dict())
    return Broken(
        path=path, finds=("tie-lost", "tie-restored"), place=("embed.weight", "head.weight"),
        mend=Tell("ti(e|ed)"), targets={"model": _Tied(False)}, cause=r"\btied?\b|share",
        cure="tie",
    )  # fmt: skip


def classes_without_names(at: At) -> Broken:
    """A classifier's numbers, and no word on which class is which."""
    model = lived(ConvNet(8, at.rng.randint(5, 12)))
    path = at.save({"model": state(model), "epoch": 12})
    return Broken(
        path=path, finds="classes-absent", place=("fc", path.name), mend=Tell("class"),
        targets={"model": ConvNet(8, model.fc.out_features)}, cause="class names", cure="class",
    )  # fmt: skip
