"""Saving one checkpoint: capture, refuse or lay out, write, publish."""

import os
import re
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
from holdtrue.errors import SaveError
from holdtrue.findings import Finding, report
from holdtrue.records.manifest import (
    NAME,
    SOURCE,
    Chunk,
    Manifest,
    Ranking,
    encode_manifest,
)
from holdtrue.restore.proving import with_recipes
from holdtrue.storage.commit import publish, sync_directory, write_synced
from holdtrue.storage.failures import already_exists, not_written

_PART_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}\Z")
# Names that a file system or the format has taken.
_TAKEN = frozenset({RNG, PROBE, "manifest", SOURCE, "con", "prn", "aux", "nul"})


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
            if captured.texts:
                (staged / SOURCE).mkdir()
            digests = write_files(staged, files, captured.sources)
            if captured.texts:
                sync_directory(staged / SOURCE)
            raw = encode_manifest(replace(manifest, tensors=_placed(captured, files, digests)))
            write_synced(staged / NAME, raw)
    except OSError as error:
        raise not_written(target, error, sum(f.nbytes for f in files)) from error
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
        findings.append(already_exists(target))
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
    files = lay_out(captured.tensors, captured.sources)
    for name, text in captured.texts.items():
        raw = text.encode("utf-8", "backslashreplace")
        files.append(PlannedFile(name, raw, len(raw), ()))
    return captured, files, node


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
