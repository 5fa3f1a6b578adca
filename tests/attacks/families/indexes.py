"""Hugging Face shard indexes that lie."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_safetensors

from attacks import canary
from attacks.attack import Attack, Must, add, attack, refused
from attacks.families.pickles_that_run import call
from attacks.families.torch_files import torch_zip

FAMILY = "shard index"
STATE = {"0.weight": torch.ones(1, 2), "0.bias": torch.ones(1)}


def write_set(
    folder: Path, changes: dict[str, Any] | None = None, suffix: str = "safetensors"
) -> Path:
    """Two shards of one tensor each; `changes` are made to the map."""
    weight_map: dict[str, Any] = {}
    for number, (name, tensor) in enumerate(STATE.items()):
        shard = f"model-{number}.safetensors"
        (folder / shard).write_bytes(save_safetensors({name: tensor}))
        weight_map[name] = shard
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": weight_map | (changes or {})}))
    return path


SHARDS = [
    "../secret.safetensors",
    "/etc/passwd",
    "a/../../b",
    "..",
    ".",
    "",
    "sub/model.safetensors",
    "C:\\weights",
    "a\\b",
    "nul\0",
    "line\nbreak",
    "x" * 300,
]
for _name in SHARDS:
    add(
        Attack(
            f"shard called {_name[:40]!r}",
            FAMILY,
            "to read a file outside",
            refused("shard-name-unsafe"),
            lambda folder, name=_name: write_set(folder, {"0.weight": name}),
        )
    )

TEXTS = [
    '{"weight_map": {"a": 3}}',
    '{"weight_map": {"a": "x", "a": "y"}}',
    '{"weight_map": {',
    '{"weight_map": {}, "weight_map": {}}',
    '{"weight_map": {"a": NaN}}',
    '{"weight_map": {"a":' + "[" * 100_000,
    '{"weight_map": {"a": "a", "\\u0061": "b"}}',
    '{"weight_map": "a"}',
    '{"weight_map": {"a": ' + "9" * 5000 + "}}",
    '{"weight_map": {"a": "' + "x" * (2 << 20) + '"}}',
]
for _number, _text in enumerate(TEXTS):

    def _index(folder: Path, text: str = _text) -> Path:
        path = write_set(folder)
        path.write_text(text)
        return path

    add(
        Attack(
            f"index {_number}: {_text[:40]}",
            FAMILY,
            "to make the reader believe a lie",
            refused({7: "text-file", 9: "shard-name-unsafe"}.get(_number, "index-damaged")),
            _index,
        )
    )


@attack(
    FAMILY,
    "shard that is a link outside",
    "to read a file outside",
    refused("shard-unreadable"),
    follows=True,  # Hugging Face keeps its caches as links
)
def link(folder: Path) -> Path:
    path = write_set(folder)
    (folder / "model-0.safetensors").unlink()
    (folder / "model-0.safetensors").symlink_to("../outside/secret")
    return path


@attack(FAMILY, "shard that is a device", "to read without end", refused("shard-unreadable"))
def device(folder: Path) -> Path:
    path = write_set(folder)
    (folder / "model-0.safetensors").unlink()
    (folder / "model-0.safetensors").symlink_to("/dev/zero")
    return path


@attack(FAMILY, "shard that is a pipe", "to wait without end", refused("shard-unreadable"))
def pipe(folder: Path) -> Path:
    import os

    path = write_set(folder)
    (folder / "model-0.safetensors").unlink()
    os.mkfifo(folder / "model-0.safetensors")
    return path


@attack(FAMILY, "shard that is the index", "to read in a circle", refused("shard-unreadable"))
def circle(folder: Path) -> Path:
    return write_set(folder, {"0.weight": "model.safetensors.index.json"})


@attack(FAMILY, "shard that runs code", "to run code when a shard is read", Must("refused", "any"))
def running(folder: Path) -> Path:
    path = write_set(folder, {"x": "model-2.bin"})
    (folder / "model-2.bin").write_bytes(
        torch_zip(b"\x80\x02}(X\x01\0\0\0x" + call("os", "system", canary.shell()) + b"u.")
    )
    return path


@attack(FAMILY, "ten thousand shards", "to open without end", refused("shard-missing"))
def many(folder: Path) -> Path:
    return write_set(folder, {f"t{i}": f"s{i}.safetensors" for i in range(10_000)})
