"""Saving one checkpoint: capture, refuse or lay out, write, publish."""

import errno
import os
import re
import shutil
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, SupportsFloat

from msgspec import Struct
from msgspec.structs import replace

from holdtrue.capture.environment import environment
from holdtrue.capture.parts import RNG, Captured, capture
from holdtrue.capture.probe import PROBE
from holdtrue.capture.tensors import tensor_set
from holdtrue.capture.values import ValueEncoder
from holdtrue.engine.layout import PlannedFile, lay_out
from holdtrue.engine.write import write_files
from holdtrue.errors import SaveError, fail
from holdtrue.findings import Finding, report
from holdtrue.records.manifest import (
    NAME,
    Chunk,
    Manifest,
    Ranking,
    encode_manifest,
)
from holdtrue.restore.proving import with_recipes
from holdtrue.storage.commit import publish, write_synced

_PART_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}\Z")
# Names that a file system or the format has taken.
_TAKEN = frozenset({RNG, PROBE, "manifest", "source", "con", "prn", "aux", "nul"})


class Saved(Struct, frozen=True, kw_only=True):
    """What a save did."""

    path: Path
    nbytes: int  # of all files
    files: int
    seconds: float  # until durable


def save(
    path: str | os.PathLike[str],
    /,
    *,
    step: int | None = None,
    metrics: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    probe: Any = None,
    **parts: Any,
) -> Saved:
    """Keep `parts` as one checkpoint at `path`, durable when this returns.

    Parts are modules, optimizers, schedulers, scalers, loaders, objects and plain values, each
    under the name it will have. The global random states are always kept as part `rng`.

    `probe` are inputs for the first module (or a `Probe`): what it answers is kept, so that a
    restore can tell whether the model still computes the same.

    Raises SaveError, before a byte is written, when a value cannot be kept or `path` exists (unless
    `overwrite`), and when the disk is full or refuses; what was there before is then unchanged.
    """
    return write_checkpoint(Path(path), parts, step, metrics, None, overwrite, probe)


def write_checkpoint(
    target: Path,
    parts: Mapping[str, Any],
    step: int | None,
    metrics: Mapping[str, Any] | None,
    ranking: Ranking | None,
    overwrite: bool = False,
    probe: Any = None,
) -> Saved:
    """`save`, and what a run adds to it."""
    began = time.perf_counter()
    captured, files, metrics_node = _prepare(target, parts, metrics, overwrite, probe)
    manifest = Manifest(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        environment=environment(),
        parts=with_recipes(captured.parts, parts),
        tensors=captured.tensors,
        files={f.name: f.record for f in files},
        step=step,
        metrics=metrics_node,
        ranking=ranking,
    )
    try:
        with publish(target, replace=overwrite) as staged:
            digests = write_files(staged, files, captured.sources)
            raw = encode_manifest(replace(manifest, tensors=_placed(captured, files, digests)))
            write_synced(staged / NAME, raw)
    except OSError as error:
        raise _not_written(target, error, sum(f.nbytes for f in files)) from error
    return Saved(
        path=target,
        nbytes=sum(f.nbytes for f in files) + len(raw),
        files=len(files) + 1,
        seconds=time.perf_counter() - began,
    )


def _prepare(
    target: Path,
    parts: Mapping[str, Any],
    metrics: Mapping[str, Any] | None,
    overwrite: bool,
    probe: Any,
) -> tuple[Captured, list[PlannedFile], Any]:
    findings = _check_names(parts)
    if not overwrite and os.path.lexists(target):
        findings.append(_exists(target))
    if overwrite and os.path.lexists(target) and not _may_be_replaced(target):
        findings.append(_foreign(target))
    if findings:
        raise SaveError(report(str(target), findings))
    captured = capture(parts, probe)
    numbers = tensor_set("metrics")
    node = ValueEncoder(numbers).encode(dict(metrics), "") if metrics is not None else None
    findings = [*captured.findings, *numbers.findings, *_metric_findings(metrics, numbers.records)]
    if any(f.severity == "error" for f in findings):
        raise SaveError(report(str(target), findings))
    return captured, lay_out(captured.tensors, captured.sources), node


def _placed(
    captured: Captured, files: list[PlannedFile], digests: Mapping[str, str]
) -> dict[str, Any]:
    chunks = {
        p.key: Chunk(file=f.name, name=p.name, digest=digests[p.key])
        for f in files
        for p in f.placements
    }
    return {
        key: replace(record, chunks=(chunks[key],)) if key in chunks else record
        for key, record in captured.tensors.items()
    }


def _check_names(parts: Mapping[str, Any]) -> list[Finding]:
    findings: list[Finding] = []
    folded: dict[str, str] = {}
    for name in parts:
        twin = folded.setdefault(name.lower(), name)
        if not _PART_NAME.match(name) or name.lower() in _TAKEN or twin != name:
            why = (
                f"on some file systems it is the same name as {twin!r}"
                if twin != name
                else "parts are kept in files of their names: letters, digits and _; and "
                f"{', '.join(sorted(_TAKEN))} are taken"
            )
            findings.append(
                Finding(
                    code="part-name",
                    severity="error",
                    where=name,
                    what="a part cannot have this name",
                    why=why,
                    fix="give it another keyword",
                )
            )
    return findings


def _metric_findings(
    metrics: Mapping[str, Any] | None, tensors: Mapping[str, Any]
) -> list[Finding]:
    odd = [
        f"metrics/{k}"
        for k, v in (metrics or {}).items()
        if not isinstance(k, str) or not isinstance(v, SupportsFloat)
    ]
    odd += [key for key in tensors if key not in odd]
    return [
        Finding(
            code="metric-not-a-number",
            severity="error",
            where=where,
            what="a metric is a name and one plain number",
            why="it is read again and again to tell which checkpoint is best",
            fix='metrics={"val_loss": float(loss)}',
        )
        for where in odd
    ]


def _exists(target: Path) -> Finding:
    return Finding(
        code="already-exists",
        severity="error",
        where=str(target),
        what="there is something under this name already",
        why="a checkpoint never changes once it exists, so that a reader can rely on it",
        fix="choose another path, or replace it: save(..., overwrite=True)",
    )


def _may_be_replaced(target: Path) -> bool:
    if target.is_symlink() or not target.is_dir():
        return False
    try:
        return (target / NAME).exists() or not any(target.iterdir())
    except PermissionError:
        return True  # then publishing is refused too, with the reason


def _foreign(target: Path) -> Finding:
    return Finding(
        code="not-a-checkpoint",
        severity="error",
        where=str(target),
        what="what stands here is not a checkpoint, so it is not overwritten",
        why="overwrite=True replaces checkpoints; anything else may be someone's work",
        fix="choose another path, or remove it yourself",
    )


def _not_written(target: Path, error: OSError, needed: int) -> SaveError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        code, what = "disk-full", "the disk is full"
        fix = "free some space, then save again; the training state in memory is untouched"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        code, what = "permission-denied", "the directory may not be written to"
        fix = f"chmod u+rwx {target.absolute().parent}, or save somewhere else"
    elif isinstance(error, FileExistsError):
        return fail(SaveError, str(target), _exists(target))
    elif error.errno == errno.ENOTDIR:
        code, what = "not-a-directory", "a file stands where a directory is needed"
        fix = "choose another path"
    else:
        code, what = "write-failed", "the disk would not take it"
        fix = "check the disk, then save again; the training state in memory is untouched"
    free = _free_bytes(target)
    return fail(
        SaveError,
        str(target),
        Finding(
            code=code,
            severity="error",
            where=error.filename or str(target),
            what=f"not saved: {what}",
            why=f"the system says: {error.strerror or error}; needed {needed:,} bytes"
            + (f", free {free:,}" if free is not None else "")
            + ". What was saved before is unchanged",
            fix=fix,
        ),
    )


def _free_bytes(target: Path) -> int | None:
    for place in (target, *target.absolute().parents):
        try:
            return shutil.disk_usage(place).free
        except OSError:
            continue
    return None
