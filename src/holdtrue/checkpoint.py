"""A checkpoint that has been opened: look at it, take values out, put it into live objects."""

import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdtrue.errors import DamageError, OpenError, fail
from holdtrue.findings import Finding, Report
from holdtrue.formats.checkpoint_directory import read_manifest, to_view
from holdtrue.formats.tensor_bytes import read_tensor
from holdtrue.formats.view import LazyTensor, View
from holdtrue.records.manifest import Manifest
from holdtrue.records.trust import Trust, trust
from holdtrue.records.values import Decoding, NodeError, decode
from holdtrue.storage.locating import locate

if TYPE_CHECKING:
    import numpy as np
    import torch


class StoredTensor:
    """A tensor in a file: described at once, read and verified when asked for."""

    def __init__(self, lazy: LazyTensor, name: str) -> None:
        self._lazy, self.name = lazy, name
        self.dtype, self.shape, self.stride = lazy.dtype, lazy.shape, lazy.stride
        self.requires_grad, self.layout, self.device = lazy.requires_grad, lazy.layout, lazy.device

    def __repr__(self) -> str:
        return f"<stored tensor {self.name}: {self.dtype} {list(self.shape)}>"

    def torch(self) -> "torch.Tensor":
        """A new CPU tensor. Raises DamageError when its bytes are not those that were written."""
        from holdtrue.restore.fresh import build_tensor

        tensor: torch.Tensor = build_tensor(self._lazy, Trust(), self.name)
        return tensor

    def numpy(self) -> "np.ndarray[Any, Any]":
        """A new array, without torch; bfloat16 and float8 need the package ml_dtypes."""
        from holdtrue.formats.arrays import numpy_dtype

        if self._lazy.layout != "strided":
            raise fail(OpenError, self.name, _no_array(self.name, self._lazy))
        dtype = numpy_dtype(self._lazy, self.name)
        return read_tensor(self._lazy).view(dtype).reshape(self._lazy.shape)


class StoredTensors(Mapping[str, StoredTensor]):
    """All tensors of a checkpoint by path, "model/conv1.weight"."""

    def __init__(self, tensors: Mapping[str, LazyTensor]) -> None:
        self._tensors = tensors

    def __getitem__(self, key: str) -> StoredTensor:
        return StoredTensor(self._tensors[key], key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


class Checkpoint:
    """An opened checkpoint. Its manifest has been verified; tensors are verified as they are read.

    `ck["classes"]` is a part's value: a module gives its state_dict, an optimizer its state by
    parameter name, everything else what was saved.
    """

    def __init__(self, path: Path, manifest: Manifest, view: View, agreed: Trust) -> None:
        self.path, self._manifest, self._view, self._agreed = path, manifest, view, agreed
        self._fresh: Any = None

    @property
    def step(self) -> int | None:
        return self._manifest.step

    @property
    def created(self) -> str:
        """When it was saved: UTC, ISO 8601."""
        return self._manifest.created

    @property
    def metrics(self) -> dict[str, Any]:
        return _metrics(self._manifest, self.path)

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(self._manifest.parts)

    @property
    def manifest(self) -> Manifest:
        return self._manifest

    @property
    def tensors(self) -> StoredTensors:
        return StoredTensors(self._view.tensors)

    def __contains__(self, part: str) -> bool:
        return part in self._manifest.parts

    def __repr__(self) -> str:
        step = "" if self.step is None else f" step {self.step},"
        return f"<checkpoint {self.path}:{step} {', '.join(self.parts)}>"

    def __getitem__(self, part: str) -> Any:
        """The value of a part, its tensors read and verified."""
        if part not in self._manifest.parts:
            raise KeyError(f"{self.path} has no part {part!r}; it has {', '.join(self.parts)}")
        record = self._manifest.parts[part]
        if record.kind == "module":
            names = record.state.get("entries", {})
            return OrderedDict(
                (name, self._tensor(key))
                for name, key in names.items()
                if self._manifest.tensors[key].persistent
            )
        if record.kind == "optimizer":
            kept = record.state.get("state", {})
            state = {name: self._value(node, part) for name, node in kept.items()}
            groups = [
                {**self._value(g["settings"], part), "params": g["params"]}
                for g in record.state["groups"]
            ]
            return {"state": state, "param_groups": groups}
        return self._value(record.state, part)

    def restore(
        self,
        *,
        allow: str | Iterable[str] = (),
        only: str | Iterable[str] = (),
        rename: Mapping[str, str] | None = None,
        trust: Iterable[type | str] = (),
        rng: bool | None = None,
        **targets: Any,
    ) -> Report:
        """Put the saved state into live objects, in place: all of it, or nothing.

        `allow` accepts differences by their finding codes. `only` restricts modules to names that
        match a pattern; `rename` maps saved names, {"old.*": "new.*"}. `rng` restores the global
        random states; by default when an optimizer is among the targets, since that is a resume.

        Raises RestoreError when something does not fit, and DamageError when bytes on disk are not
        those that were written; either way nothing has been changed.
        """
        from holdtrue.capture.parts import RNG, has_own_state
        from holdtrue.restore.apply import apply
        from holdtrue.restore.fresh import Fresh
        from holdtrue.restore.plan import Choice
        from holdtrue.restore.targets import plan_restore

        patterns = tuple(p for p in _several(only) if p)
        choice = Choice(patterns, dict(rename or {}), frozenset(_several(allow)))
        resume = any(has_own_state(t) for t in targets.values()) if rng is None else rng
        fresh = Fresh(self._view.tensors, _joined(self._agreed, trust))
        targets.pop(RNG, None)
        plan = plan_restore(self._manifest.parts, fresh, targets, choice, resume)
        return apply(plan, str(self.path))

    def _tensor(self, key: str) -> Any:
        from holdtrue.restore.fresh import Fresh

        if self._fresh is None:
            self._fresh = Fresh(self._view.tensors, self._agreed)
        return self._fresh(key)

    def _value(self, node: Any, part: str) -> Any:
        """With torch where there is one: a value without tensors needs none."""
        try:
            from holdtrue.restore.fresh import Fresh, decode_value
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            return _plain_value(node, part, self._view, self._agreed)
        return decode_value(node, Fresh(self._view.tensors, self._agreed), path=part)[0]


def open(path: str | os.PathLike[str], *, trust: Iterable[type | str] = ()) -> Checkpoint:
    """Open a checkpoint: a directory, a run (its latest), `run@best`, `run@latest` or `run@400`.

    Reads and verifies the manifest and the files' headers; tensors are read when asked for.
    `trust` names classes whose objects may be built from the file. Raises OpenError or DamageError.
    """
    directory = locate(path)
    manifest = read_manifest(directory)
    view = to_view(directory, manifest)
    return Checkpoint(directory, manifest, view, _joined(Trust(), trust))


def verify(path: str | os.PathLike[str]) -> Report:
    """Read every byte of a checkpoint and compare it with its digests. Needs no torch.

    Returns a report; what cannot be opened at all raises OpenError.
    """
    from holdtrue.engine.read import verify_storages
    from holdtrue.findings import report

    directory = locate(path)
    try:
        manifest = read_manifest(directory)
        view = to_view(directory, manifest)
    except DamageError as error:
        return error.report
    storages = [p.storage for t in view.tensors.values() for p in t.pieces]
    findings = verify_storages(storages)
    listed = {"manifest.json", *manifest.files}
    strays = sorted(n for n in os.listdir(directory) if n not in listed and n != "source")
    findings += [_stray(directory / name) for name in strays]
    return report(str(directory), findings)


def _several(given: str | Iterable[str]) -> Iterable[str]:
    return (given,) if isinstance(given, str) else given


def _joined(agreed: Trust, more: Iterable[type | str]) -> Trust:
    new = trust(more)
    return Trust({**agreed.classes, **new.classes}, agreed.packages + new.packages)


def _metrics(manifest: Manifest, path: Path) -> dict[str, Any]:
    value = decode(manifest.metrics, Decoding(tensor=_no_tensor)) if manifest.metrics else {}
    return value if isinstance(value, dict) else {}


def _no_tensor(key: str) -> Any:
    raise NodeError(f"a metric holds the tensor {key!r}")


def _plain_value(node: Any, part: str, view: View, agreed: Trust) -> Any:
    def array(key: str) -> Any:
        return StoredTensor(view.tensors[key], key).numpy()

    return decode(node, Decoding(tensor=array, agreed=agreed), path=part)


def _stray(path: Path) -> Finding:
    return Finding(
        code="file-unlisted",
        severity="note",
        where=str(path),
        what="this is not part of the checkpoint",
        why="it was put here later; nothing of it can be verified",
    )


def _no_array(name: str, lazy: LazyTensor) -> Finding:
    return Finding(
        code="layout-not-plain",
        severity="error",
        where=name,
        what=f"a {lazy.layout} tensor has no NumPy form",
        why="it is made of several arrays",
        fix="take it as a torch tensor: .torch()",
    )
