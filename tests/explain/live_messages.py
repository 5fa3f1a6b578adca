"""What torch, safetensors, NumPy and the system really say: each is made by doing the thing."""

import errno
import gzip
import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn


def saved(**how):
    torch.save({"w": torch.ones(5000)}, buffer := io.BytesIO(), **how)
    return buffer.getvalue()


def loads(data, **how):
    Path("f.pt").write_bytes(data)
    return torch.load("f.pt", **how)


def unpickles(data):
    return pickle.loads(data)


def entry(shape, at):
    return {"w": {"dtype": "F32", "shape": [shape], "data_offsets": at}}


def safe(data):
    Path("f.safetensors").write_bytes(data)
    return load_file("f.safetensors")


def header(text, body=b""):
    raw = text if isinstance(text, bytes) else json.dumps(text).encode()
    return struct.pack("<Q", len(raw)) + raw + body


def linear(a=2, b=2):
    return nn.Linear(a, b)


def fills(model, state):
    return model.load_state_dict(state)


def without(name):
    data = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved())) as source, zipfile.ZipFile(data, "w") as made:
        for entry in source.namelist():
            if not entry.endswith(name):
                made.writestr(entry, source.read(entry))
    return data.getvalue()


def moved_directory():
    data = bytearray(saved())
    at = data.rindex(b"archive/data/0") - 46
    data[at + 42 : at + 46] = struct.pack("<I", 999)
    return bytes(data)


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = linear(), linear()
        self.b.weight = self.a.weight


class Local:
    pass


def stepping(model, other):
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    second = torch.optim.Adam(list(other.parameters())[::-1])
    second.load_state_dict(optimizer.state_dict())
    other(torch.ones(1, 3)).sum().backward()
    second.step()


def on_cuda():
    torch.serialization.register_package(0, lambda s: "cuda:0", lambda s, tag: None)
    try:
        data = saved()
    finally:
        torch.serialization._package_registry.pop(0)
    return loads(data)


def of_a_device(tag):
    torch.serialization.register_package(0, lambda s: tag, lambda s, t: None)
    try:
        data = saved()
    finally:
        torch.serialization._package_registry.pop(0)
    return loads(data)


def newer():
    data = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved())) as source, zipfile.ZipFile(data, "w") as made:
        for entry in source.namelist():
            made.writestr(entry, b"99\n" if entry.endswith("/version") else source.read(entry))
    return loads(data.getvalue())


def flipped_npz():
    np.savez("a.npz", w=np.arange(500.0))
    data = bytearray(Path("a.npz").read_bytes())
    data[2000] ^= 1
    Path("a.npz").write_bytes(data)
    return np.load("a.npz")["w"]


def meta():
    with torch.device("meta"):
        return linear().to("cpu")


def full_disk():
    with Path("/dev/full").open("wb", buffering=0) as file:
        file.write(b"x" * 100)


def torch_on_a_full_disk():
    torch.save({"w": torch.ones(50_000)}, "/dev/full")


def many_steps():
    optimizer = torch.optim.SGD(linear().parameters(), 0.1)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=2)
    for _ in range(5):
        optimizer.step()
        scheduler.step()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n"
STATE = {"weight": torch.ones(2, 2), "bias": torch.ones(2)}


def prefixed(prefix):
    return {prefix + name: value for name, value in STATE.items()}


# What is done → the page that has to come first.
LIVE = {
    "lfs pointer": (lambda: loads(LFS), "git-lfs-pointer"),
    "lfs pointer, unpickled": (lambda: unpickles(LFS), "git-lfs-pointer"),
    "web page": (lambda: loads(b"<!DOCTYPE html><html></html>"), "web-page"),
    "web page, unpickled": (lambda: unpickles(b"<!DOCTYPE html>"), "web-page"),
    "web page after a line": (lambda: loads(b"\n<!DOCTYPE html><html>"), "web-page"),
    "web page after a line, unpickled": (lambda: unpickles(b"\n<html>"), "web-page"),
    "json": (lambda: loads(b'{"error": "no"}'), "text-file"),
    "json, unpickled": (lambda: unpickles(b'{"error": "no"}'), "text-file"),
    "gzip": (lambda: loads(gzip.compress(b"x")), "compressed-file"),
    "gzip, unpickled": (lambda: unpickles(gzip.compress(b"x")), "compressed-file"),
    "hdf5": (lambda: loads(b"\x89HDF\r\n\x1a\n" + bytes(100)), "foreign-format"),
    "onnx": (lambda: unpickles(b"\x08\x08\x12\x07pytorch"), "foreign-format"),
    "zeros, unpickled": (lambda: unpickles(bytes(100)), "file-zeroed"),
    "zeros": (lambda: loads(bytes(300)), "file-zeroed"),
    "pdf": (lambda: unpickles(b"%PDF-1.7"), "not-a-checkpoint"),
    "jpeg": (lambda: unpickles(b"\xff\xd8\xff\xe0"), "not-a-checkpoint"),
    "empty": (lambda: loads(b""), "file-empty"),
    "empty, unpickled": (lambda: unpickles(b""), "file-empty"),
    "plain pickle": (lambda: loads(pickle.dumps({"a": 1}, 2)), "not-legacy-torch"),
    "cut zip": (lambda: loads(saved()[:15_000]), "zip-no-directory"),
    "directory moved": (lambda: loads(moved_directory()), "zip-bad-offset"),
    "cut legacy file": (
        lambda: loads(saved(_use_new_zipfile_serialization=False)[:-900], weights_only=True),
        "legacy-truncated",
    ),
    "no data.pkl": (lambda: loads(without("data.pkl")), "zip-no-pickle"),
    "no storage": (lambda: loads(without("data/0")), "storage-missing"),
    "newer torch": (newer, "torch-older"),
    "directory": (lambda: loads_path("."), "directory-unknown"),
    "no file": (lambda: loads_path("absent.pt"), "path-missing"),
    "long name": (lambda: loads_path("n" * 300), "path-unreadable"),
    "disallowed class": (lambda: loads(of(Local())), "weights-only-refuses"),
    "disallowed numpy": (lambda: loads(of(np.float64(1.0))), "weights-only-refuses"),
    "lost class": (lambda: loads(of_lost(), weights_only=False), "class-missing"),
    "lost class, unpickled": (
        lambda: unpickles(b"\x80\x02cabsent.models\nNet\n."),
        "class-missing",
    ),
    "class of a script": (lambda: unpickles(b"\x80\x02c__main__\nNoSuchNet\n."), "class-missing"),
    "cuda": (on_cuda, "device-tags"),
    "npu": (lambda: of_a_device("npu:0"), "device-tags"),
    "header too large": (lambda: safe(b"\xff" * 100), "safetensors-header-damaged"),
    "a pickle as safetensors": (lambda: safe(saved()), "safetensors-header-damaged"),
    "header cut": (lambda: safe(header({"w": 1})[:6]), "safetensors-header-damaged"),
    "header no json": (lambda: safe(header(b"{hello there}")), "safetensors-header-damaged"),
    "header no text": (lambda: safe(header(b"\xff\xfe\xfd\xfc")), "safetensors-header-damaged"),
    "data cut": (
        lambda: safe(header(entry(9, [0, 36]), b"x")),
        "safetensors-header-damaged",
    ),
    "bad offsets": (
        lambda: safe(header(entry(1, [4, 8]), b"x" * 8)),
        "safetensors-header-damaged",
    ),
    "bad shape": (
        lambda: safe(header(entry(9, [0, 4]), b"x" * 4)),
        "safetensors-header-damaged",
    ),
    "no such tensor": (lambda: no_tensor(), "tensor-not-in-shard"),
    "shared memory": (lambda: save_file(Shared().state_dict(), "a"), "tied-tensors"),
    "not contiguous": (lambda: save_file({"w": torch.ones(2, 3).T}, "a"), "tensor-unsupported"),
    "not a tensor": (lambda: save_file({"epoch": 3}, "a"), "value-unsupported"),
    "missing keys": (lambda: fills(linear(), {"weight": torch.ones(2, 2)}), "missing-keys"),
    "unexpected keys": (lambda: fills(linear(), STATE | {"scale": 1}), "unexpected-keys"),
    "data parallel": (lambda: fills(linear(), prefixed("module.")), "prefix-removed"),
    "compiled": (lambda: fills(linear(), prefixed("_orig_mod.")), "prefix-removed"),
    "lightning": (lambda: fills(linear(), prefixed("model.")), "prefix-removed"),
    "into data parallel": (lambda: fills(nn.DataParallel(linear()), STATE), "prefix-removed"),
    "nested": (lambda: fills(linear(), {"epoch": 3, "state_dict": STATE}), "nested-key"),
    "nested model": (lambda: fills(linear(), {"model": STATE, "optimizer": {}}), "nested-key"),
    "shapes": (lambda: fills(linear(3, 2), STATE), "shape-mismatch"),
    "a model as a state dict": (lambda: fills(linear(), linear()), "part-kind-changed"),
    "a state dict as a model": (lambda: linear().state_dict().eval(), "part-kind-changed"),
    "a state dict moved": (lambda: linear().state_dict().to("cpu"), "part-kind-changed"),
    "a state dict called": (lambda: linear().state_dict()(1), "part-kind-changed"),
    "weights only, no optimizer": (lambda: {"model": 1}["optimizer"], "part-missing"),
    "no state_dict": (lambda: {"model": 1}["state_dict"], "part-missing"),
    "other groups": (
        lambda: torch.optim.Adam([linear().weight]).load_state_dict(
            torch.optim.Adam(linear().parameters()).state_dict()
        ),
        "optimizer-params-missing",
    ),
    "other number of groups": (
        lambda: torch.optim.Adam([linear().weight]).load_state_dict(
            torch.optim.Adam([{"params": [p]} for p in linear().parameters()]).state_dict()
        ),
        "optimizer-groups-changed",
    ),
    "moments of another shape": (lambda: stepping(linear(3, 2), linear(3, 2)), "optimizer-shapes"),
    "a finished schedule": (many_steps, "scheduler-settings-from-file"),
    "lambda": (lambda: pickle.dumps({"f": lambda: 0}), "value-unsupported"),
    "lock": (lambda: pickle.dumps(__import__("threading").Lock()), "value-unsupported"),
    "meta": (meta, "target-on-meta"),
    "numpy cut": (lambda: cut_npy(), "npy-damaged"),
    "numpy flipped": (flipped_npz, "crc-mismatch"),
    "no torch": (lambda: no_module("torch"), "package-missing"),
    "disk full": (full_disk, "disk-full"),
    "disk full in torch.save": (torch_on_a_full_disk, "disk-full"),
    "quota": (lambda: fails(errno.EDQUOT), "disk-full"),
    "denied": (lambda: fails(errno.EACCES), "permission-denied"),
    "read-only": (lambda: fails(errno.EROFS), "permission-denied"),
    "input/output": (lambda: fails(errno.EIO), "read-failed"),
    "bfloat16 to numpy": (lambda: torch.ones(2).bfloat16().numpy(), "dtype-not-in-numpy"),
    "sparse to numpy": (lambda: torch.eye(2).to_sparse().numpy(), "layout-not-plain"),
    "mark": (lambda: unpickles(b"\x80\x02."), "pickle-malformed"),
    "cut pickle": (lambda: unpickles(pickle.dumps(["x" * 300], 4)[:50]), "pickle-truncated"),
    "buffers": (lambda: unpickles(out_of_band()), "out-of-band-buffer"),
    "persistent": (lambda: unpickles(b"\x80\x02X\x03\x00\x00\x00keyQ."), "persistent-id"),
    "zero in a path": (lambda: Path("a\0b").stat(), "path-invalid"),
    "no parameters": (lambda: torch.optim.Adam([]), "modules-unregistered"),
    "rng state": (
        lambda: torch.set_rng_state(torch.zeros(3, dtype=torch.uint8)),
        "rng-device-absent",
    ),
}


def loads_path(path):
    return torch.load(path)


def of(value):
    torch.save({"v": value}, buffer := io.BytesIO())
    return buffer.getvalue()


def of_lost():
    return of(Local()).replace(b"live_messages", b"live_massages")


def no_tensor():
    save_file({"w": torch.ones(1)}, "a.safetensors")
    with safe_open("a.safetensors", "pt") as file:
        return file.get_tensor("head")


def cut_npy():
    np.save("a.npy", np.arange(100))
    Path("a.npy").write_bytes(Path("a.npy").read_bytes()[:-50])
    return np.load("a.npy")


def no_module(name):
    raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def fails(number):
    raise OSError(number, os.strerror(number), "model.pt")


def out_of_band():
    return pickle.dumps(np.ones(3), protocol=5, buffer_callback=[].append)


def traceback_of(make):
    """What Python prints for the error that `make` raises."""
    import traceback

    try:
        make()
    except Exception:
        return traceback.format_exc()
    raise AssertionError("it raised nothing")
