"""Makes healthy checkpoints; every function that takes `at` is one, or several."""

import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import holdtrue
from benchmarks.diagnosis import models
from benchmarks.diagnosis.broken import At, variants
from benchmarks.diagnosis.models import (
    ConvNet,
    Transformer,
    any_model,
    bert,
    gpt2,
    lived,
    llama,
    sequential,
    state,
    steps,
)  # fmt: skip


@dataclass(frozen=True)
class Healthy:
    """A file that nothing is wrong with, and what it may be loaded into."""

    path: Path
    targets: Mapping[str, Any] = field(default_factory=dict)


def _fresh(make: Callable[[], nn.Module]) -> dict[str, Any]:
    return {"model": make().eval()}


# -- state dicts ---------------------------------------------------------------------------------


@variants(*((kind, how) for kind in ("zip", "legacy", "safetensors") for how in range(8)))
def state_dict_alone(at: At, kind: str, how: int) -> Healthy:
    """`how` is even for what has been trained, odd for what is as it was initialised."""
    make = any_model(at)
    model = make() if how % 2 else lived(make())
    if kind == "safetensors":
        from safetensors.torch import save_file

        path = at.path(".safetensors")
        save_file(state(model), path, metadata={"format": "pt"})
        return Healthy(path, _fresh(make))
    zipped = kind == "zip"
    path = at.save(model.state_dict(), _use_new_zipfile_serialization=zipped)
    return Healthy(path, _fresh(make))


@variants(torch.float16, torch.bfloat16, torch.float64, torch.complex64)
def other_precision(at: At, dtype: torch.dtype) -> Healthy:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 4)).to(dtype)

    return Healthy(at.save(lived(make()).state_dict()), _fresh(make))


@variants("float8_e4m3fn", "float8_e5m2", "int8", "uint8", "bool", "int64")
def tensors_of_a_dtype(at: At, name: str) -> Healthy:
    values = (torch.randn(40, 6) * 4).to(getattr(torch, name))
    return Healthy(at.save({"a": values, at.word(): torch.randn(5)}))


@variants("tied", "view", "transposed", "channels last", "expanded scalar")
def unusual_memory(at: At, how: str) -> Healthy:
    base = torch.randn(8, 6)
    value: dict[str, Any] = {
        "tied": {"a": base, "b": base},
        "view": {"a": base[:4], "b": base[4:]},
        "transposed": {"a": base.T},
        "channels last": {"a": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)},
        "expanded scalar": {"a": torch.tensor(3.0), "b": torch.empty(0), "c": torch.tensor([1.5])},
    }[how]
    return Healthy(at.save(value))


@variants(bert, gpt2, llama)
def transformers_state_dict(at: At, make: Callable[[], nn.Module]) -> Healthy:
    return Healthy(at.save(make().state_dict()), _fresh(make))


@variants(True, False)
def tied_model(at: At, one_name: bool) -> Healthy:
    """GPT-2's embedding and head are one tensor; safetensors keeps one of its names."""
    model = gpt2()
    if one_name:
        folder = at.folder / at.word()
        model.save_pretrained(folder)
        return Healthy(folder / "model.safetensors", _fresh(gpt2))
    return Healthy(at.save(model.state_dict()), _fresh(gpt2))


@variants("BatchNorm1d", "GroupNorm", "LSTM", "Embedding", "TransformerEncoderLayer",
          "MultiheadAttention", "PReLU", "Bilinear", "ConvTranspose2d", "GRU")  # fmt: skip
def modules_of_torch(at: At, name: str) -> Healthy:
    """As they are initialised: zeros and ones where they belong."""
    given: dict[str, tuple[Any, ...]] = {
        "BatchNorm1d": (6,), "GroupNorm": (2, 6), "LSTM": (5, 4, 2), "Embedding": (9, 4, 0),
        "TransformerEncoderLayer": (8, 2, 16), "MultiheadAttention": (8, 2), "PReLU": (),
        "Bilinear": (3, 4, 5), "ConvTranspose2d": (3, 2, 3), "GRU": (4, 6),
    }  # fmt: skip
    make = lambda: getattr(nn, name)(*given[name])  # noqa: E731
    return Healthy(at.save(make().state_dict()), _fresh(make))


def archive_packed_again(at: At) -> Healthy:
    """Unpacked and packed by a tool that compresses: torch.load takes it."""
    make = any_model(at)
    path = at.save(lived(make()).state_dict())
    with zipfile.ZipFile(path) as archive:
        records = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in records:
            archive.writestr(name, data)
    return Healthy(path, _fresh(make))


def causal_mask(at: At) -> Healthy:
    """Minus infinity in a mask is how masks are made."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Linear(8, 8)
            self.register_buffer("attn_mask", torch.full((6, 6), float("-inf")).triu(1))

    return Healthy(at.save(lived(Masked()).state_dict()), _fresh(Masked))


def padding_row(at: At) -> Healthy:
    make = lambda: nn.Sequential(nn.Embedding(30, 8, padding_idx=0), nn.Linear(8, 3))  # noqa: E731
    return Healthy(at.save(make().state_dict()), _fresh(make))


def fresh_adapter(at: At) -> Healthy:
    """A LoRA layer that trained, with its base."""

    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = nn.Linear(8, 8)
            self.lora_A, self.lora_B = nn.Linear(8, 2, bias=False), nn.Linear(2, 8, bias=False)

    return Healthy(at.save(lived(Adapted()).state_dict()), _fresh(Adapted))


# -- training checkpoints ------------------------------------------------------------------------


@variants("SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "Adadelta", "Adamax", "NAdam", "RAdam",
          "Rprop", "ASGD")  # fmt: skip
def training_checkpoint(at: At, name: str) -> Healthy:
    def made() -> tuple[nn.Module, Any]:
        model = ConvNet(8, 4)
        return model, getattr(torch.optim, name)(model.parameters(), lr=0.01)

    (model, optimizer), (here, target) = made(), made()
    lived(model)
    steps(model, optimizer, count=4)
    kept = {"model": state(model), "optimizer": optimizer.state_dict(), "epoch": 4}
    return Healthy(at.save(kept), {"model": here.eval(), "optimizer": target})


_SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "StepLR": lambda o: torch.optim.lr_scheduler.StepLR(o, 2),
    "CosineAnnealingLR": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 50),
    "OneCycleLR": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=50),
    "MultiStepLR": lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [3, 9]),
    "LinearLR": lambda o: torch.optim.lr_scheduler.LinearLR(o),
    "ExponentialLR": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
}


@variants(*_SCHEDULES)
def with_a_schedule(at: At, name: str) -> Healthy:
    def made() -> tuple[nn.Module, Any, Any]:
        model = sequential()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        return model, optimizer, _SCHEDULES[name](optimizer)

    model, optimizer, scheduler = made()
    lived(model)
    steps(model, optimizer, scheduler, count=5)
    here, target, schedule = made()
    kept = {"model_state_dict": state(model), "optimizer_state_dict": optimizer.state_dict(),
            "scheduler_state_dict": scheduler.state_dict(), "step": 5,
            "rng": torch.get_rng_state()}  # fmt: skip
    return Healthy(
        at.save(kept), {"model": here.eval(), "optimizer": target, "scheduler": schedule}
    )


def frozen_backbone(at: At) -> Healthy:
    """Half of the model is not in the optimizer, then and now."""

    def made() -> tuple[nn.Module, Any]:
        model = ConvNet(8, 4)
        model.stem.requires_grad_(False)
        left = [p for p in model.parameters() if p.requires_grad]
        return model, torch.optim.AdamW(left, lr=0.01)

    (model, optimizer), (here, target) = made(), made()
    steps(lived(model), optimizer)
    kept = {"model": state(model), "optimizer": optimizer.state_dict(), "epoch": 2}
    return Healthy(at.save(kept), {"model": here.eval(), "optimizer": target})


def two_groups(at: At) -> Healthy:
    """No weight decay for norms and biases."""

    def made() -> tuple[nn.Module, Any]:
        model = Transformer(8)
        decayed = [p for p in model.parameters() if p.dim() > 1]
        rest = [p for p in model.parameters() if p.dim() < 2]
        groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
        return model, torch.optim.AdamW(groups, lr=0.01)

    (model, optimizer), (here, target) = made(), made()
    steps(lived(model), optimizer)
    kept = {"model": state(model), "optimizer": optimizer.state_dict()}
    return Healthy(at.save(kept), {"model": here.eval(), "optimizer": target})


def optimizer_alone(at: At) -> Healthy:
    model = lived(sequential())
    optimizer = torch.optim.Adam(model.parameters())
    steps(model, optimizer)
    return Healthy(at.save(optimizer.state_dict()))


# -- whole models, scripts, programs ---------------------------------------------------------------


@variants(True, False)
def lightning_checkpoint(at: At, weights_only: bool) -> Healthy:
    from benchmarks.diagnosis.lightning_files import fitted

    path, plain = fitted(at, weights_only=weights_only)
    width = plain.get_submodule("conv").out_channels
    return Healthy(path, _fresh(lambda: sequential(width)))


@variants((True, True), (False, True), (True, False))
def whole_model(at: At, zipped: bool, trained: bool) -> Healthy:
    """Of classes of torch alone, which every torch can import."""
    model = sequential(at.rng.randint(4, 9))
    if trained:
        lived(model)
    path = at.save(model.eval(), _use_new_zipfile_serialization=zipped)
    width = model.get_submodule("conv").out_channels
    return Healthy(path, _fresh(lambda: sequential(width)))


@variants(2, 3)
def pickle_protocol(at: At, protocol: int) -> Healthy:
    """Those that torch.load takes."""
    make = any_model(at)
    return Healthy(at.save(lived(make()).state_dict(), pickle_protocol=protocol), _fresh(make))


def plain_values_beside(at: At) -> Healthy:
    """Numbers, text, lists and an OrderedDict: nothing that needs a class."""
    make = any_model(at)
    kept = {"model": state(lived(make())), "epoch": 3, "history": [0.5, 0.25], "name": at.word(),
            "settings": {"lr": 0.1, "layers": (1, 2)}}  # fmt: skip
    return Healthy(at.save(kept), _fresh(make))


@variants("script", "trace")
def torchscript(at: At, how: str) -> Healthy:
    model, path = lived(sequential()).eval(), at.path()
    made = (
        torch.jit.script(model)
        if how == "script"
        else torch.jit.trace(model, torch.ones(1, 1, 9, 9))
    )
    torch.jit.save(made, str(path))
    return Healthy(path, _fresh(sequential))


def exported_program(at: At) -> Healthy:
    model, path = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval(), at.path(".pt2")
    torch.export.save(torch.export.export(model, (torch.ones(2, 4),)), path)
    return Healthy(path)


@variants("dynamic", "tensor")
def quantised(at: At, how: str) -> Healthy:
    if how == "tensor":
        return Healthy(
            at.save({"w": torch.quantize_per_tensor(torch.randn(6, 4), 0.05, 3, torch.qint8)})
        )
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    return Healthy(at.save(quantised.state_dict()))


# -- folders and other formats ---------------------------------------------------------------------


@variants((bert, False), (gpt2, False), (llama, False), (llama, True), (gpt2, True))
def hugging_face_folder(at: At, make: Callable[[], Any], sharded: bool) -> Healthy:
    folder = at.folder / at.word()
    lived(make()).save_pretrained(folder, max_shard_size="12KB" if sharded else "5GB")
    return Healthy(folder, _fresh(make))


def hugging_face_trainer_folder(at: At) -> Healthy:
    """checkpoint-500 as the Trainer leaves it."""
    folder, model = at.folder / "checkpoint-500", lived(bert(3))
    model.save_pretrained(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer)
    steps(model, optimizer, schedule)
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    torch.save(schedule.state_dict(), folder / "scheduler.pt")
    torch.save({"python": None, "cpu": torch.get_rng_state()}, folder / "rng_state.pth")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 3, "epoch": 1.0}))
    return Healthy(folder)


@variants(1, 2)
def distributed_checkpoint(at: At, nesting: int) -> Healthy:
    import torch.distributed.checkpoint as dcp

    folder, value = at.folder / at.word(), lived(ConvNet(8)).state_dict()
    dcp.save({"model": value} if nesting == 2 else value, checkpoint_id=str(folder), no_dist=True)
    return Healthy(folder, _fresh(lambda: ConvNet(8)))


@variants(".npz", ".npy")
def numpy_file(at: At, suffix: str) -> Healthy:
    path, array = at.path(suffix), np.random.default_rng(at.rng.randrange(99)).normal(size=(30, 4))
    np.savez(path, a=array, b=array[0]) if suffix == ".npz" else np.save(path, array)
    return Healthy(path)


@variants(2, 4)
def run_folder(at: At, count: int) -> Healthy:
    """A plain training loop's: different epochs, a best and a last."""
    folder, model = at.folder / "run", sequential()
    folder.mkdir()
    for epoch in range(count):
        lived(model)
        torch.save({"epoch": epoch, "state_dict": state(model)}, folder / f"epoch_{epoch}.pt")
        if epoch == 0:
            torch.save(state(model), folder / "best.pt")
    torch.save(state(lived(model)), folder / "last.pt")
    return Healthy(folder)


@variants("model", "training")
def holdtrue_checkpoint(at: At, what: str) -> Healthy:
    make = any_model(at)
    model, path, here = lived(make()), at.folder / at.word(), make().eval()
    if what == "model":
        holdtrue.save(path, model=model.eval(), classes=["a", "b"])
        return Healthy(path, {"model": here})
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    steps(model.eval(), optimizer)
    holdtrue.save(path, model=model, optimizer=optimizer)
    return Healthy(
        path, {"model": here, "optimizer": torch.optim.AdamW(here.parameters(), lr=0.01)}
    )


def random_trained_by_gradient(at: At) -> Healthy:
    """Really trained, until the loss has fallen."""
    model = models.Mlp(["fa", "fb"], [6, 12, 3])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    x, y = torch.randn(64, 6), torch.randn(64, 3)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
    kept = {"net": state(model), "optim": optimizer.state_dict(), "best_loss": 0.3, "epoch": 40}
    return Healthy(at.save(kept), _fresh(lambda: models.Mlp(["fa", "fb"], [6, 12, 3])))
