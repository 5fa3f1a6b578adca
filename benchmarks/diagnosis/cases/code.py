"""Files that need code: a class that is gone, that changed, or that is of another version."""

import sys
from types import ModuleType
from typing import Any

import torch
from torch import nn

from benchmarks.diagnosis.broken import At, Broken, Tell, variants
from benchmarks.diagnosis.checks import holds, kept, written
from benchmarks.diagnosis.files import global_renamed, replaced, rewritten, text
from benchmarks.diagnosis.models import ConvNet, any_model, lived, sequential, state

_HERE = ConvNet.__module__


class Meter:
    """A helper object beside the weights, as training scripts keep them."""

    def __init__(self) -> None:
        self.losses, self.best = [0.5, 0.25], 0.75


class _Elsewhere:
    """A class that can be imported while a file is written, and not any more afterwards."""

    def __init__(self, module: str, name: str, base: type) -> None:
        self.module, self.name = module, name
        self.cls: Any = type(name, (base,), {"__module__": module, "__qualname__": name})
        self.added: list[str] = []

    def __enter__(self) -> Any:
        parts = self.module.split(".")
        for i in range(len(parts)):
            stem = ".".join(parts[: i + 1])
            if stem not in sys.modules:
                sys.modules[stem] = ModuleType(stem)
                self.added.append(stem)
        setattr(sys.modules[self.module], self.name, self.cls)
        return self.cls

    def __exit__(self, *_: object) -> None:
        delattr(sys.modules[self.module], self.name)
        for stem in self.added:
            del sys.modules[stem]


@variants(
    ("__main__", True), ("__main__", False), ("models.resnet", True), ("by chance", True),
    ("by chance", False),
)  # fmt: skip
def class_is_gone(at: At, module: str, zipped: bool) -> Broken:
    """torch.save(model) in a script or a project that is not here."""
    module = f"{at.word(3)}.{at.word()}" if module == "by chance" else module
    name = at.word().title() + "Net"
    with _Elsewhere(module, name, ConvNet) as cls:
        model = lived(cls(8, at.rng.randint(3, 9)))
        path = at.save(model, _use_new_zipfile_serialization=zipped)
    return Broken(
        path=path, finds="class-missing", place=name, mend=written(state(model)),
        cause=f"{name}.*(not|can)|Can't get attribute.*{name}|No module named",
        cure="convert|without the class|salvage",
    )  # fmt: skip


def model_of_a_missing_class_in_a_checkpoint(at: At) -> Broken:
    name = at.word().title()
    with _Elsewhere(at.word(3), name, ConvNet) as cls:
        model = lived(cls(8, 4))
        path = at.save({"epoch": 3, "model": model, "optimizer": None})
    return Broken(
        path=path, finds="class-missing", place=name, mend=kept(state(model)),
        targets={"model": ConvNet(8, 4)}, cause=f"{name}", cure="convert|without the class",
    )  # fmt: skip


@variants("__main__", "utils")
def helper_object_beside_the_weights(at: At, module: str) -> Broken:
    """The weights are plain; an object that nobody needs wants its class."""
    make, name, key = any_model(at), at.word().title() + "Meter", at.word()
    truth = state(lived(make()))
    with _Elsewhere(module, name, Meter) as cls:
        path = at.save({"state_dict": truth, "epoch": 7, key: cls()})
    return Broken(
        path=path, finds=("class-missing", "weights-only"), place=(key, name), mend=kept(truth),
        targets={"model": make()}, cause=f"Unsupported global.*{name}", cure="convert|re-?save",
    )  # fmt: skip


@variants(
    ("torch.nn.modules.conv", "Conv9d"), ("transformers.models.bert.modeling_bert", "BertTurbo")
)
def library_older_than_the_file(at: At, module: str, name: str) -> Broken:
    """The package is here, and has no such class yet."""
    model = nn.Sequential(lived(ConvNet(8)))
    path = global_renamed(at.save(model), f"{_HERE}.Residual", f"{module}.{name}")
    return Broken(
        path=path, finds="class-missing", place=name, mend=written(state(model)),
        cause=f"{name}.*(not|can|no attribute)|Can't get attribute.*{name}", cure="upgrade|newer",
    )  # fmt: skip


@variants(
    (nn.Upsample, "recompute_scale_factor"), (nn.GELU, "approximate"), (nn.Conv2d, "padding_mode"),
    (nn.BatchNorm1d, "track_running_stats"), (nn.TransformerEncoderLayer, "norm_first"),
)  # fmt: skip
def class_changed_since(at: At, cls: Any, attribute: str) -> Broken:
    """An old whole-model file: today's class sets an attribute that the pickled object lacks."""
    given: Any = {
        nn.Upsample: {"scale_factor": 2.0}, nn.GELU: {}, nn.BatchNorm1d: {"num_features": 5},
        nn.Conv2d: {"in_channels": 2, "out_channels": 3, "kernel_size": 3},
        nn.TransformerEncoderLayer: {"d_model": 8, "nhead": 2, "dim_feedforward": 16},
    }[cls]  # fmt: skip
    made = [nn.Sequential(nn.Linear(4, at.rng.randint(2, 9)), cls(**given)) for _ in range(2)]
    made[1][0] = nn.Linear(4, made[0][0].out_features)
    truth = state(lived(made[0]))
    del made[0][1].__dict__[attribute]
    return Broken(
        path=at.save(made[0]), finds="attributes-missing", place="1", mend=holds(truth),
        targets={"model": made[1]}, cause=f"{attribute}",
        cure="rebuild|state_dict|load the weights",
    )  # fmt: skip


@variants("_rebuild_tensor_v9", "_rebuild_nested_v4")
def rebuilt_by_a_newer_torch(at: At, function: str) -> Broken:
    """The file names a function that the installed torch does not have."""
    path = global_renamed(
        at.save(state(lived(any_model(at)()))), "torch._utils._rebuild_tensor_v2",
        f"torch._utils.{function}",
    )  # fmt: skip
    return Broken(
        path=path, finds="torch-older", place=function, mend=Tell("upgrade|newer|version"),
        cause=f"{function}", cure="upgrade|newer torch|newer version",
    )  # fmt: skip


def element_type_of_a_newer_torch(at: At) -> Broken:
    truth = {"w": torch.ones(4, dtype=torch.float8_e4m3fn), "b": torch.ones(2)}
    path = replaced(at.save(truth), (b"ctorch\nfloat8_e4m3fn\n", b"ctorch\nfloat3_e1m1xy\n"))
    return Broken(
        path=path, finds=("torch-older", "dtype-unknown"), place=("w", "float3_e1m1xy"),
        mend=Tell("upgrade|newer|version"), cause="float3_e1m1xy", cure="upgrade|newer torch",
    )  # fmt: skip


def archive_of_a_newer_torch(at: At) -> Broken:
    """PyTorchFileFormat 99: no torch of today reads it."""
    path = rewritten(at.save(state(any_model(at)())), "version", lambda _: b"99\n")
    return Broken(
        path=path, finds=("torch-older", "format-newer"), place=("version", path.name),
        mend=Tell("upgrade|newer"), cause="maximum supported version|version", cure="upgrade|newer",
    )  # fmt: skip


def path_of_another_system(at: At) -> Broken:
    """A pathlib.WindowsPath among the settings: no such path can be made here."""
    make, key = any_model(at), at.word(3)
    truth = state(lived(make()))
    with _Elsewhere("elsewhere", "WinPath", Meter) as cls:
        path = at.save({"model": truth, key: cls()})
    global_renamed(path, "elsewhere.WinPath", "pathlib.WindowsPath")
    return Broken(
        path=path, finds=("weights-only", "class-missing"), place=key, mend=kept(truth),
        targets={"model": make()}, cause="WindowsPath", cure="convert|re-?save|PurePath",
    )  # fmt: skip


def written_by_python_2(at: At) -> Broken:
    """Byte strings with an accent where Python 3 writes text."""
    key, truth = at.word(), state(lived(sequential()))
    path = at.save({"state": truth, key: "naive"}, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    assert text("naive") in data
    path.write_bytes(data.replace(text("naive"), b"U\x05na\xefve"))
    return Broken(
        path=path, finds=("weights-only", "python-2"), place=(key, path.name), mend=written(truth),
        cause="Python 2|ascii|latin|utf-8", cure="encoding|latin1|convert",
    )  # fmt: skip
