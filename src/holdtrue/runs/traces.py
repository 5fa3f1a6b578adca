"""Steps of a training as checkpoints, one a step, and where two such rows first differ."""

import inspect
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct
from torch import Tensor

from holdtrue.doctor.diff import Difference, TensorChange, diff
from holdtrue.doctor.sides import flatten, open_side
from holdtrue.errors import HoldtrueError
from holdtrue.formats.checkpoint_directory import read_manifest
from holdtrue.saving import save
from holdtrue.stored import StoredTensor

RETURNED = "returned_value"
# A fresh process runs a script under this name, as multiprocessing does.
RERUN = "__mp_main__"


class Deviation(Struct, frozen=True, kw_only=True):
    """The first thing that differs between two rows of steps."""

    step: int
    place: str
    saved: str
    here: str
    distance: str = ""
    others: int = 0  # that differ after the same step

    def __str__(self) -> str:
        more = f", {self.distance}" if self.distance else ""
        others = f", and {self.others} more" if self.others else ""
        return f"after step {self.step} {self.place} is {self.here} for {self.saved}{more}{others}"


Step = Callable[[int], Any]


def step_caller(train_step: Callable[..., Any]) -> Step:
    """Calls the step with its number where it takes one. Raises ValueError for another shape."""
    needed = [
        p
        for p in inspect.signature(train_step).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if len(needed) > 1:
        names = ", ".join(p.name for p in needed)
        raise ValueError(f"train_step takes the step's number or nothing, not ({names})")
    return (lambda step: train_step(step)) if needed else lambda step: train_step()


def record(folder: Path, parts: Mapping[str, Any], call: Step, numbers: range) -> None:
    """Run these steps; keep after each what it returned and the state of every part.

    A step that raises ends the row: that it did is part of what is compared.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number in numbers:
        try:
            returned: Any = {"value": _comparable(call(number))}
        except Exception as error:  # the training's own code
            returned = {"raised": f"{type(error).__name__}: {error}"}
        save(folder / str(number), **{RETURNED: returned, **parts})
        if "raised" in returned:
            return


def _comparable(value: Any, depth: int = 0) -> Any:
    """What can be kept of a returned value; another object is only told by its class."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | Tensor):
        return value
    if isinstance(value, np.ndarray | np.generic):
        return value
    if depth < 5 and type(value) in (list, tuple):
        return [_comparable(item, depth + 1) for item in value]
    if depth < 5 and isinstance(value, dict):
        return {str(k): _comparable(item, depth + 1) for k, item in value.items()}
    return type(value).__name__


def deviation(reference: Path, other: Path, numbers: range) -> Deviation | None:
    """The first difference of two rows; None where they are equal bit for bit."""
    for number in numbers:
        a, b = reference / str(number), other / str(number)
        if not a.is_dir() and not b.is_dir():
            return None
        if not (a.is_dir() and b.is_dir()):
            here, saved = (("done", "not reached")[:: -1 if b.is_dir() else 1])[::-1]
            return Deviation(step=number + 1, place="the step", saved=saved, here=here)
        if _content(a) != _content(b):
            return _first(number + 1, a, b)
    return None


def _content(path: Path) -> bytes:
    manifest = read_manifest(path)
    states = {name: part.state for name, part in manifest.parts.items()}
    tensors = {
        key: [r.dtype, r.shape, r.requires_grad, [c.digest for c in r.chunks]]
        for key, r in manifest.tensors.items()
    }
    # Classes of the script itself are called otherwise where a fresh process ran it.
    return msgspec.json.encode([states, tensors]).replace(RERUN.encode(), b"__main__")


def _first(step: int, a: Path, b: Path) -> Deviation:
    try:
        found = diff(a, b)
    except HoldtrueError as error:
        return Deviation(step=step, place="a checkpoint", saved="readable", here=str(error))
    rows = _rows(found, a, b)
    if not rows:
        return Deviation(step=step, place="a part", saved="what was recorded", here="another")
    rows.sort(key=lambda row: _rank(row.place))
    return msgspec.structs.replace(rows[0], step=step, others=len(rows) - 1)


def _rank(place: str) -> int:
    """What a step computes first comes first: its value, then the random states, then the rest."""
    return 0 if place.startswith("the returned") else 1 if place.startswith("rng/") else 2


def _rows(found: Difference, a: Path, b: Path) -> list[Deviation]:
    rows = [_tensor_row(row, a, b) for row in found.changed]
    rows += [
        Deviation(step=0, place=_place(v.path), saved=v.a or "–", here=v.b or "–")
        for v in found.values
    ]
    rows += [
        Deviation(step=0, place=_place(t.name), saved="there", here="missing")
        for t in found.removed
    ]
    rows += [
        Deviation(step=0, place=_place(t.name), saved="missing", here="there") for t in found.added
    ]
    rows += [
        Deviation(step=0, place=_place(r.a[0]), saved=r.a[0], here=r.b[0]) for r in found.renamed
    ]
    return rows


def _tensor_row(row: TensorChange, a: Path, b: Path) -> Deviation:
    numbers = row.numbers
    distance = ""
    if numbers is not None and numbers.max_abs is not None:
        distance = f"largest difference {numbers.max_abs:.3g}"
    saved, here = ", ".join(row.what), "another"
    try:
        one, other = _numbers(a, row.name), _numbers(b, row.other)
        at = int(np.flatnonzero((one != other).reshape(-1))[0])
        saved, here = repr(one.reshape(-1)[at].item()), repr(other.reshape(-1)[at].item())
    except (HoldtrueError, LookupError, ValueError, TypeError):
        pass  # no plain numbers, or NaN beside NaN: the names of what differs must do
    return Deviation(step=0, place=_place(row.name), saved=saved, here=here, distance=distance)


def _numbers(path: Path, name: str) -> np.ndarray[Any, Any]:
    side = open_side(path)
    lazy = flatten(side, as_torch=False, other=side.manifest).leaves.tensors[name]
    return StoredTensor(lazy, name).numpy()


def _place(path: str) -> str:
    return path.replace(f"{RETURNED}/value", "the returned value").replace(
        f"{RETURNED}/raised", "the returned exception"
    )
