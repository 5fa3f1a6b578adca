"""One state dict as a safetensors file, as shards, or as a torch file."""

from collections.abc import Callable
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from holdtrue.doctor import to_safetensors, to_torch
from holdtrue.doctor.budget import check_expansion
from holdtrue.doctor.destination import Destination
from holdtrue.doctor.keeping import memory_of
from holdtrue.doctor.kinds import title
from holdtrue.doctor.leftovers import left_values, tensors_findings, values_finding
from holdtrue.doctor.state_dicts import StateDict
from holdtrue.engine.stored import StoredSource, prove
from holdtrue.engine.torch_archive import archive_bytes, write_archive
from holdtrue.engine.write import write_files
from holdtrue.findings import Finding
from holdtrue.formats.view import LazyTensor, View
from holdtrue.limits import limits
from holdtrue.storage.commit import publish, publish_file, require_files
from holdtrue.storage.failures import not_written


class Flat(Struct, frozen=True):
    """What was written, and what was not."""

    tensors: int
    nbytes: int
    findings: list[Finding]


def write(view: View, state: StateDict, place: Destination) -> Flat:
    """Write a state dict of the view. Raises SaveError or DamageError, and then leaves nothing."""
    left: dict[str, str] = {}
    names: dict[str, LazyTensor] = {}
    for name, tensor in state.names.items():
        torch_kind = place.kind == "torch"
        why = to_torch.unfit(tensor) if torch_kind else to_safetensors.unfit(name, tensor)
        if why is None:
            names[name] = tensor
        else:
            left[name] = why
    versions = _versions(state) if place.kind == "torch" else {}
    metadata = view.about["metadata"] if view.format == "safetensors" else {}
    job = _job(place, names, versions, metadata)
    check_expansion(view.path, job.sources)
    prove(source.tensor for source in job.sources)
    try:
        job.run(place.counter(job.sources))
    except OSError as error:
        raise not_written(place.path, error, job.nbytes) from error
    beside = left_values(view, state, attributes=bool(versions))
    if metadata and place.kind != "safetensors":
        beside += [f"__metadata__/{key}" for key in metadata if key != "format"]
    findings = [
        *tensors_findings(left),
        *values_finding(view.path, title(place.kind), beside),
        *(_copies(names) if place.kind != "torch" else ()),
        *(_numbers(view) if state.node is None else ()),
    ]
    return Flat(len(names), job.nbytes, findings)


class _Job(Struct, frozen=True, eq=False):
    """A file or directory that is ready to be written."""

    nbytes: int
    sources: list[StoredSource]
    run: Callable[[Callable[[int], None]], None]  # told what to tell the progress to


def _job(
    place: Destination,
    names: dict[str, LazyTensor],
    versions: dict[str, Any],
    metadata: dict[str, str],
) -> _Job:
    if place.kind == "torch":
        return _torch_job(place, to_torch.torch_file(names, versions))
    if place.kind == "shards":
        most = limits().shard_bytes if place.shard_bytes is None else place.shard_bytes
        return _shards_job(place, to_safetensors.shards(names, most))
    return _file_job(place, to_safetensors.one_file(names, metadata))


def _torch_job(place: Destination, made: to_torch.TorchFile) -> _Job:
    def run(count: Callable[[int], None]) -> None:
        with publish_file(place.path, replace=place.overwrite) as staged:
            write_archive(staged, made.pickle, made.storages, count)

    return _Job(archive_bytes(made.pickle, made.storages), made.storages, run)


def _shards_job(place: Destination, made: to_safetensors.Files) -> _Job:
    def run(count: Callable[[int], None]) -> None:
        with publish(place.path, replace=place.overwrite) as staged:
            write_files(staged, made.files, made.sources, count)
            require_files(staged, {file.name: file.nbytes for file in made.files})

    return _Job(made.nbytes, list(made.sources.values()), run)


def _file_job(place: Destination, made: to_safetensors.Files) -> _Job:
    def run(count: Callable[[int], None]) -> None:
        with publish_file(place.path, replace=place.overwrite) as staged:
            named = [replace(made.files[0], name=staged.name)]
            write_files(staged.parent, named, made.sources, count)

    return _Job(made.nbytes, list(made.sources.values()), run)


def _versions(state: StateDict) -> dict[str, Any]:
    """`_metadata` of a state dict, the versions of its modules, where it is nothing but those."""
    found = state.attributes.get("_metadata")
    if not isinstance(found, dict) or len(state.attributes) > 1:
        return {}
    plain = all(
        isinstance(name, str)
        and isinstance(own, dict)
        and all(isinstance(k, str) and isinstance(v, int | None) for k, v in own.items())
        for name, own in found.items()
    )
    return {"_metadata": found} if plain else {}


def _numbers(view: View) -> list[Finding]:
    """The note on keys that were numbers, where a tree without a state dict is laid flat."""
    if not isinstance(view.tree, dict):
        return []
    places = tuple(
        str(key)
        for key, value in view.tree.items()
        if type(key) is int and isinstance(value, LazyTensor)
    )
    if not places:
        return []
    return [
        Finding(
            code="keys-became-text",
            severity="warning",
            where=places[0],
            places=places,
            what=f"keys that were numbers and are text in the result: {len(places):,}",
            why="the result is a state dict, whose names are text",
            fix="look these tensors up by text, or turn the names back into numbers",
        )
    ]


def _copies(names: dict[str, LazyTensor]) -> list[Finding]:
    """The note on tensors that were one and now are several."""
    first: dict[Any, str] = {}
    again = [
        f"{name} = {first[memory]}"
        for name, tensor in names.items()
        if first.setdefault(memory := memory_of(tensor), name) != name
    ]
    if not again:
        return []
    return [
        Finding(
            code="ties-stored-twice",
            severity="note",
            where=again[0],
            places=tuple(again),
            what=f"tied to another, and written out again: {len(again):,}",
            why="safetensors has no two names for the same bytes; the values are equal, and a "
            "model that ties them ties them again as it loads",
        )
    ]
