"""What the `.metadata` of a torch.distributed.checkpoint says, out of the records of its pickle."""

import re
from typing import Any

from msgspec import Struct

from holdtrue.errors import DamageError, fail
from holdtrue.findings import Finding
from holdtrue.formats.pickle_context import ArgumentsError
from holdtrue.formats.pickle_machine import walk
from holdtrue.formats.pickle_operations import Operation
from holdtrue.formats.pickle_source import from_file
from holdtrue.formats.pickle_tensors import dtype_of, shape_of, whole_number
from holdtrue.formats.source import inspect_path
from holdtrue.limits import limits
from holdtrue.records.inert import InertKey, Record

# The classes that describe a checkpoint: read as data here, so nothing that is worth a warning.
_OWN = re.compile(
    r"torch\.distributed\.(_shard\.)?(checkpoint|sharded_tensor)\.(metadata|filesystem)\."
    r"(Metadata|TensorStorageMetadata|TensorProperties|_MEM_FORMAT_ENCODING|ChunkStorageMetadata|"
    r"BytesStorageMetadata|MetadataIndex|_StorageInfo|StorageMeta|MEM_FORMAT_ENCODING)"
)


class Part(Struct, frozen=True):
    """A chunk of a tensor, or a plain value: where it stands in the tensor, and in which file."""

    start: tuple[int, ...]
    shape: tuple[int, ...]
    file: str
    offset: int
    length: int
    transforms: tuple[str, ...] = ()


class Item(Struct, frozen=True):
    """One entry of the flattened state dict; `path` is its place in the original tree."""

    name: str
    path: tuple[str | int, ...]
    parts: tuple[Part, ...]
    shape: tuple[int, ...] | None = None  # None for a value that is no tensor
    dtype: str = ""


class DcpMetadata(Struct, frozen=True):
    items: tuple[Item, ...]
    about: dict[str, Any]
    findings: tuple[Finding, ...]
    would_run: tuple[Operation, ...]


_Places = dict[tuple[str, tuple[int, ...] | None], Record]


def read_metadata(path: str) -> DcpMetadata:
    """The checked contents of one `.metadata` file. Raises OpenError or DamageError."""
    inspect_path(path)
    walked = walk(from_file(path, path), where=path)
    try:
        state = _state(walked.value, "Metadata")
        described = state.get("state_dict_metadata")
        if not isinstance(described, dict):
            raise ValueError("it lists no state dict")
        places = _places(state.get("storage_data"))
        planned = state.get("planner_data")
        planned = planned if isinstance(planned, dict) else {}
        items = tuple(
            _item(name, entry, _path(planned.get(name), name), places)
            for name, entry in described.items()
        )
    except ValueError as error:  # ArgumentsError is one
        raise _damaged(path, str(error)) from None
    version = state.get("version")
    about = {
        "version": version if isinstance(version, str) else None,
        "flattened": bool(planned),
    }
    foreign = tuple(op for op in walked.would_run if not _OWN.fullmatch(op.name))
    return DcpMetadata(items, about, walked.findings, foreign)


def _item(name: Any, entry: Any, path: tuple[str | int, ...], places: _Places) -> Item:
    if not isinstance(name, str):
        raise ValueError("a name in it is no string")
    if not isinstance(entry, Record):
        raise ValueError(f"{name!r} is not described")
    if _last(entry) == "BytesStorageMetadata":
        return Item(name, path, (_part(name, None, (), places),))
    state = _state(entry, "TensorStorageMetadata")
    shape, chunks = shape_of(state.get("size")), state.get("chunks")
    if not isinstance(chunks, list) or not chunks:
        raise ValueError(f"{name!r} has no chunks")
    parts = []
    for chunk in chunks:
        box = _state(chunk, "ChunkStorageMetadata")
        start, size = shape_of(box.get("offsets")), shape_of(box.get("sizes"))
        parts.append(_part(name, start, size, places))
    return Item(name, path, tuple(parts), shape, _dtype(state.get("properties")))


def _part(
    name: str, start: tuple[int, ...] | None, shape: tuple[int, ...], places: _Places
) -> Part:
    record = places.get((name, start)) or places.get((name, None))
    if record is None:
        raise ValueError(f"{name!r} has no place in a file for its chunk at {start}")
    state = _state(record, "_StorageInfo")
    file, transforms = state.get("relative_path"), state.get("transform_descriptors") or ()
    if not isinstance(file, str) or not isinstance(transforms, (list, tuple)):
        raise ValueError(f"{name!r} has no file")
    offset, length = whole_number(state.get("offset")), whole_number(state.get("length"))
    return Part(start or (), shape, file, offset, length, tuple(str(t)[:40] for t in transforms))


def _places(storage_data: Any) -> _Places:
    """Where each chunk lies, by name and start."""
    if not isinstance(storage_data, dict):
        raise ValueError("it says nothing about where the data lies")
    found: _Places = {}
    for key, record in storage_data.items():
        state = _state(key.value if isinstance(key, InertKey) else key, "MetadataIndex")
        name, offset = state.get("fqn"), state.get("offset")
        if not isinstance(name, str) or not isinstance(record, Record):
            raise ValueError("an entry of its table of places is damaged")
        found[name, None if offset is None else shape_of(offset)] = record
    return found


def _path(planned: Any, name: Any) -> tuple[str | int, ...]:
    """The place in the tree that the planner noted; the flattened name itself where it did not."""
    if not isinstance(planned, (tuple, list)) or not planned:
        return (name,)
    if len(planned) > limits().value_depth or isinstance(planned[0], int):
        raise ValueError(f"{name!r} has no place in a tree")
    if not all(isinstance(step, str) or (type(step) is int and step >= 0) for step in planned):
        raise ValueError(f"{name!r} has a place with steps that are neither names nor numbers")
    return tuple(planned)


def _dtype(properties: Any) -> str:
    """`TensorProperties` pickles as a tuple that begins with the dtype; older ones as a dict."""
    state = properties.state if isinstance(properties, Record) else None
    if isinstance(state, dict):
        return dtype_of(state.get("dtype"))
    if isinstance(state, tuple) and state:
        return dtype_of(state[0])
    raise ArgumentsError("a tensor without its properties")


def _state(value: Any, name: str) -> dict[Any, Any]:
    """The attributes of a record of a class of this name, in whichever module torch had it."""
    if not isinstance(value, Record) or _last(value) != name:
        raise ValueError(f"there is no {name} where one belongs")
    if not isinstance(value.state, dict):
        raise ValueError(f"a {name} is empty")
    return value.state


def _last(record: Record) -> str:
    return record.class_name.rpartition(".")[2]


def _damaged(path: str, why: str) -> DamageError:
    return fail(
        DamageError,
        path,
        Finding(
            code="dcp-metadata-damaged",
            severity="error",
            where=path,
            what="the .metadata of a distributed checkpoint is not usable",
            why=why[:300],
            fix="copy .metadata again from where the checkpoint was saved",
        ),
    )
