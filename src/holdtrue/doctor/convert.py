"""One checkpoint in another format: tensors are streamed over, what has no place is listed."""

import os
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from holdtrue.doctor import to_holdtrue, to_safetensors, to_torch
from holdtrue.doctor.destination import Kind, check_destination, kind_of, title
from holdtrue.doctor.keeping import memory_of
from holdtrue.doctor.leftovers import left_values, tensors_findings, values_finding
from holdtrue.doctor.state_dicts import StateDict, choose, state_dicts
from holdtrue.engine.stored import StoredSource, prove
from holdtrue.engine.torch_archive import archive_bytes, write_archive
from holdtrue.engine.write import write_files
from holdtrue.errors import DamageError, fail
from holdtrue.findings import Finding, Report, report
from holdtrue.formats.opening import read
from holdtrue.formats.view import LazyTensor, View
from holdtrue.limits import limits
from holdtrue.records.dtypes import OVERLAP_FACTOR
from holdtrue.storage.commit import publish, publish_file
from holdtrue.storage.failures import not_written
from holdtrue.storage.locating import locate, steps

Progress = Callable[[int, int], None]  # bytes written so far, and of all


class Converted(Struct, frozen=True, kw_only=True):
    """What a conversion made, and in its report what it could not carry over."""

    path: Path
    kind: Kind
    tensors: int
    nbytes: int  # of all data files
    report: Report


def convert(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    to: str | None = None,
    part: str | None = None,
    overwrite: bool = False,
    shard_bytes: int | None = None,
    progress: Progress | None = None,
) -> Converted:
    """Write the checkpoint `src`, whatever its format, as `dst`. Nothing of it is run.

    `to` is "holdtrue", "safetensors", "shards" or "torch"; by default the name of `dst` tells.
    A holdtrue checkpoint takes everything. The others hold one state dict: the largest, or `part`,
    its path in the tree or the last name of it. The report lists what was not carried over.

    Raises OpenError, DamageError or SaveError; what stood at `dst` before is then unchanged.
    """
    target = Path(dst)
    kind = kind_of(target, to)
    check_destination(Path(src), target, kind, overwrite)
    view = read_any(src)
    return write_view(view, target, kind, part, overwrite, shard_bytes, progress)


def read_any(src: str | os.PathLike[str]) -> View:
    """The view of any path, of a run's newest checkpoint, or of `run@best` and its kin."""
    place = Path(src)
    if (not os.path.lexists(place) and "@" in place.name) or steps(place):
        place = locate(place)
    return read(str(place))


def write_view(
    view: View,
    target: Path,
    kind: Kind,
    part: str | None = None,
    overwrite: bool = False,
    shard_bytes: int | None = None,
    progress: Progress | None = None,
) -> Converted:
    """`convert` of what has been read already."""
    if kind == "holdtrue":
        return _to_holdtrue(view, target, part, overwrite, progress)
    state = choose(view, part)
    left = {name: why for name, t in state.names.items() if (why := _unfit(kind, name, t))}
    names = {name: tensor for name, tensor in state.names.items() if name not in left}
    versions = _versions(state) if kind == "torch" else {}
    nbytes = _write(kind, target, names, versions, overwrite, shard_bytes, progress)
    places = [p for p in left_values(view, state) if not (versions and p.startswith(_own(state)))]
    findings = [
        *view.findings,
        *tensors_findings(left),
        *values_finding(view.path, title(kind), places),
        *(_copies(names) if kind != "torch" else ()),
    ]
    return Converted(
        path=target, kind=kind, tensors=len(names), nbytes=nbytes,
        report=report(str(target), findings),
    )  # fmt: skip


def _to_holdtrue(
    view: View, target: Path, part: str | None, overwrite: bool, progress: Progress | None
) -> Converted:
    if part is None:
        plan = to_holdtrue.plan(view, state_dicts(view))
        beside: list[str] = []
    else:
        chosen = choose(view, part)
        beside = [] if view.format == "holdtrue" else left_values(view, chosen)
        plan = to_holdtrue.one_part(view, chosen)
    sources = list(plan.sources.values())
    check_expansion(view.path, sources)
    try:
        to_holdtrue.write(target, plan, overwrite, _counted(progress, sources))
    except OSError as error:
        raise not_written(target, error, plan.nbytes) from error
    findings = [
        *view.findings,
        *tensors_findings(plan.left_out),
        *values_finding(view.path, "the one part that was asked for", beside),
    ]
    return Converted(
        path=target, kind="holdtrue", tensors=len(plan.manifest.tensors), nbytes=plan.nbytes,
        report=report(str(target), findings),
    )  # fmt: skip


def _unfit(kind: Kind, name: str, tensor: LazyTensor) -> str | None:
    return to_torch.unfit(tensor) if kind == "torch" else to_safetensors.unfit(name, tensor)


def _write(
    kind: Kind,
    target: Path,
    names: dict[str, LazyTensor],
    versions: dict[str, Any],
    overwrite: bool,
    shard_bytes: int | None,
    progress: Progress | None,
) -> int:
    """Write the tensors in one of the flat formats; how many bytes that took."""
    needed = 0
    try:
        if kind == "torch":
            made = to_torch.torch_file(names, versions)
            needed = archive_bytes(made.pickle, made.storages)
            ready = _ready(made.storages, progress)
            with publish_file(target, replace=overwrite) as staged:
                write_archive(staged, made.pickle, made.storages, ready)
            return needed
        if kind == "shards":
            most = limits().shard_bytes if shard_bytes is None else shard_bytes
            files = to_safetensors.shards(names, most)
        else:
            files = to_safetensors.one_file(target.name, names)
        needed = sum(file.nbytes for file in files.files)
        ready = _ready(list(files.sources.values()), progress)
        if kind == "shards":
            with publish(target, replace=overwrite) as staged:
                write_files(staged, files.files, files.sources, ready)
        else:
            with publish_file(target, replace=overwrite) as staged:
                named = [replace(files.files[0], name=staged.name)]
                write_files(staged.parent, named, files.sources, ready)
    except OSError as error:
        raise not_written(target, error, needed) from error
    return needed


def _ready(sources: list[StoredSource], progress: Progress | None) -> Callable[[int], None]:
    """Check the sources before a byte is written; what to tell the progress to."""
    check_expansion(sources[0].tensor.pieces[0].storage.file if sources else "", sources)
    prove(source.tensor for source in sources)
    return _counted(progress, sources)


def check_expansion(where: str, sources: list[StoredSource]) -> None:
    """Raises DamageError where a few bytes would become a disk full of them.

    One tensor under two names is written twice where the format knows no ties; a small file that
    names one tensor a million times is not to be had.
    """
    pieces = (piece for source in sources for piece in source.tensor.pieces)
    backing = {(p.storage.file, p.storage.key): p.storage.nbytes for p in pieces}
    held, total = sum(backing.values()), sum(source.nbytes for source in sources)
    if total > OVERLAP_FACTOR * held + limits().expanded_bytes:
        raise fail(
            DamageError,
            where,
            Finding(
                code="tensor-expanded",
                severity="error",
                where=where,
                what="the file repeats its few bytes into too many",
                why=f"its tensors take {total:,} bytes, made of {held:,}; "
                f"{limits().expanded_bytes:,} more are allowed",
                fix="set HOLDTRUE_EXPANDED_BYTES higher if this is meant",
            ),
        )


def _counted(progress: Progress | None, sources: list[StoredSource]) -> Callable[[int], None]:
    total, done, lock = sum(source.nbytes for source in sources), 0, Lock()

    def advance(count: int) -> None:
        nonlocal done
        if progress is not None:
            with lock:  # several threads write
                done += count
                progress(done, total)

    return advance


def _versions(state: StateDict) -> dict[str, Any]:
    """`_metadata` of a state dict, the versions of its modules, where it is nothing but those."""
    attributes = getattr(state.node, "__dict__", None) if isinstance(state.node, dict) else None
    found = attributes.get("_metadata") if attributes else None
    if not isinstance(found, dict):
        return {}
    plain = all(
        isinstance(name, str)
        and isinstance(own, dict)
        and all(isinstance(k, str) and isinstance(v, int | None) for k, v in own.items())
        for name, own in found.items()
    )
    return {"_metadata": found} if plain else {}


def _own(state: StateDict) -> str:
    """How the place of the versions begins in a list of places."""
    return f"{state.path}/_metadata (" if state.path else "_metadata ("


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
            what=f"{len(again):,} tensors that are tied to another were written out again",
            why="safetensors has no two names for the same bytes; the values are equal, and a "
            "model that ties them ties them again as it loads",
        )
    ]
