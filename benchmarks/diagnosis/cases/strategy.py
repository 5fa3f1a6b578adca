"""A good file, used for what it is not."""

import json
import pickle

import torch
from torch import nn

from benchmarks.diagnosis.broken import At, Broken, Tell, variants
from benchmarks.diagnosis.checks import holds, kept, written
from benchmarks.diagnosis.models import Transformer, any_model, lived, sequential, state, steps


@variants("state_dict", "model_state_dict", "model", "net", "params_ema", "by chance")
def nested_under_a_key(at: At, key: str) -> Broken:
    make = any_model(at)
    truth = state(lived(make()))
    key = at.word(3) if key == "by chance" else key
    path = at.save({"epoch": at.rng.randint(1, 90), key: truth, "loss": 0.25})
    return Broken(
        path=path, finds="nested-key", place=key, mend=holds(truth), targets={"model": make()},
        cause=f"Unexpected key.*{key}", cure=f"\\[.{key}.\\]",
    )  # fmt: skip


def nested_twice(at: At) -> Broken:
    make, outer, inner = any_model(at), at.word(2), at.word(3)
    truth = state(lived(make()))
    path = at.save({outer: {inner: truth, "step": 8}, "config": {"lr": 0.1}})
    return Broken(
        path=path, finds="nested-key", place=f"{outer}/{inner}", mend=holds(truth),
        targets={"model": make()}, cause=f"Unexpected key.*{outer}", cure=f"\\[.{inner}.\\]",
    )  # fmt: skip


def nested_in_a_tuple(at: At) -> Broken:
    make = any_model(at)
    model = lived(make())
    optimizer = torch.optim.Adam(model.parameters())
    steps(model, optimizer)
    path = at.save((state(model), optimizer.state_dict()))
    return Broken(
        path=path, finds="nested-key", place="0", mend=holds(state(model)),
        targets={"model": make()}, cause="dict-like.*tuple", cure=r"\[0\]",
    )  # fmt: skip


def one_of_two_models(at: At) -> Broken:
    """A GAN's file: the generator is asked for."""
    generator, other = any_model(at), sequential
    truth = state(lived(generator()))
    path = at.save({"netD": state(lived(other(9, 2))), "netG": truth, "it": 5})
    return Broken(
        path=path, finds="nested-key", place="netG", mend=holds(truth),
        targets={"model": generator()}, cause="Unexpected key.*netG", cure="netG.\\]",
    )  # fmt: skip


@variants(True, False)
def whole_model_where_a_state_dict_is_meant(at: At, zipped: bool) -> Broken:
    model = lived(sequential(at.rng.randint(4, 9)))
    path = at.save(model, _use_new_zipfile_serialization=zipped)
    target = sequential(model.conv.out_channels)
    return Broken(
        path=path, finds="whole-model", place=path.name, mend=kept(state(model)),
        targets={"model": target}, cause="whole model|entire model|pickled model",
        cure=r"\.state_dict\(\)",
    )  # fmt: skip


def whole_model_within_a_checkpoint(at: At) -> Broken:
    model = lived(sequential(at.rng.randint(4, 9)))
    path = at.save({"epoch": 3, "model": model})
    return Broken(
        path=path, finds=("nested-key", "whole-model"), place="model", mend=kept(state(model)),
        targets={"model": sequential(model.conv.out_channels)},
        cause="whole model|entire model|pickled model|Unexpected key.*model",
        cure=r"\.state_dict\(\)|\[.model.\]",
    )  # fmt: skip


@variants("script", "trace")
def torchscript_where_a_state_dict_is_meant(at: At, how: str) -> Broken:
    model = lived(sequential(at.rng.randint(4, 9))).eval()
    path = at.path()
    compiled = (
        torch.jit.script(model)
        if how == "script"
        else torch.jit.trace(model, torch.ones(1, 1, 9, 9))
    )
    compiled.save(str(path))
    return Broken(
        path=path, finds="torchscript", place=path.name, mend=kept(state(model)),
        targets={"model": sequential(model.conv.out_channels)}, cause="TorchScript archive",
        cure=r"torch\.jit\.load",
    )  # fmt: skip


def optimizer_file_as_model(at: At) -> Broken:
    make = any_model(at)
    model = lived(make())
    optimizer = torch.optim.AdamW(model.parameters())
    steps(model, optimizer)
    path = at.save(optimizer.state_dict())
    return Broken(
        path=path, finds=("optimizer-alone", "part-missing"), place=(path.name, "model"),
        mend=Tell("optimi[sz]er"), targets={"model": make()}, cause="optimi[sz]er|param_groups",
        cure="optimizer|other file",
    )  # fmt: skip


@variants(".safetensors", ".bin.safetensors")
def pickle_under_the_name_of_safetensors(at: At, suffix: str) -> Broken:
    make = any_model(at)
    truth = state(lived(make()))
    path = at.save(truth, suffix)
    return Broken(
        path=path, finds="wrong-suffix", place=path.name, mend=holds(truth),
        targets={"model": make()}, cause="not a safetensors|is a pickle|torch.save",
        cure=r"torch\.load",
    )  # fmt: skip


@variants(".pt", ".ckpt", ".bin")
def safetensors_under_the_name_of_torch(at: At, suffix: str) -> Broken:
    from safetensors.torch import save_file

    make = any_model(at)
    truth = state(lived(make()))
    path = at.path(suffix)
    save_file(truth, path)
    return Broken(
        path=path, finds="wrong-suffix", place=path.name, mend=holds(truth),
        targets={"model": make()}, cause="safetensors", cure=r"safetensors",
    )  # fmt: skip


@variants(2, 4, 5)
def plain_pickle(at: At, protocol: int) -> Broken:
    """pickle.dump instead of torch.save."""
    make = any_model(at)
    truth = state(lived(make()))
    path = at.write(pickle.dumps(truth, protocol=protocol), at.rng.choice((".pkl", ".pt")))
    return Broken(
        path=path, finds="plain-pickle", place=path.name, mend=written(truth),
        cause="pickle\\.dump|plain pickle", cure=r"torch\.save|pickle\.load",
    )  # fmt: skip


@variants(".pt", ".safetensors")
def weights_alone_on_resume(at: At, suffix: str) -> Broken:
    make = any_model(at)
    model = lived(make())
    path = at.path(suffix)
    if suffix == ".pt":
        torch.save(state(model), path)
    else:
        from safetensors.torch import save_file

        save_file(state(model), path)
    target = make()
    return Broken(
        path=path, finds="optimizer-absent", place=("optimizer", path.name),
        mend=Tell("fresh|start|anew|again"),
        targets={"model": target, "optimizer": torch.optim.AdamW(target.parameters())},
        cause="KeyError: .optimizer|optimizer.*(missing|absent|not)|only weights",
        cure="fresh|new optimizer",
    )  # fmt: skip


def deepspeed_placeholders(at: At) -> Broken:
    """What ZeRO-3 leaves of each parameter on one rank."""
    make = any_model(at)
    truth = {n: torch.empty(0, dtype=t.dtype) for n, t in make().state_dict().items() if t.dim()}
    path = at.save({"module": truth, "ds_version": "0.14.0", "dp_world_size": 4})
    return Broken(
        path=path, finds=("zero-placeholders", "shape-mismatch"), place=next(iter(truth)),
        mend=Tell("zero_to_fp32|gather|ZeRO"), targets={"model": make()},
        cause="ZeRO|DeepSpeed|placeholder", cure="zero_to_fp32|gather",
    )  # fmt: skip


def adapter_where_the_model_is_meant(at: At) -> Broken:
    """What PEFT saves: factors, and nothing of the base model."""
    target = Transformer(at.rng.choice((8, 12)))
    rank, tensors = at.rng.choice((2, 4)), {}
    for index, block in enumerate(target.blocks):
        for name in ("q_proj", "v_proj"):
            out, into = getattr(block["attn"], name).weight.shape
            stem = f"base_model.model.blocks.{index}.attn.{name}"
            tensors[f"{stem}.lora_A.weight"] = torch.randn(rank, into)
            tensors[f"{stem}.lora_B.weight"] = torch.randn(out, rank)
    path = at.folder / "adapter_model.safetensors"
    from safetensors.torch import save_file

    save_file(tensors, path)
    settings = {"peft_type": "LORA", "r": rank, "target_modules": ["q_proj", "v_proj"]}
    (at.folder / "adapter_config.json").write_text(json.dumps(settings))
    return Broken(
        path=path, finds="adapter-alone", place=("lora_A", path.name), mend=Tell("peft|base model"),
        targets={"model": target}, cause="adapter|LoRA factors", cure="peft|base model",
    )  # fmt: skip


def lone_distcp(at: At) -> Broken:
    """One rank's file of a distributed checkpoint, taken out of its directory."""
    import torch.distributed.checkpoint as dcp

    model = lived(any_model(at)())
    dcp.save({"model": model.state_dict()}, checkpoint_id=str(at.folder / "dist"), no_dist=True)
    (inside,) = (at.folder / "dist").glob("*.distcp")
    path = at.folder / "taken" / inside.name
    path.parent.mkdir()
    path.write_bytes(inside.read_bytes())
    return Broken(
        path=path, finds="dcp-file-alone", place=path.name,
        mend=Tell(r"director|folder|\.metadata"), cause="distributed checkpoint|distcp",
        cure=r"director|\.metadata|dcp",
    )  # fmt: skip


def no_tensor_at_all(at: At) -> Broken:
    """The settings were saved, not the model."""
    path = at.save({"lr": 0.1, "layers": [1, 2, 3], "name": at.word()})
    return Broken(
        path=path, finds=("no-tensors", "part-missing"), place=(path.name, "model"),
        mend=Tell("weights|model|tensor|state"), targets={"model": sequential()},
        cause="no tensor|Unexpected key", cure="state_dict",
    )  # fmt: skip


def lightning_without_optimizer(at: At) -> Broken:
    """ModelCheckpoint(save_weights_only=True), and a resume from it."""
    from benchmarks.diagnosis.lightning_files import fitted

    path, plain = fitted(at, weights_only=True)
    target = sequential(plain.conv.out_channels)
    return Broken(
        path=path, finds="optimizer-absent", place=("optimizer", path.name),
        mend=Tell("weights|fresh|start"),
        targets={"model": target, "optimizer": torch.optim.Adam(target.parameters())},
        cause="KeyError: .optimizer|optimizer.*(missing|absent|not)|only weights|only the model",
        cure="fresh|new optimizer|save_weights_only",
    )  # fmt: skip


def a_list_of_tensors(at: At) -> Broken:
    """list(model.parameters()): the names are lost."""
    model = lived(sequential(at.rng.randint(4, 9)))
    path = at.save([p.detach().clone() for p in model.parameters()])
    return Broken(
        path=path, finds=("names-absent", "part-missing"), place=(path.name, "model"),
        mend=Tell("name|order|state_dict"), targets={"model": nn.Sequential(nn.Linear(3, 3))},
        cause="dict-like.*list|no names", cure="state_dict",
    )  # fmt: skip
