"""Which tensor goes into which file, and where: decided before a byte is written."""

import json
from collections.abc import Mapping
from math import prod
from typing import Any, Protocol

import xxhash
from msgspec import Struct

from holdtrue.formats.safetensors import build_header
from holdtrue.limits import limits
from holdtrue.records.manifest import FileRecord, TensorRecord

# What Hugging Face's loaders look for before they read a file.
_METADATA: Mapping[str, str] = {"format": "pt"}


class Stored(Protocol):
    """What the layout has to know of a tensor; `capture.tensors.Source` and `engine.stored`."""

    @property
    def code(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def nbytes(self) -> int: ...


class Placement(Struct, frozen=True, gc=False):
    key: str  # tensor key
    name: str  # within the file
    offset: int  # first byte, from the start of the file
    nbytes: int


class PlannedFile(Struct, frozen=True):
    name: str
    head: bytes  # all bytes before the data; the whole content of an index
    nbytes: int
    placements: tuple[Placement, ...]

    @property
    def record(self) -> FileRecord:
        digest = xxhash.xxh3_128_hexdigest(self.head)
        return FileRecord(nbytes=self.nbytes, header=len(self.head), header_digest=digest)


def lay_out(records: Mapping[str, TensorRecord], stored: Mapping[str, Stored]) -> list[PlannedFile]:
    """One file a part, several above the shard size; what a state_dict leaves out stands apart.

    Frozen parameters go into files of their own, which do not change from save to save and are
    linked. Within a file, larger elements come first, so that every tensor is aligned to its size.
    """
    groups: dict[str, list[str]] = {}
    for key in stored:
        part = key.partition("/")[0]
        stem = part if records[key].persistent else f"{part}-nonpersistent"
        groups.setdefault(stem, []).append(key)
    files: list[PlannedFile] = []
    for stem, keys in groups.items():
        shards = [
            shard
            for alike in _frozen_apart(keys, records, stored)
            for shard in _split(alike, stored, limits().shard_bytes)
        ]
        if len(shards) > 1:
            files += _named_shards(stem, shards, stored)
        else:
            files.append(plan_file(f"{stem}.safetensors", keys, stored))
    return files


def _frozen_apart(
    keys: list[str], records: Mapping[str, TensorRecord], stored: Mapping[str, Stored]
) -> list[list[str]]:
    """The frozen parameters and the others, where both are there and it is worth a file."""
    frozen = [k for k in keys if records[k].parameter and not records[k].requires_grad]
    small = sum(stored[key].nbytes for key in frozen) < limits().frozen_bytes
    if small or len(frozen) == len(keys):
        return [keys]
    apart = set(frozen)
    return [frozen, [key for key in keys if key not in apart]]


def plan_shards(
    stem: str, keys: list[str], stored: Mapping[str, Stored], most: int
) -> list[PlannedFile]:
    """Files of at most `most` bytes of tensors, as Hugging Face names them, and their index."""
    return _named_shards(stem, _split(keys, stored, most), stored)


def _named_shards(
    stem: str, shards: list[list[str]], stored: Mapping[str, Stored]
) -> list[PlannedFile]:
    total = len(shards)
    names = [f"{stem}-{i + 1:05d}-of-{total:05d}.safetensors" for i in range(total)]
    files = [plan_file(n, shard, stored) for n, shard in zip(names, shards, strict=True)]
    return [*files, _index(f"{stem}.safetensors.index.json", files)]


def _split(keys: list[str], stored: Mapping[str, Stored], most: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for key in keys:
        nbytes = stored[key].nbytes
        if shards[-1] and filled + nbytes > most:
            shards.append([])
            filled = 0
        shards[-1].append(key)
        filled += nbytes
    return shards


def plan_file(
    name: str,
    keys: list[str],
    stored: Mapping[str, Stored],
    metadata: Mapping[str, str] = _METADATA,
) -> PlannedFile:
    """One safetensors file; within it a tensor is called by its key without the part."""

    def alignment(key: str) -> int:
        source = stored[key]
        count = prod(source.shape)
        return -(source.nbytes // count if count else 0)

    ordered = sorted(keys, key=alignment)
    rows = [
        (key.partition("/")[2], stored[key].code, stored[key].shape, stored[key].nbytes)
        for key in ordered
    ]
    head, entries = build_header(rows, dict(metadata))
    placements = tuple(
        Placement(key, entry.name, len(head) + entry.begin, entry.end - entry.begin)
        for key, entry in zip(ordered, entries.values(), strict=True)
    )
    size = len(head) + sum(p.nbytes for p in placements)
    return PlannedFile(name, head, size, placements)


def _index(name: str, files: list[PlannedFile]) -> PlannedFile:
    """The index of Hugging Face's shards: which tensor is in which file."""
    total = sum(p.nbytes for f in files for p in f.placements)
    body: dict[str, Any] = {
        "metadata": {"total_size": total},
        "weight_map": {p.name: f.name for f in files for p in f.placements},
    }
    text = json.dumps(body, indent=2, ensure_ascii=False).encode() + b"\n"
    return PlannedFile(name, text, len(text), ())
