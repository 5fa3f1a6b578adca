"""What stands under a checkpoint's name and is something else."""

import bz2
import gzip
import json
import lzma
import pickle
import sqlite3
import struct
import tarfile
import zipfile
import zlib
from io import BytesIO
from pathlib import Path

import torch

from benchmarks.diagnosis.broken import At, Broken, Mended, Tell, variants
from benchmarks.diagnosis.checks import equal, tensors_of
from benchmarks.diagnosis.models import any_model, lived, state

_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")


def _case(at: At, data: bytes, finds: str | tuple[str, ...], says: str, cure: str) -> Broken:
    path = at.write(data, at.rng.choice(_SUFFIXES))
    return Broken(
        path=path, finds=finds, place=path.name, mend=Tell(says), cause=says, cure=cure,
    )  # fmt: skip


@variants("\n", "\r\n")
def git_lfs_pointer(at: At, newline: str) -> Broken:
    oid, size = at.rng.randbytes(32).hex(), at.rng.randint(10**6, 10**9)
    lines = ["version https://git-lfs.github.com/spec/v1", f"oid sha256:{oid}", f"size {size}", ""]
    data = newline.join(lines).encode()
    return _case(at, data, "git-lfs-pointer", "lfs pull", "lfs pull")


def git_lfs_pointer_says_what_it_stands_for(at: At) -> Broken:
    oid, size = at.rng.randbytes(32).hex(), at.rng.randint(10**6, 10**9)
    data = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n".encode()
    return _case(at, data, "git-lfs-pointer", f"{size:,}.*{oid}|{oid}.*{size:,}", "lfs pull")


@variants("<!DOCTYPE html>", "\n\n<html>", "<HTML lang='de'>", "\ufeff<html>")
def web_page(at: At, start: str) -> Broken:
    title = f"{at.word().title()} – Sign in"
    page = f"{start}<head><title>{title}</title></head><body>{'<p>text</p>' * 40}</body></html>"
    return _case(at, page.encode(), "web-page", title, "again|direct link|log")


def storage_refusal(at: At) -> Broken:
    data = (
        b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>NoSuchKey</Code>'
        b"<Message>The specified key does not exist.</Message></Error>"
    )
    return _case(at, data, "text-file", "NoSuchKey", "again|path")


def error_in_json(at: At) -> Broken:
    data = json.dumps({"error": f"Repository {at.word()} not found", "status": 404}).encode()
    return _case(at, data, "text-file", "error message|JSON", "again")


def configuration(at: At) -> Broken:
    data = json.dumps(
        {"architectures": ["BertModel"], "model_type": "bert", "x": at.word()}
    ).encode()
    return _case(at, data, "text-file", "config", "safetensors|weights|beside")


def notebook(at: At) -> Broken:
    cells = [{"cell_type": "code", "source": [at.word()], "outputs": []} for _ in range(3)]
    return _case(
        at,
        json.dumps({"cells": cells, "nbformat": 4}).encode(),
        "text-file",
        "JSON|notebook",
        "path",
    )


def settings_in_yaml(at: At) -> Broken:
    data = f"trainer:\n  lr: 0.1\n  name: {at.word()}\nmodel:\n  depth: 4\n".encode()
    return _case(at, data, "text-file", "YAML|text", "path|fetch")


def source_code(at: At) -> Broken:
    data = f"import torch\n\n\ndef {at.word()}(x):\n    return x + 1\n".encode()
    return _case(at, data, "text-file", "text|Python", "path|fetch")


def training_log(at: At) -> Broken:
    data = "".join(f"epoch {i} loss {at.rng.random():.4f}\n" for i in range(30)).encode()
    return _case(at, data, "text-file", "text", "path|fetch")


def table_of_numbers(at: At) -> Broken:
    data = "".join(f"{i},{at.rng.random()}\n" for i in range(30)).encode()
    return _case(at, data, "text-file", "text|CSV", "path|fetch")


def _torch_bytes(at: At) -> tuple[bytes, dict[str, torch.Tensor]]:
    truth, buffer = state(lived(any_model(at)())), BytesIO()
    torch.save(truth, buffer)
    return buffer.getvalue(), truth


@variants("gzip", "bzip2", "xz", "zlib")
def compressed(at: At, how: str) -> Broken:
    data, truth = _torch_bytes(at)
    pack = {
        "gzip": gzip.compress,
        "bzip2": bz2.compress,
        "xz": lzma.compress,
        "zlib": zlib.compress,
    }
    suffix = {"gzip": ".pt.gz", "bzip2": ".pt.bz2", "xz": ".pt.xz", "zlib": ".pt"}[how]
    path = at.write(pack[how](data), suffix)
    return Broken(
        path=path, finds="compressed-file", place=path.name, cause=how,
        mend=_unpacked(path, truth) if how != "zlib" else Tell("zlib"), cure="unpack|gunzip|unxz",
    )  # fmt: skip


def _unpacked(path: Path, truth: dict[str, torch.Tensor]) -> Mended:
    def check(seen: object) -> bool:
        found = [p for p in path.parent.iterdir() if p.is_file() and p.read_bytes()[:2] == b"PK"]
        return any(all(equal(tensors_of(p)[n], t) for n, t in truth.items()) for p in found)

    return Mended(check)


@variants("zip", "tar", "tar.gz")
def archive_around_it(at: At, how: str) -> Broken:
    data, _ = _torch_bytes(at)
    inner, path = f"{at.word()}.pth", at.path(at.rng.choice((".zip", ".pt", ".pth.tar")))
    if how == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"weights/{inner}", data)
    else:
        with tarfile.open(path, "w:gz" if how == "tar.gz" else "w") as archive:
            info = tarfile.TarInfo(f"weights/{inner}")
            info.size = len(data)
            archive.addfile(info, BytesIO(data))
    says = "gzip|tar" if how == "tar.gz" else inner
    return Broken(
        path=path, finds="compressed-file", place=path.name, mend=Tell(says),
        cause=f"archive|{says}", cure="unpack|unzip|extract",
    )  # fmt: skip


_MAGIC = {
    "HDF5": b"\x89HDF\r\n\x1a\n\0\0\0\0\0\x08\x08\0",
    "GGUF": b"GGUF" + struct.pack("<IQQ", 3, 2, 1),
    "Parquet": b"PAR1" + b"\x15\x04\x15",
    "7-Zip": b"7z\xbc\xaf\x27\x1c\0\4",
    "PDF": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
    "PNG": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    "ONNX": b"\x08\x08\x12\x07pytorch\x1a\x052.3.0:\x80\x01",
    "ELF": b"\x7fELF\x02\x01\x01\0",
    "Zstandard": b"\x28\xb5\x2f\xfd\x04\x58",
}


@variants(*_MAGIC)
def file_of_another_kind(at: At, kind: str) -> Broken:
    data = _MAGIC[kind] + at.rng.randbytes(at.rng.randint(2000, 6000))
    finds = ("foreign-format", "not-a-checkpoint", "compressed-file")
    return _case(
        at, data, finds, kind.replace("-Zip", ".?Zip"), "export|convert|release|path|unpack"
    )


def database(at: At) -> Broken:
    path = at.path(".ckpt")
    with sqlite3.connect(path) as base:
        base.execute("create table runs (id integer, loss real)")
    base.close()
    return Broken(
        path=path, finds="not-a-checkpoint", place=path.name, mend=Tell("SQLite"), cause="SQLite",
        cure="path|fetch",
    )  # fmt: skip


def tensorboard_events(at: At) -> Broken:
    """The record file beside the checkpoint, not the checkpoint."""
    body = b"\x09" + struct.pack("<d", 1.7e9) + b"\x1a\x0dbrain.Event:2"
    data = struct.pack("<QI", len(body), 0x1234ABCD) + body + struct.pack("<I", 0xDEADBEEF)
    return _case(
        at,
        data * 3,
        ("unknown-format", "not-a-checkpoint"),
        "events|TensorBoard|known",
        "path|fetch|what wrote",
    )


def noise(at: At) -> Broken:
    return _case(
        at, b"\xf7\xe1" + at.rng.randbytes(5000), "unknown-format", "format", "fetch|again"
    )


def pickle_of_settings(at: At) -> Broken:
    path = at.write(pickle.dumps({"lr": 0.1, "name": at.word()}), ".pkl")
    return Broken(
        path=path, finds="no-tensors", place=path.name, mend=Tell("tensor|weights|model"),
        cause="no tensor", cure="weights|state_dict|model",
    )  # fmt: skip


def half_a_download(at: At) -> Broken:
    """What a browser leaves while it fetches."""
    data, _ = _torch_bytes(at)
    path = at.write(data[: len(data) // at.rng.choice((2, 3))], ".pt.crdownload")
    return Broken(
        path=path, finds=("damage", "half-name"), place=path.name,
        mend=Tell("fetch|download|again|salvage"),
        cause="truncat|incomplete|ends before|central directory", cure="again|fetch|download",
    )  # fmt: skip
