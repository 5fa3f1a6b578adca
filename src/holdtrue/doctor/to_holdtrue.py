"""A view as a holdtrue checkpoint: its state dicts as modules, everything else as values."""

import platform
import re
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace

from holdtrue.doctor.keeping import Kept, finish, keep_tensor
from holdtrue.doctor.state_dicts import StateDict
from holdtrue.doctor.value_nodes import TreeEncoder
from holdtrue.engine.checkpoint import write_checkpoint
from holdtrue.engine.layout import lay_out
from holdtrue.engine.stored import prove, stored_source
from holdtrue.engine.write import Progress
from holdtrue.formats.checkpoint_directory import read_manifest
from holdtrue.formats.tree_walk import name_of
from holdtrue.formats.view import LazyTensor, View
from holdtrue.records.environment import Environment
from holdtrue.records.inert import Record
from holdtrue.records.leaf_nodes import is_unicode
from holdtrue.records.manifest import Manifest, Part
from holdtrue.storage.commit import publish

# Names that a file system or the format has taken.
_TAKEN = frozenset({"rng", "probe", "manifest", "source", "con", "prn", "aux", "nul"})


class Plan:
    """A checkpoint that is ready to be written: nothing has been read but descriptions."""

    def __init__(self, manifest: Manifest, kept: Kept) -> None:
        self.manifest = manifest
        self.sources = kept.sources
        self.left_out = kept.left_out
        self.files = lay_out(manifest.tensors, kept.sources)

    @property
    def nbytes(self) -> int:
        return sum(file.nbytes for file in self.files)


def plan(view: View, states: list[StateDict]) -> Plan:
    """The checkpoint that holds these state dicts and everything else of the view."""
    if view.format == "holdtrue" and not _lacks_tensors(view):
        return _copy(view)
    parts: dict[str, Part] = {}
    kept = Kept()
    for name, content in arrange(view, states).items():
        if isinstance(content, StateDict):
            parts[name] = _module(kept, name, content)
        else:
            node = TreeEncoder(kept, name, content).encode(content)
            parts[name] = Part(kind="value", state=node)
    return _finished(parts, kept)


def arrange(view: View, states: list[StateDict]) -> dict[str, Any]:
    """What each part of the checkpoint is made of: a state dict, or any other value."""
    found: dict[str, Any] = {}
    for state in states:
        found[_part_name(state.label or "model", found)] = state
    values = list(_values(view.tree, states))
    if view.format == "safetensors" and view.about["metadata"]:
        values.append(("metadata", view.about["metadata"]))
    for label, value in values:
        found[_part_name(label, found)] = value
    return found


def _finished(parts: dict[str, Part], kept: Kept) -> Plan:
    finish(kept)
    manifest = Manifest(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        environment=_environment(),
        parts=parts,
        tensors=kept.records,
        files={},
    )
    return Plan(manifest, kept)


def one_part(view: View, state: StateDict) -> Plan:
    """The checkpoint that holds one state dict alone; of a holdtrue one, its part."""
    if view.format == "holdtrue":
        return _copy(view, state.path.partition("/")[0])
    kept = Kept()
    name = _part_name(state.label or "model", {})
    parts = {name: _module(kept, name, state)}
    return _finished(parts, kept)


def write(target: Path, plan: Plan, overwrite: bool, progress: Progress | None = None) -> None:
    """Write and publish the checkpoint. Raises OSError, or DamageError for bytes read on the way;
    `target` is then as it was."""
    prove(source.tensor for source in plan.sources.values())
    with publish(target, replace=overwrite) as staged:
        write_checkpoint(staged, plan.manifest, plan.files, plan.sources, progress=progress)


def _module(kept: Kept, part: str, state: StateDict) -> Part:
    entries: dict[str, str] = {}
    encoder = TreeEncoder(kept, part, None)
    for name, tensor in state.names.items():
        if not is_unicode(name):
            kept.left_out.setdefault(f"{part}/{name_of(name)}", "its name is no text")
            continue
        key = keep_tensor(kept, part, name, tensor, own=True)
        if key is not None:
            entries[name] = key
            encoder.keep_attributes(key, tensor, name)
    node: dict[str, Any] = {"entries": entries, "training": state.training}
    if state.attributes:
        # `_metadata`, the versions of the modules. No reader of a module part needs it.
        own = TreeEncoder(kept, part, state.attributes)
        node["attributes"] = own.encode(state.attributes)
    return Part(kind="module", class_name=state.class_name, state=node)


def _values(tree: Any, states: list[StateDict]) -> Iterable[tuple[str, Any]]:
    """What is not a module part, under the name that it is to have.

    A mapping with a state dict somewhere inside is kept whole beside it: its tensors are the very
    same in the checkpoint, and are not stored twice.
    """
    whole = {id(state.node) for state in states if isinstance(state.node, dict)}
    if isinstance(tree, dict) and id(tree) not in whole:
        for key, value in tree.items():
            if id(value) in whole:
                whole.discard(id(value))  # under another name it is a value like any other
                yield from _besides(name_of(key), value)
            else:
                model = isinstance(value, Record) and any(s.node is value for s in states)
                suffix = "_object" if model else ""
                yield name_of(key) + suffix, value
        attributes = getattr(tree, "__dict__", None)
        if attributes:
            yield "attributes", attributes
    elif id(tree) in whole:
        yield from _besides("model", tree)
    else:
        yield "object" if isinstance(tree, Record) else "value", tree


def _besides(name: str, mapping: dict[Any, Any]) -> Iterable[tuple[str, Any]]:
    """The entries of a state dict that are no tensors."""
    left = {
        k: v for k, v in mapping.items() if not (isinstance(k, str) and isinstance(v, LazyTensor))
    }
    if left:
        yield f"{name}_values", left


def _part_name(label: str, taken: Iterable[str]) -> str:
    name = re.sub(r"[^A-Za-z0-9_]", "_", label)[:80] or "value"
    if not re.match(r"[A-Za-z_]", name) or name.lower() in _TAKEN:
        name = f"part_{name}"
    folded = {part.lower() for part in taken}
    unique, count = name, 1
    while unique.lower() in folded:
        count += 1
        unique = f"{name}_{count}"
    return unique


def _copy(view: View, only: str | None = None) -> Plan:
    """A holdtrue checkpoint again, its tensors each in one chunk."""
    manifest = read_manifest(Path(view.path))
    parts = {n: p for n, p in manifest.parts.items() if only in (None, n)}
    wanted = set(manifest.tensors) if only is None else _named(manifest, parts)
    kept = Kept()
    for key in (key for key in manifest.tensors if key in wanted):
        record = manifest.tensors[key]
        kept.records[key] = replace(record, chunks=())
        if record.chunks:
            kept.sources[key] = stored_source(view.tensors[key])
    return Plan(replace(manifest, parts=parts, tensors=kept.records, files={}), kept)


def _lacks_tensors(view: View) -> bool:
    """Whether salvage has left tensors out; the manifest's parts would still speak of them."""
    return not read_manifest(Path(view.path)).tensors.keys() <= view.tensors.keys()


def _named(manifest: Manifest, parts: dict[str, Part]) -> set[str]:
    """The keys of the tensors that these parts speak of, with their components."""
    found: set[str] = set()
    pending: list[Any] = [part.state for part in parts.values()]
    while pending:
        node = pending.pop()
        if isinstance(node, str) and node in manifest.tensors and node not in found:
            found.add(node)
            record = manifest.tensors[node]
            pending += [*record.components.values(), record.state]
        elif isinstance(node, dict):
            pending += node.values()
        elif isinstance(node, list):
            pending += node
    return found


def _environment() -> Environment:
    return Environment(
        holdtrue=version("holdtrue"),
        python=platform.python_version(),
        numpy=np.__version__,
        platform=f"{sys.platform}-{platform.machine()}",
    )
