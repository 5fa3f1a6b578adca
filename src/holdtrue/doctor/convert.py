"""One checkpoint in another format: tensors are streamed over, what has no place is listed."""

import os
from pathlib import Path

from msgspec import Struct

from holdtrue.doctor import flat, to_holdtrue
from holdtrue.doctor.budget import check_expansion
from holdtrue.doctor.destination import Destination, Progress, check_destination, kind_of
from holdtrue.doctor.kinds import Kind
from holdtrue.doctor.leftovers import left_files, left_values, tensors_findings, values_finding
from holdtrue.doctor.state_dicts import choose, state_dicts
from holdtrue.findings import Finding, Report, report
from holdtrue.formats.opening import read
from holdtrue.formats.source import reading
from holdtrue.formats.view import View
from holdtrue.storage.failures import not_written
from holdtrue.storage.locating import locate, steps


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
    place = destination(dst, to, part, overwrite, shard_bytes, progress)
    check_destination(Path(src), place)
    with reading(str(src)):
        view = read_any(src)
        return write_view(view, place)


def destination(
    dst: str | os.PathLike[str],
    to: str | None,
    part: str | None,
    overwrite: bool,
    shard_bytes: int | None,
    progress: Progress | None,
) -> Destination:
    """What is asked for, as one value."""
    target = Path(dst)
    return Destination(
        path=target,
        kind=kind_of(target, to),
        part=part,
        overwrite=overwrite,
        shard_bytes=shard_bytes,
        progress=progress,
    )


def read_any(src: str | os.PathLike[str]) -> View:
    """The view of any path, of a run's newest checkpoint, or of `run@best` and its kin."""
    place = Path(src)
    if (not os.path.lexists(place) and "@" in place.name) or steps(place):
        place = locate(place)
    return read(str(place))


def write_view(view: View, place: Destination) -> Converted:
    """`convert` of what has been read already."""
    return _to_holdtrue(view, place) if place.kind == "holdtrue" else _to_flat(view, place)


def _to_holdtrue(view: View, place: Destination) -> Converted:
    if place.part is None:
        plan, beside = to_holdtrue.plan(view, state_dicts(view)), left_files(view)
    else:
        chosen = choose(view, place.part)
        plan = to_holdtrue.one_part(view, chosen)
        beside = [] if view.format == "holdtrue" else left_values(view, chosen, attributes=True)
    sources = list(plan.sources.values())
    check_expansion(view.path, sources)
    try:
        to_holdtrue.write(place.path, plan, place.overwrite, place.counter(sources))
    except OSError as error:
        raise not_written(place.path, error, plan.nbytes) from error
    what = "a holdtrue checkpoint" if place.part is None else "a checkpoint of one part"
    findings = [
        *view.findings,
        *tensors_findings(plan.left_out),
        *values_finding(view.path, what, beside),
    ]
    return _converted(place, len(plan.manifest.tensors), plan.nbytes, findings)


def _to_flat(view: View, place: Destination) -> Converted:
    state = choose(view, place.part)
    made = flat.write(view, state, place)
    return _converted(place, made.tensors, made.nbytes, [*view.findings, *made.findings])


def _converted(place: Destination, tensors: int, nbytes: int, findings: list[Finding]) -> Converted:
    return Converted(
        path=place.path,
        kind=place.kind,
        tensors=tensors,
        nbytes=nbytes,
        report=report(str(place.path), findings),
    )
