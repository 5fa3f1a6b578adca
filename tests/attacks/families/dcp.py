# ruff: noqa: E501  (tables, one attack a line)
"""torch.distributed.checkpoint directories: `.metadata` is a pickle that torch unpickles on load."""

import dataclasses
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save as save_safetensors
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

from attacks import canary
from attacks.attack import INERT, Attack, Must, add, attack, refused, told
from attacks.families.pickles_that_run import call
from attacks.families.torch_files import torch_zip

FAMILY = "DCP metadata"
DAMAGED = "dcp-metadata-damaged"


def change(folder, edit):
    path = folder / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    edit(metadata)
    path.write_bytes(pickle.dumps(metadata))


def of(metadata, name):
    return next(k for k in metadata.storage_data if k.fqn == name)


def place(metadata, name, **changes):
    key = of(metadata, name)
    metadata.storage_data[key] = dataclasses.replace(metadata.storage_data[key], **changes)


def chunks(metadata, *boxes):
    entry = metadata.state_dict_metadata["w"]
    entry.chunks[:] = [ChunkStorageMetadata(torch.Size(a), torch.Size(b)) for a, b in boxes]
    info = metadata.storage_data.pop(of(metadata, "w"))
    for start, _ in boxes:
        index = dcp.metadata.MetadataIndex("w", start)
        metadata.storage_data[index] = info


HOSTILE = {
    "outside": (lambda m: place(m, "w", relative_path="../x"), "shard-name-unsafe"),
    "absolute": (lambda m: place(m, "w", relative_path="/etc/passwd"), "shard-name-unsafe"),
    "backslash": (lambda m: place(m, "w", relative_path="a\\b"), "shard-name-unsafe"),
    "no file": (lambda m: place(m, "w", relative_path=3), "dcp-metadata-damaged"),
    "far": (lambda m: place(m, "w", offset=1 << 62), "bytes-missing"),
    "past every number": (lambda m: place(m, "w", offset=1 << 70), "dcp-metadata-damaged"),
    "long": (lambda m: place(m, "w", length=1 << 40), "bytes-missing"),
    "negative": (lambda m: place(m, "w", offset=-1), "dcp-metadata-damaged"),
    "middle": (lambda m: place(m, "w", offset=7), None),
    "nothing": (lambda m: place(m, "w", length=0), None),
    "transformed": (
        lambda m: place(m, "w", transform_descriptors=["stream.zstd"]),
        "dcp-transformed",
    ),
    "no place": (lambda m: m.storage_data.clear(), "dcp-metadata-damaged"),
    "no table": (lambda m: setattr(m, "storage_data", 3), "dcp-metadata-damaged"),
    "no state": (lambda m: setattr(m, "state_dict_metadata", None), "dcp-metadata-damaged"),
    "no chunks": (lambda m: m.state_dict_metadata["w"].chunks.clear(), "dcp-metadata-damaged"),
    "other shape": (
        lambda m: setattr(m.state_dict_metadata["w"], "size", torch.Size([2, 4])),
        "dcp-item-damaged",
    ),
    "other dtype": (
        lambda m: setattr(m.state_dict_metadata["w"].properties, "dtype", torch.int32),
        "dcp-item-damaged",
    ),
    "odd dtype": (
        lambda m: setattr(m.state_dict_metadata["w"].properties, "dtype", 3),
        "dcp-metadata-damaged",
    ),
    "overlap": (lambda m: chunks(m, ((0, 0), (2, 3)), ((0, 1), (2, 3))), "dcp-item-damaged"),
    "gap": (
        lambda m: setattr(m.state_dict_metadata["w"], "size", torch.Size([1 << 40, 3])),
        "dcp-item-damaged",
    ),
    "axes": (lambda m: chunks(m, ((0,), (6,))), "dcp-item-damaged"),
    "list bomb": (lambda m: m.planner_data.update({"w": ("l", 1 << 60)}), "dcp-item-damaged"),
    "list bombs": (
        lambda m: m.planner_data.update({"w": ("l", 4_999_999), "n.epoch": ("k", 4_999_999)}),
        "dcp-item-damaged",
    ),
    "negative step": (lambda m: m.planner_data.update({"w": ("l", -1)}), "dcp-metadata-damaged"),
    "number first": (lambda m: m.planner_data.update({"w": (0, "a")}), "dcp-metadata-damaged"),
    "deep": (lambda m: m.planner_data.update({"w": ("a",) * 5000}), "dcp-metadata-damaged"),
    "list and dict": (lambda m: m.planner_data.update({"w": ("n", 3)}), "dcp-item-damaged"),
    "through a value": (
        lambda m: m.planner_data.update({"w": ("v", "a"), "n.epoch": ("v",)}),
        "dcp-item-damaged",
    ),
}


def small(folder: Path) -> Path:
    place = folder / "dcp"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = {"w": torch.arange(6.0).reshape(2, 3), "n": {"epoch": 1}}
        dcp.save(state, checkpoint_id=place, no_dist=True)
    return place


def _changed(edit: Callable[[Any], object]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        place_ = small(folder)
        change(place_, edit)
        return place_

    return make


for _name, (_edit, _code) in HOSTILE.items():
    add(
        Attack(
            _name,
            FAMILY,
            "to make the reader believe a lie",
            refused(_code or "any"),
            _changed(_edit),
        )
    )


@attack(
    FAMILY,
    "metadata that runs code",
    "to run code on load",
    told("code-in-file"),
    "torch.distributed.checkpoint",
)
def running(folder: Path) -> Path:
    place_ = small(folder)

    class Trap:
        def __reduce__(self) -> Any:
            return (open, (str(canary.canary()), "w"))

    change(place_, lambda m: setattr(m, "storage_meta", Trap()))
    return place_


@attack(
    FAMILY,
    "metadata that is a payload",
    "to run code on load",
    refused(DAMAGED),
    "torch.distributed.checkpoint",
)
def payload(folder: Path) -> Path:
    place_ = small(folder)
    (place_ / ".metadata").write_bytes(b"\x80\x02" + call("os", "system", canary.shell()) + b".")
    return place_


@attack(
    FAMILY,
    "shard that runs code",
    "to run code when a shard is read",
    INERT,
    "torch.distributed.checkpoint",
)
def shard(folder: Path) -> Path:
    place_ = small(folder)
    metadata = pickle.loads((place_ / ".metadata").read_bytes())
    path = place_ / "__0_0.distcp"
    raw = path.read_bytes()
    info = metadata.storage_data[of(metadata, "n.epoch")]
    bad = torch_zip(b"\x80\x02" + call("os", "system", canary.shell()) + b".")
    path.write_bytes(raw + bad)
    place(metadata, "n.epoch", offset=len(raw), length=len(bad))
    assert info.relative_path == path.name
    (place_ / ".metadata").write_bytes(pickle.dumps(metadata))
    return place_


@attack(FAMILY, "metadata that is a link", "to read a pickle outside", INERT)
def linked(folder: Path) -> Path:
    place_ = small(folder)
    (place_ / ".metadata").rename(folder / "elsewhere")
    (place_ / ".metadata").symlink_to(folder / "elsewhere")
    return place_


SHARDING = [
    "no json",
    "[]",
    '{"a": 3}',
    '{"a": {}}',
    '{"a": {"saved_offsets": [1]}}',
    '{"a": {"saved_offsets": [-1, 0]}}',
    '{"a": {"saved_offsets": [0, 1]}}',
    '{"a": {"saved_offsets": [0.0, 0]}}',
    '{"a": {"saved_offsets": [9223372036854775807, 0]}}',
]
for _number, _info in enumerate(SHARDING):

    def _sharded(folder: Path, info: str = _info) -> Path:
        data = save_safetensors({"a": torch.ones(2, 2)}, {"DCP_SHARDING_INFO": info})
        (folder / "set").mkdir()
        (folder / "set" / "a.safetensors").write_bytes(data)
        return folder / "set"

    add(
        Attack(
            f"sharding information {_number}: {_info[:30]}",
            FAMILY,
            "offsets that lie",
            Must("refused", "any"),
            _sharded,
        )
    )
