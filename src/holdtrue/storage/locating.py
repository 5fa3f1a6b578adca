"""From what a person types to the directory of one checkpoint."""

import difflib
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, SupportsFloat

from holdtrue.errors import HoldtrueError, OpenError, fail
from holdtrue.findings import Finding
from holdtrue.formats.checkpoint_directory import read_manifest
from holdtrue.records.manifest import NAME, Manifest, Ranking
from holdtrue.records.values import Decoding, NodeError, decode
from holdtrue.storage.commit import STAGING, put_aside

_STEP = re.compile(r"step-(\d{9,})\Z")
Ranked = tuple[int, Manifest]


def step_name(step: int) -> str:
    """The directory of a step: step-000000400."""
    return f"step-{step:09d}"


def steps(run: Path) -> dict[int, Path]:
    """The published checkpoints of a run by step, in order. Empty where there is no run."""
    if not run.is_dir():
        return {}
    found = ((_STEP.match(name), name) for name in os.listdir(run))
    return dict(sorted((int(m[1]), run / name) for m, name in found if m))


def locate(path: str | os.PathLike[str]) -> Path:
    """The directory that `path` means. Raises OpenError where there is none."""
    place = Path(path)
    try:
        return _locate(place)
    except PermissionError as error:
        raise _denied(place, error) from None


def _locate(place: Path) -> Path:
    base, at, which = str(place).rpartition("@")
    if at and not _is_there(place):
        return _within_run(Path(base), which)
    if not _is_there(place):
        raise _missing(place)
    if not place.is_dir():
        raise _no_checkpoint(place, "it is a file; holdtrue's own checkpoints are directories")
    if _is_there(place / NAME):
        return place
    found = steps(place)
    if found:
        return found[max(found)]
    raise _no_manifest(place, sorted(os.listdir(place)))


def _is_there(place: Path) -> bool:
    """Raises PermissionError where that cannot be told; os.path.lexists would say no."""
    try:
        os.lstat(place)
    except PermissionError:
        raise
    except (OSError, ValueError):  # no such name, or one that no file can have
        return False
    return True


def metric(manifest: Manifest, name: str) -> float | None:
    """A metric's value; None where it is absent, NaN or no number."""
    try:
        values: Any = decode(manifest.metrics, Decoding(tensor=_no_tensor))
    except NodeError:
        return None
    value = values.get(name) if isinstance(values, dict) else None
    if isinstance(value, bool) or not isinstance(value, SupportsFloat):
        return None
    return None if math.isnan(float(value)) else float(value)


def best_first(manifests: Iterable[Ranked], ranking: Ranking) -> list[int]:
    """Steps from best to worst; ties go to the later one, steps without the metric are left out."""
    sign = 1 if ranking.mode == "min" else -1
    scored = [(metric(m, ranking.by), step) for step, m in manifests]
    order = sorted((sign * value, -step) for value, step in scored if value is not None)
    return [-step for _, step in order]


def _within_run(run: Path, which: str) -> Path:
    found = steps(run)
    if not found:
        raise _missing(run) if not run.exists() else _no_manifest(run, sorted(os.listdir(run)))
    if which == "latest":
        return found[max(found)]
    if which.isdecimal() and int(which) in found:
        return found[int(which)]
    if which == "best":
        return found[_best(run, found)]
    raise fail(
        OpenError,
        f"{run}@{which}",
        Finding(
            code="step-missing",
            severity="error",
            where=f"{run}@{which}",
            what=f"the run has no checkpoint {which!r}",
            why="it has steps " + ", ".join(map(str, found)),
            fix=f"holdtrue log {run}; then {run}@latest, {run}@best or {run}@STEP",
        ),
    )


def _best(run: Path, found: dict[int, Path]) -> int:
    manifests: list[Ranked] = []
    for step, path in found.items():
        try:
            manifests.append((step, read_manifest(path)))
        except HoldtrueError:
            continue  # what cannot be read cannot be best; verify tells about it
    ranking = next((m.ranking for _, m in reversed(manifests) if m.ranking), None)
    order = best_first(manifests, ranking) if ranking else []
    if order:
        return order[0]
    raise fail(
        OpenError,
        f"{run}@best",
        Finding(
            code="best-unknown",
            severity="error",
            where=str(run),
            what="nothing says which checkpoint is best",
            why=f"none has the metric {ranking.by!r}" if ranking else "no metric was named for it",
            fix='Run(..., keep=Keep(best=1, by="val_loss")), and metrics={"val_loss": …} in save',
        ),
    )


def _missing(place: Path) -> OpenError:
    aside = put_aside(place)
    siblings = os.listdir(place.parent) if place.parent.is_dir() else []
    near = difflib.get_close_matches(place.name, siblings, 1)
    if aside:
        why = "replacing it was interrupted; the old one is whole under another name"
        fix = f"mv {aside[-1]} {place}"
    else:
        why = f"{place.parent} has no such name" if siblings else f"there is no {place.parent}"
        fix = f"did you mean {place.parent / near[0]}?" if near else "check the path"
    return fail(
        OpenError,
        str(place),
        Finding(
            code="path-missing",
            severity="error",
            where=str(place),
            what="there is nothing here",
            why=why,
            fix=fix,
        ),
    )


def _no_checkpoint(place: Path, why: str, fix: str = "give the directory instead") -> OpenError:
    return fail(
        OpenError,
        str(place),
        Finding(
            code="not-a-checkpoint",
            severity="error",
            where=str(place),
            what="this is not a holdtrue checkpoint",
            why=why,
            fix=fix,
        ),
    )


def _no_manifest(place: Path, names: list[str]) -> OpenError:
    if names == [STAGING] or place.parent.name == STAGING:
        return fail(
            OpenError,
            str(place),
            Finding(
                code="half-written",
                severity="error",
                where=str(place),
                what="a save began here and never ended",
                why="the process was killed, or the disk was full; a manifest is written last",
                fix="use an older checkpoint; the next save of the run clears this away",
            ),
        )
    if any(n.endswith(".safetensors") for n in names):
        return _no_checkpoint(
            place,
            f"it has {', '.join(names[:5])}, but no {NAME}: it was deleted, or not copied along",
            "copy the whole directory again; the .safetensors files can be read on their own",
        )
    listing = ", ".join(names[:5]) if names else "nothing"
    return _no_checkpoint(place, f"it holds {listing}, and no {NAME}", "check the path")


def _denied(place: Path, error: OSError) -> OpenError:
    return fail(
        OpenError,
        str(place),
        Finding(
            code="permission-denied",
            severity="error",
            where=str(place),
            what="it may not be read",
            why=f"the system says: {error.strerror}",
            fix=f"chmod -R u+rX {place}",
        ),
    )


def _no_tensor(key: str) -> Any:
    raise NodeError(f"a metric holds the tensor {key!r}")
