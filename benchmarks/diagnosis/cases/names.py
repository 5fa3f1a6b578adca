"""The right weights, under other names."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from benchmarks.diagnosis.broken import At, Broken, Tell, variants
from benchmarks.diagnosis.checks import holds
from benchmarks.diagnosis.models import (
    Attention,
    ConvNet,
    Mlp,
    Transformer,
    any_model,
    bert,
    lived,
    sequential,
    state,
)  # fmt: skip


def _saved(at: At, tensors: Mapping[str, torch.Tensor]) -> Any:
    """In one of the formats, by chance."""
    from safetensors.torch import save_file

    kind = at.rng.choice(("zip", "legacy", "safetensors"))
    if kind == "safetensors":
        path = at.path(".safetensors")
        save_file(dict(tensors), path)
        return path
    return at.save(dict(tensors), _use_new_zipfile_serialization=kind == "zip")


@variants(
    "module.", "_orig_mod.", "model.", "net.", "_forward_module.", "module._orig_mod.",
    "_orig_mod.module.", "module.model.", "state_dict.net.", "by chance.",
)  # fmt: skip
def prefix_on_every_name(at: At, prefix: str) -> Broken:
    make = any_model(at)
    truth = state(lived(make()))
    prefix = f"{at.word(3)}." if prefix == "by chance." else prefix
    return Broken(
        path=_saved(at, {prefix + n: t for n, t in truth.items()}), finds="prefix",
        place=(prefix, "the top", "state_dict"), mend=holds(truth), targets={"model": make()},
        cause=f"prefix|wrapp|Unexpected.*{prefix}", cure="strip|remove|prefix",
    )  # fmt: skip


@variants("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.", "module.")
def wrapper_within_names(at: At, wrapper: str) -> Broken:
    """Some submodules were wrapped, not the model."""
    make = any_model(at)
    truth = state(lived(make()))
    tops = sorted({n.split(".")[0] for n in truth if "." in n})
    chosen = set(at.rng.sample(tops, max(1, len(tops) - 1)))

    def named(name: str) -> str:
        top, _, rest = name.partition(".")
        return f"{top}.{wrapper}{rest}" if top in chosen else name

    tensors = {named(n): t for n, t in truth.items()}
    return Broken(
        path=_saved(at, tensors), finds=("prefix", "names"),
        place=(wrapper, sorted(chosen)[0], "the top"), mend=holds(truth), targets={"model": make()},
        cause=f"wrapp|Unexpected.*{wrapper}", cure="strip|remove|unwrap",
    )  # fmt: skip


class _Holder(nn.Module):
    def __init__(self, name: str, inner: nn.Module) -> None:
        super().__init__()
        self.add_module(name, inner)


@variants("model", "by chance")
def prefix_only_in_the_target(at: At, name: str) -> Broken:
    """The plain model was saved; what is here holds it as an attribute."""
    make = any_model(at)
    truth = state(lived(make()))
    name = at.word(3) if name == "by chance" else name
    return Broken(
        path=_saved(at, truth), finds=("prefix", "names"),
        place=(next(iter(truth)), name, "the top"),
        mend=holds({f"{name}.{n}": t for n, t in truth.items()}),
        targets={"model": _Holder(name, make())}, cause="prefix", cure="prefix|add",
    )  # fmt: skip


@variants(1, 2, 3)
def modules_renamed(at: At, times: int) -> Broken:
    """Someone gave parts of the model better names."""
    make = any_model(at)
    truth = state(lived(make()))
    # Of two tables of one shape only one is renamed: which is which could not be known.
    tops = sorted({n.split(".")[0] for n in truth} - {"lm_head"})
    new = {top: at.word(3) for top in at.rng.sample(tops, min(times, len(tops)))}
    tensors = {
        ".".join([new.get(n.split(".")[0], n.split(".")[0]), *n.split(".")[1:]]): t
        for n, t in truth.items()
    }
    return Broken(
        path=_saved(at, tensors), finds="names", place=sorted(new.values())[0], mend=holds(truth),
        targets={"model": make()}, cause="renamed", cure="rename",
    )  # fmt: skip


def one_letter_apart(at: At) -> Broken:
    """fc → fcs: near in name, equal in shape."""
    make = ConvNet
    truth = state(lived(make(classes=7)))
    tensors = {
        n.replace("layers.", "layer.").replace("fc.", "fc_out."): t for n, t in truth.items()
    }
    return Broken(
        path=_saved(at, tensors), finds="names", place=("layer.", "fc_out."), mend=holds(truth),
        targets={"model": make(classes=7)}, cause="renamed", cure="rename",
    )  # fmt: skip


def names_of_another_style(at: At) -> Broken:
    """Numbers instead of names; shapes and order are the same."""
    names = [at.word(3) + str(i) for i in range(4)]
    widths = at.rng.sample(range(3, 40), 5)
    truth = state(lived(Mlp(names, widths)))
    tensors = {f"{i}.{n.partition('.')[2]}": truth[n] for i, n in _numbered(truth)}
    return Broken(
        path=_saved(at, tensors), finds="names", place=("0.weight", "0.bias", "0."),
        mend=holds(truth), targets={"model": Mlp(names, widths)}, cause="renamed|order",
        cure="rename|order",
    )  # fmt: skip


def _numbered(truth: Mapping[str, Any]) -> list[tuple[int, str]]:
    tops: dict[str, int] = {}
    return [(tops.setdefault(n.split(".")[0], len(tops)), n) for n in truth]


def gamma_and_beta(at: At) -> Broken:
    """TensorFlow's names for what norms hold."""
    target = bert()
    truth = state(lived(target))
    tensors = {
        n.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): t
        for n, t in truth.items()
    }
    return Broken(
        path=_saved(at, tensors), finds="names", place="LayerNorm.", mend=holds(truth),
        targets={"model": bert()}, cause="gamma.*weight|renamed", cure="rename",
    )  # fmt: skip


def _normed(new: bool) -> nn.Module:
    make = (nn.utils.parametrizations if new else nn.utils).weight_norm
    return nn.Sequential(make(nn.Linear(5, 7)), nn.Tanh(), make(nn.Linear(7, 4)))


@variants("old file", "new file")
def weight_norm_rewritten(at: At, which: str) -> Broken:
    saved, target = _normed(which == "new file"), _normed(which == "old file")
    with torch.no_grad():
        for p in saved.parameters():
            p.add_(torch.rand_like(p))
    pairs = (("weight_g", "parametrizations.weight.original0"),
             ("weight_v", "parametrizations.weight.original1"))  # fmt: skip

    def other(name: str) -> str:
        for old, new in pairs:
            name = name.replace(*((new, old) if which == "new file" else (old, new)))
        return name

    truth = {other(n): t for n, t in state(saved).items()}
    return Broken(
        path=_saved(at, state(saved)), finds="names",
        place=("original0" if which == "new file" else "weight_g"), mend=holds(truth),
        targets={"model": target}, cause="weight.norm", cure="weight.norm|rename",
    )  # fmt: skip


@variants("plain", "base_layer")
def peft_names_of_the_base(at: At, kind: str) -> Broken:
    """A model wrapped by PEFT was saved as it was, base and factors."""
    target = Transformer(8)
    truth = state(lived(target))
    adapted = ("q_proj.", "v_proj.") if kind == "base_layer" else ()
    tensors = {}
    for name, tensor in truth.items():
        new = name
        for part in adapted:
            new = new.replace(part, f"{part}base_layer.")
        tensors[f"base_model.model.{new}"] = tensor
        if new != name and name.endswith("weight"):
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{stem}.lora_A.default.weight"] = torch.randn(2, tensor.shape[1])
            tensors[f"{stem}.lora_B.default.weight"] = torch.randn(tensor.shape[0], 2)
    mend = Tell("merge|adapter|LoRA") if adapted else holds(truth)
    return Broken(
        path=_saved(at, tensors), finds=("prefix", "names", "unexpected-keys"),
        place=("base_model.model", "lora_A", "base_layer", "the top"), mend=mend,
        targets={"model": Transformer(8)}, cause="PEFT|LoRA|adapter|prefix",
        cure="merge|strip|peft",
    )  # fmt: skip


class _Lora(nn.Module):
    def __init__(self, width: int, rank: int, default: bool) -> None:
        super().__init__()
        self.base = nn.Linear(width, width)

        def factor(a: int, b: int) -> nn.Module:
            linear = nn.Linear(a, b, bias=False)
            return nn.ModuleDict({"default": linear}) if default else linear

        self.lora_A, self.lora_B = factor(width, rank), factor(rank, width)


def adapter_without_its_name(at: At) -> Broken:
    """PEFT leaves the adapter's name out of the file: lora_A.weight for lora_A.default.weight."""
    width, rank = at.rng.choice((6, 9)), at.rng.choice((2, 3))
    saved, target = (
        nn.Sequential(*(_Lora(width, rank, default) for _ in range(2))) for default in (False, True)
    )
    lived(saved)
    truth = {
        n.replace("lora_A.", "lora_A.default.").replace("lora_B.", "lora_B.default."): t
        for n, t in state(saved).items()
    }
    return Broken(
        path=_saved(at, state(saved)), finds="names", place="lora_", mend=holds(truth),
        targets={"model": target}, cause="adapter", cure="rename|peft",
    )  # fmt: skip


@variants("whole", "by block")
def fsdp_flat(at: At, how: str) -> Broken:
    """FSDP's flat parameters, padded for its ranks."""
    make = Transformer
    truth = state(lived(make(8)))
    padding = at.rng.randint(1, 7)
    parameters = [n for n, _ in make(8).named_parameters()]
    tensors: dict[str, torch.Tensor] = {}
    groups: dict[str, list[str]] = {"": parameters}
    if how == "by block":
        groups = {"": [n for n in parameters if not n.startswith("blocks.")]}
        for n in parameters:
            if n.startswith("blocks."):
                groups.setdefault(f"blocks.{n.split('.')[1]}.", []).append(n)
    for stem, names in groups.items():
        flat = torch.cat([truth[n].flatten() for n in names] + [torch.zeros(padding)])
        tensors[f"{stem}_fsdp_wrapped_module._flat_param"] = flat
    return Broken(
        path=at.save(tensors), finds="flat", place=("_flat_param", parameters[0]),
        mend=holds(truth), targets={"model": make(8)}, cause="flat",
        cure="full.*state|before wrapping|FSDP",
    )  # fmt: skip


@variants("position_ids", "num_batches_tracked", "non-persistent")
def buffers_differ(at: At, which: str) -> Broken:
    """Buffers that were added, removed or made non-persistent; no weight is concerned."""
    if which == "num_batches_tracked":
        truth = {n: t for n, t in state(lived(ConvNet(8))).items() if which not in n}
        target, tensors, place = ConvNet(8), truth, which
    else:
        name = "position_ids" if which == "position_ids" else f"{at.word()}.mask"
        truth = state(lived(Transformer(8)))
        tensors = {**truth, name: torch.arange(24)[None]}
        target, place = Transformer(8), name
    return Broken(
        path=_saved(at, tensors), finds="buffers", place=place, mend=holds(truth),
        targets={"model": target}, cause=f"buffer.*{place}", cure="buffer|harmless",
    )  # fmt: skip


def running_statistics_missing(at: At) -> Broken:
    """Saved with track_running_stats=False: BatchNorm would run on fresh statistics."""
    width = at.rng.choice((6, 8))
    truth = {n: t for n, t in state(lived(ConvNet(width))).items() if "running" not in n}
    return Broken(
        path=_saved(at, truth), finds=("buffers", "missing-keys"), place="running_",
        mend=Tell("statistic|running|BatchNorm|buffer"), targets={"model": ConvNet(width)},
        cause="statistic|buffer", cure="track_running_stats|calibrat",
    )  # fmt: skip


@variants("torch", "bitsandbytes")
def quantised_file_plain_model(at: At, kind: str) -> Broken:
    truth = state(lived(Mlp(["fa", "fb"], [6, 8, 4])))
    target = Mlp(["fa", "fb"], [6, 8, 4])
    tensors: dict[str, Any] = {}
    for name, tensor in truth.items():
        if name.endswith("bias"):
            tensors[name] = tensor
        elif kind == "bitsandbytes":
            tensors[name] = torch.randint(0, 255, (tensor.numel() // 2, 1), dtype=torch.uint8)
            tensors[f"{name}.absmax"] = torch.rand(1)
            tensors[f"{name}.quant_map"] = torch.linspace(-1, 1, 16)
    if kind == "torch":
        quantised = torch.ao.quantization.quantize_dynamic(lived(target), {nn.Linear})
        tensors, target = dict(quantised.state_dict()), Mlp(["fa", "fb"], [6, 8, 4])
    return Broken(
        path=at.save(tensors), finds="quantised", place=("fa", "absmax", "_packed_params"),
        mend=Tell("quanti[sz]e"), targets={"model": target}, cause="quanti[sz]ed",
        cure="quanti[sz]e",
    )  # fmt: skip


def encoder_within_a_task_model(at: At) -> Broken:
    """BertModel was saved; a classifier is to be fine-tuned from it."""
    saved = bert()
    truth = state(lived(saved))
    return Broken(
        path=_saved(at, truth), finds=("prefix", "names", "missing-keys"),
        place=("classifier", "bert", "embeddings"),
        mend=holds({f"bert.{n}": t for n, t in truth.items()}), targets={"model": bert(4)},
        cause="Missing.*classifier", cure="strict=False|prefix",
    )  # fmt: skip


def encoder_out_of_a_task_model(at: At) -> Broken:
    saved = bert(4)
    truth = {n.removeprefix("bert."): t for n, t in state(lived(saved)).items() if "bert." in n}
    return Broken(
        path=_saved(at, state(saved)), finds=("prefix", "unexpected-keys"),
        place=("classifier", "bert."), mend=holds(truth), targets={"model": bert()},
        cause="Unexpected.*classifier", cure="strict=False|prefix",
    )  # fmt: skip


def student_and_teacher(at: At) -> Broken:
    """Two models of one kind in one file: nobody can know which is meant."""
    make = any_model(at)
    student, teacher = state(lived(make())), state(lived(make()))
    tensors = {f"student.{n}": t for n, t in student.items()}
    tensors |= {f"teacher.{n}": t for n, t in teacher.items()}
    return Broken(
        path=at.save(tensors), finds=("ambiguous", "prefix"), place=("student", "teacher"),
        mend=Tell("(?s)student.*teacher|teacher.*student"), targets={"model": make()},
        cause="two|both|ambiguous", cure="choose|source|student",
    )  # fmt: skip


def split_attention_of_another_library(at: At) -> Broken:
    """to_q, to_k, to_v, to_out for q_proj, k_proj, v_proj, out_proj: equal shapes, near names."""
    target = nn.Sequential(*(Attention(at.rng.choice((8, 12)), False) for _ in range(2)))
    truth = state(lived(target))
    new = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}
    tensors = {}
    for name, tensor in truth.items():
        for before, after in new.items():
            name = name.replace(before, after)
        tensors[name] = tensor
    widths = [m.out_proj.in_features for m in target]
    return Broken(
        path=_saved(at, tensors), finds="names", place="to_", mend=holds(truth),
        targets={"model": nn.Sequential(*(Attention(w, False) for w in widths))}, cause="renamed",
        cure="rename",
    )  # fmt: skip


@variants("plain", "by chance")
def lightning_attribute(at: At, attribute: str) -> Broken:
    """A real Lightning checkpoint into the plain model."""
    from benchmarks.diagnosis.lightning_files import fitted

    attribute = at.word(3) if attribute == "by chance" else "net"
    path, plain = fitted(at, attribute=attribute)
    target = sequential(plain.conv.out_channels)
    return Broken(
        path=path, finds="prefix", place=(attribute, "state_dict"), mend=holds(state(plain)),
        targets={"model": target}, cause="prefix|Unexpected.*state_dict",
        cure="strip|prefix|remove",
    )  # fmt: skip
