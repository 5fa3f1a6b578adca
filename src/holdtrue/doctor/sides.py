"""A path to what is compared: the tables of a checkpoint, and what it says of itself."""

import os
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from holdtrue.doctor.state_dicts import StateDict, state_dicts
from holdtrue.doctor.to_holdtrue import arrange
from holdtrue.doctor.tree_leaves import Leaves, leaves
from holdtrue.formats.checkpoint_directory import read_manifest
from holdtrue.formats.opening import read
from holdtrue.formats.view import View
from holdtrue.records.inert import Record
from holdtrue.records.manifest import Manifest, Part
from holdtrue.records.metrics import manifest_metrics
from holdtrue.storage.locating import locate

MODULES = "flags and attributes of modules"
RANDOM = "random states"
_IN_STATE_DICT = {"entries", "extra", "custom"}


class Opened(Struct, frozen=True):
    """A checkpoint before its tree is laid flat. The manifest is of holdtrue's own only."""

    name: str  # as the caller gave it
    view: View
    manifest: Manifest | None


class Side(Struct, frozen=True):
    """One of the two that are compared. `about` are facts that differ without being state."""

    name: str
    format: str
    leaves: Leaves
    about: dict[str, Any]


def open_side(path: str | os.PathLike[str]) -> Opened:
    """A checkpoint of any format, or one of a run: `run` (its latest), `run@best`, `run@400`."""
    place = locate(path)
    view = read(str(place))
    manifest = read_manifest(Path(view.path)) if view.format == "holdtrue" else None
    return Opened(str(path), view, manifest)


def flatten(side: Opened, *, as_torch: bool, other: Manifest | None = None) -> Side:
    """The tables of a checkpoint. `as_torch`: parts in the form that torch.save gives them, so that
    another format can be compared with; holdtrue's own form knows optimizer states by name.

    A file whose parts are those of `other`, had it been converted, is given as converted: names
    and places that a part cannot have are no difference then."""
    view, manifest = side.view, side.manifest
    if manifest is None:
        converted = None if other is None else _as_converted(view, other)
        flat = _foreign(view) if converted is None else leaves(converted, view.path)
        return Side(side.name, view.format, flat, {})
    tree: dict[str, Any] = {}
    extras: dict[str, dict[str, Any]] = {}
    for name, part in manifest.parts.items():
        state = view.tree[name]
        if part.kind == "module":
            tree[name] = _state_dict(part, state, view)
            rest = {key: value for key, value in state.items() if key not in _IN_STATE_DICT}
            extras.setdefault(MODULES, {})[name] = {"class": part.class_name, **rest}
        elif part.kind == "rng":
            extras.setdefault(RANDOM, {})[name] = state
        elif part.kind == "optimizer" and as_torch:
            tree[name] = _by_index(state)
        elif as_torch and isinstance(state, Record) and _by_state_dict(part):
            tree[name] = state.state
        else:
            tree[name] = state
    flat = leaves(tree, view.path)
    for label, parts in extras.items():
        inner = leaves(parts, view.path)
        flat.extras[label] = inner.values
        if not as_torch:
            flat.tensors.update(inner.tensors)
    return Side(side.name, view.format, flat, _about(manifest))


def _foreign(view: View) -> Leaves:
    names = view.about.get("state_dict") if view.format == "torchscript" else None
    if not isinstance(names, dict):
        return leaves(view.tree, view.path)
    tensors = {name: view.tensors[path] for name, path in names.items() if path in view.tensors}
    whole = leaves(view.tree, view.path)
    return Leaves(tensors, {}, {"attributes of scripted modules": whole.values})


def _as_converted(view: View, other: Manifest) -> dict[str, Any] | None:
    """The parts that a conversion makes of a view; None where `other` has other parts."""
    arranged = arrange(view, state_dicts(view))
    kinds = {n: "module" if isinstance(c, StateDict) else "value" for n, c in arranged.items()}
    if kinds != {name: part.kind for name, part in other.parts.items()}:
        return None
    return {
        name: dict(content.names) if isinstance(content, StateDict) else content
        for name, content in arranged.items()
    }


def _by_state_dict(part: Part) -> bool:
    """An object that torch users save as its state_dict(): a scheduler, a scaler."""
    return isinstance(part.state, dict) and part.state.get("via") == "state_dict"


def _state_dict(part: Part, state: Any, view: View) -> dict[str, Any]:
    """A module's tensors under each of their names, tied ones too, and what it adds of its own."""
    found: dict[str, Any] = {
        name: view.tensors[key] for name, key in part.state.get("entries", {}).items()
    }
    for path, value in state.get("extra", {}).items():
        found[f"{path}._extra_state" if path else "_extra_state"] = value
    for path, custom in state.get("custom", {}).items():
        for name, value in custom["entries"].items():
            found[f"{path}.{name}" if path else name] = value
    return found


def _by_index(state: Any) -> Any:
    """An optimizer's state as torch gives it: parameters by their number."""
    names = [name for group in state["groups"] for name in group["params"]]
    numbers = {name: index for index, name in enumerate(names)}
    return {
        "state": {numbers.get(name, name): inner for name, inner in state.get("state", {}).items()},
        "param_groups": [
            {**group["settings"], "params": [numbers[name] for name in group["params"]]}
            for group in state["groups"]
        ],
    }


def _about(manifest: Manifest) -> dict[str, Any]:
    facts: dict[str, Any] = {"step": manifest.step, "created": manifest.created}
    facts["parts"] = ", ".join(manifest.parts)
    facts |= {
        f"environment {name}": value
        for name, value in msgspec.to_builtins(manifest.environment).items()
    }
    metrics = manifest_metrics(manifest)
    return facts | {f"metric {name}": value for name, value in metrics.items()}
