"""From what a person types to the directory of one checkpoint."""

import contextlib
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import SupportsFloat

from holdtrue.errors import DamageError, HoldtrueError, OpenError, fail
from holdtrue.findings import Finding
from holdtrue.formats.checkpoint_directory import read_manifest, read_summary
from holdtrue.formats.source import inspect_path, refuse, unreachable
from holdtrue.formats.step_names import step_of
from holdtrue.records.manifest import NAME, Manifest, Ranking, Summary
from holdtrue.records.metrics import manifest_metrics
from holdtrue.storage.commit import may_list
from holdtrue.storage.own_names import STAGING
from holdtrue.storage.staging_area import put_aside
from holdtrue.storage.unranked import no_best
from holdtrue.storage.whole import newest_whole, passed_over

Ranked = tuple[int, Manifest | Summary]


def steps(run: Path) -> dict[int, Path]:
    """The published checkpoints of a run by step, in order. Empty where there is no run.

    Raises OpenError where the directory may not be read.
    """
    try:
        if not run.is_dir():
            return {}
        found = [(step_of(name), name) for name in os.listdir(run)]
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise unreachable(str(run), error) from None
    return dict(sorted((step, run / name) for step, name in found if step is not None))


def require_steps(run: Path) -> dict[int, Path]:
    """The checkpoints of a run, of which there is at least one. Raises OpenError, which says what
    the path is instead."""
    found = steps(run)
    if found:
        return found
    place = locate(run)
    if not is_ours(place):
        inspect_path(str(place))  # raises where there is nothing
    raise refuse(
        str(run),
        "not-a-run",
        "this is one checkpoint, not a run of several" if is_ours(place) else "this is no run",
        "a run is a directory that holds step-… directories",
        f"holdtrue inspect {run}",
    )


def locate(path: str | os.PathLike[str]) -> Path:
    """Which path is meant: of a run one of its checkpoints, else the path itself.

    Raises OpenError for what only holdtrue leaves behind; all else is for the formats to tell.
    """
    return find(path)[0]


def find(path: str | os.PathLike[str]) -> tuple[Path, tuple[Finding, ...]]:
    """As `locate`, and what is wrong with the newer checkpoints that `run@whole` passes over."""
    if not os.fspath(path):
        inspect_path("")  # raises: Path("") would be the current directory
    place = Path(path)
    base, at, which = str(place).rpartition("@")
    if at and not os.path.lexists(place):
        return _within_run(Path(base), which)
    if not os.path.lexists(place) and put_aside(place):
        raise _interrupted(place)
    if may_list(place) and place.is_dir() and not is_ours(place):
        found = steps(place)
        if found:
            return found[max(found)], ()
        names = sorted(os.listdir(place))
        if names == [STAGING] or place.parent.name == STAGING:
            raise _half_written(place)
        if any(n.endswith(".safetensors") for n in names) and _looks_ours(names):
            raise _no_manifest(place, names)
    return place, ()


def is_ours(place: Path) -> bool:
    """True for a directory with a manifest, or with something else where a manifest belongs."""
    return os.path.lexists(place / NAME)


def _looks_ours(names: list[str]) -> bool:
    return "optimizer.safetensors" in names or any("-nonpersistent" in n for n in names)


def metric(manifest: Manifest | Summary, name: str) -> float | None:
    """A metric's value; None where it is absent, NaN or no number that can be ranked."""
    value = manifest_metrics(manifest).get(name)
    if isinstance(value, bool) or not isinstance(value, SupportsFloat):
        return None
    try:
        number = float(value)
    except (OverflowError, ValueError, TypeError):  # hundreds of digits, say
        return None
    return None if math.isnan(number) else number


def best_first(manifests: Iterable[Ranked], ranking: Ranking) -> list[int]:
    """Steps from best to worst; ties go to the later one, steps without the metric are left out."""
    sign = 1 if ranking.mode == "min" else -1
    scored = [(metric(m, ranking.by), step) for step, m in manifests]
    order = sorted((sign * value, -step) for value, step in scored if value is not None)
    return [-step for _, step in order]


def first_readable(order: Iterable[int], found: Mapping[int, Path]) -> int | None:
    """The first step of which the whole manifest can be read; None where there is none."""
    for step in order:
        with contextlib.suppress(HoldtrueError):
            read_manifest(found[step])
            return step
    return None


def _within_run(run: Path, which: str) -> tuple[Path, tuple[Finding, ...]]:
    found = steps(run)
    if not found:
        inspect_path(str(run))  # raises where there is nothing
        raise _empty_run(run, which)
    if which == "latest":
        return found[max(found)], ()
    if which.isdecimal() and int(which) in found:
        return found[int(which)], ()
    if which == "best":
        return found[_best(run, found)], ()
    if which == "whole":
        return _whole(run, found)
    raise refuse(
        f"{run}@{which}",
        "step-missing",
        f"the run has no checkpoint {which!r}",
        "it has steps " + ", ".join(map(str, found)),
        f"holdtrue log {run}; then {run}@latest, {run}@whole, {run}@best or {run}@STEP",
    )


def _empty_run(run: Path, which: str) -> OpenError:
    return refuse(
        f"{run}@{which}",
        "step-missing",
        "there are no checkpoints in this directory",
        "names with @ mean one checkpoint of a run, and it has no step-… directory",
        "check the path, or leave out the @",
    )


def _best(run: Path, found: dict[int, Path]) -> int:
    manifests: list[Ranked] = []
    for step, path in found.items():
        try:
            manifests.append((step, read_summary(path)))
        except HoldtrueError:
            continue  # what cannot be read cannot be best; verify tells about it
    ranking = next((m.ranking for _, m in reversed(manifests) if m.ranking), None)
    order = best_first(manifests, ranking) if ranking else []
    best = first_readable(order, found)
    if best is not None:
        return best
    raise fail(OpenError, f"{run}@best", no_best(run, manifests, ranking))


def _whole(run: Path, found: dict[int, Path]) -> tuple[Path, tuple[Finding, ...]]:
    step, damaged = newest_whole(found)
    if step is None:
        raise DamageError(damaged[0])
    return found[step], passed_over(damaged)


def _interrupted(place: Path) -> OpenError:
    return refuse(
        str(place),
        "path-missing",
        "there is nothing here",
        "replacing it was interrupted; the old one is whole under another name",
        f"mv {put_aside(place)[-1]} {place}",
    )


def _half_written(place: Path) -> OpenError:
    return refuse(
        str(place),
        "half-written",
        "a save began here and never ended",
        "the process was killed, or the disk was full; a manifest is written last",
        "use an older checkpoint; the next save of the run clears this away",
    )


def _no_manifest(place: Path, names: list[str]) -> OpenError:
    return refuse(
        str(place),
        "manifest-missing",
        f"a checkpoint without its {NAME}",
        f"it has {', '.join(names[:5])}; the manifest was deleted, or not copied along",
        "copy the whole directory again; each .safetensors file can be opened on its own",
    )
