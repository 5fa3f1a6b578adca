"""Gathers what a folder of checkpoints holds, by content; its rules are in `rules/folders`."""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import xxhash
from msgspec import Struct

from holdtrue.doctor.state_dicts import StateDict, nbytes, state_dicts
from holdtrue.doctor.subjects import Folder, Kept
from holdtrue.engine.read import verify_storages
from holdtrue.errors import DamageError, HoldtrueError, OpenError
from holdtrue.findings import Finding
from holdtrue.formats import directories
from holdtrue.formats.checkpoint_directory import read_manifest, to_view
from holdtrue.formats.directories import is_stale_index as is_stale
from holdtrue.formats.opening import read
from holdtrue.formats.source import read_bytes
from holdtrue.formats.verifying import proven_chunks, verify_view
from holdtrue.formats.view import LazyTensor, Storage, View
from holdtrue.records.manifest import NAME, Manifest
from holdtrue.records.metrics import manifest_metrics
from holdtrue.storage.locating import steps
from holdtrue.storage.staging_area import leftovers

_OPENED = 64  # checkpoints of one folder that are looked into
_LISTED = 10_000
_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".tar", ".pkl", ".distcp")
_POINTERS = ("latest", "last_checkpoint", "latest_checkpointed_iteration.txt")
# Of a folder that is none of these a refusal says nothing about a checkpoint.
_NO_CHECKPOINT = {"directory-unknown", "path-missing", "run-not-checkpoint", "shard-alone",
                  "text-file", "unknown-format", "not-a-file", "special-file"}  # fmt: skip
_OUTSIDE_WEIGHTS = re.compile(r"optim|sched|rng|scaler|args|state\b")
_PLAIN = (bool, int, float, str)


class _Opened(Struct, frozen=True):
    view: View
    manifest: Manifest | None = None


def gather(path: str, *, deep: bool = False) -> Folder:
    """Every checkpoint in a folder, one level of subfolders included, opened and summed up."""
    place = Path(path)
    names = sorted(directories.list_names(path))[:_LISTED]
    stale = {n for n in names if n.endswith(".index.json") and is_stale(place, n, names)}
    kept = [
        one
        for name in [n for n in names if not n.startswith(".") and n not in stale][:_OPENED]
        if (one := _kept(place, name, deep)) is not None
    ]
    return Folder(
        path=str(place),
        names=tuple(names),
        kept=tuple(kept),
        run=bool(steps(place)),
        leftovers=tuple(leftovers(place)),
        pointers={name: text for name in _POINTERS if (text := _pointer(place, name, names))},
    )


def main_file(folder: Folder) -> str | None:
    """The one file with weights of a folder that holds a single model; None for a series."""
    weights = [k for k in folder.kept if k.fingerprint_of and not _beside(k.name)]
    return str(Path(folder.path) / weights[0].name) if len(weights) == 1 else None


def _beside(name: str) -> bool:
    return bool(_OUTSIDE_WEIGHTS.search(Path(name).stem.lower()))


def _kept(folder: Path, name: str, deep: bool) -> Kept | None:
    place = folder / name
    inner = place.is_dir()
    if not inner and not place.is_file():
        return None
    try:
        opened = _open(place)
    except HoldtrueError as error:
        codes = {f.code for f in error.report.findings}
        if inner and codes <= _NO_CHECKPOINT:
            return _within(folder, name, deep)
        damaged = isinstance(error, DamageError) or name.lower().endswith(_SUFFIXES) or inner
        if not damaged or (codes <= _NO_CHECKPOINT and not isinstance(error, DamageError)):
            return None
        return Kept(name=name, nbytes=_bytes_of(place), findings=error.report.findings)
    return _summed_up(name, _bytes_of(place), opened, deep)


def _within(folder: Path, name: str, deep: bool) -> Kept | None:
    """A subfolder that is no checkpoint itself: the largest file of weights in it stands for it."""
    inside = sorted(n for n in directories.list_names(str(folder / name)) if n.endswith(_SUFFIXES))
    files = [n for n in inside if (folder / name / n).is_file() and not _beside(n)]
    if not files:
        return None
    largest = max(files, key=lambda n: (folder / name / n).stat().st_size)
    return _kept(folder, f"{name}/{largest}", deep)


def _open(place: Path) -> _Opened:
    if place.is_dir() and os.path.lexists(place / NAME):
        manifest = read_manifest(place)
        return _Opened(to_view(place, manifest), manifest)
    return _Opened(read(str(place)))


def _summed_up(name: str, held: int, opened: _Opened, deep: bool) -> Kept:
    view = opened.view
    state = _weights(view)
    values = manifest_metrics(opened.manifest) if opened.manifest else _plain_values(view)
    return Kept(
        name=name,
        nbytes=held,
        format=view.format,
        findings=_damage(opened, deep),
        fingerprint_of=state.path or "the file" if state else "",
        fingerprint=_fingerprint(state, deep) if state else None,
        values=values,
        step=opened.manifest.step if opened.manifest else None,
    )


def _damage(opened: _Opened, deep: bool) -> tuple[Finding, ...]:
    view = opened.view
    if not deep:
        found: Iterable[Finding] = view.findings
    elif opened.manifest is None:
        found = verify_view(view).findings
    else:
        found = verify_storages([p.storage for t in view.tensors.values() for p in t.pieces])
    return tuple(finding for finding in found if finding.severity == "error")


def _weights(view: View) -> StateDict | None:
    if view.about.get("kind") == "optimizer":
        return None
    states = [s for s in state_dicts(view) if not _OUTSIDE_WEIGHTS.search(s.path.lower())]
    states = states or [s for s in state_dicts(view) if s.path.endswith("state_dict")]
    return max(states, key=nbytes, default=None)


def _plain_values(view: View) -> dict[str, object]:
    """The numbers and texts at the top of a file: epoch, step, metrics."""
    tree = view.tree if isinstance(view.tree, dict) else {}
    return {str(key): value for key, value in tree.items() if isinstance(value, _PLAIN)}


def _fingerprint(state: StateDict, deep: bool) -> str | None:
    """Equal for equal weights; None where the file keeps no checksums and bytes are not read."""
    digest = xxhash.xxh3_128()
    known: dict[tuple[str, int, int], str] = {}
    for name in sorted(state.names):
        tensor = state.names[name]
        digest.update(repr((name, tensor.dtype, tensor.shape, tensor.stride)).encode())
        for part in (tensor, *tensor.components.values()):
            for mark in _marks(part, known, deep):
                if mark is None:
                    return None
                digest.update(mark.encode())
    return digest.hexdigest()


def _marks(
    tensor: LazyTensor, known: dict[tuple[str, int, int], str], deep: bool
) -> Iterator[str | None]:
    for piece in tensor.pieces:
        content = _content(piece.storage, known, deep)
        yield None if content is None else f"{piece.offset}:{content}"


def _content(storage: Storage, known: dict[tuple[str, int, int], str], deep: bool) -> str | None:
    if storage.digest is not None:
        return storage.digest
    holder = storage.record or storage
    if holder.crc32 is not None:
        # The size stands beside the CRC: 32 bits alone are few to call two tensors equal by.
        return f"{holder.crc32:08x}/{holder.nbytes}/{storage.offset - holder.offset}"
    if not deep:
        return None
    place = (storage.file, storage.offset, storage.nbytes)
    if place not in known:
        hashed = xxhash.xxh3_128()
        for block in proven_chunks(storage):
            hashed.update(block.data)
        known[place] = hashed.hexdigest()
    return known[place]


def _bytes_of(place: Path) -> int:
    if place.is_file():
        return place.stat().st_size
    return sum(file.stat().st_size for file in place.iterdir() if file.is_file())


def _pointer(place: Path, name: str, names: list[str]) -> str:
    """What a file that names the newest checkpoint says; "" where there is none."""
    if name not in names or not (place / name).is_file():
        return ""
    try:
        return read_bytes(str(place / name), 0, 200).decode("utf-8", "replace").strip()
    except OpenError:
        return ""
