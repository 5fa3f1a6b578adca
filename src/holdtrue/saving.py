"""Saving one checkpoint: capture, refuse or lay out, then write and publish."""

import operator
import os
import re
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from msgspec import Struct

from holdtrue.capture.before import CapturedBefore, remember
from holdtrue.capture.environment import environment
from holdtrue.capture.metrics import capture_metrics
from holdtrue.capture.parts import RNG, Captured, capture
from holdtrue.capture.probe import PROBE
from holdtrue.capture.tensors import Source
from holdtrue.capture.together import copy_together
from holdtrue.collection import put_off
from holdtrue.engine.checkpoint import write_checkpoint
from holdtrue.engine.layout import PlannedFile, lay_out
from holdtrue.engine.linking import Earlier
from holdtrue.engine.signing import Signer, signer
from holdtrue.engine.telling import Tell, telling
from holdtrue.engine.windows import Readable
from holdtrue.errors import SaveError, fail
from holdtrue.findings import Finding, report
from holdtrue.limits import Limits, limits
from holdtrue.records.manifest import SOURCE, Cost, Manifest, Ranking
from holdtrue.restore.proving import with_recipes
from holdtrue.storage.commit import publish
from holdtrue.storage.failures import already_exists, not_written
from holdtrue.storage.replacing import is_checkpoint, strangers, strangers_found

_PART_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}\Z")
# Names that a file system or the format has taken.
_TAKEN = frozenset({RNG, PROBE, "manifest", SOURCE, "con", "prn", "aux", "nul"})


class Saved(Struct, frozen=True, kw_only=True):
    """What a save did."""

    path: Path
    nbytes: int  # of all files
    files: int
    seconds: float  # until durable
    stall: float  # seconds that the caller waited
    written: int  # bytes that were written, and not linked
    linked: tuple[str, ...] = ()  # files taken from the checkpoint before: their bytes are the same
    not_linked: str | None = None  # what the file system says where it has no hard links
    buffered: str | None = None  # why large files were written through the page cache
    staging: int = 0  # bytes of memory that held the state while it was written


class Before(Struct, frozen=True, eq=False):
    """What a save found out of parts that the next one may use, where they are as they were."""

    captured: CapturedBefore
    files: dict[str, list[PlannedFile]]  # by part
    limits: Limits  # by which they were laid out


class Prepared(Struct, frozen=True, kw_only=True, eq=False):
    """A state that has been read and found fit to keep; nothing has been written."""

    target: Path
    manifest: Manifest  # without chunks and files
    files: list[PlannedFile]
    sources: Mapping[str, Source]
    began: float  # time.perf_counter() at the beginning of the save
    overwrite: bool = False
    aside: Path | None = None
    before: "Before | None" = None  # for the next save of the same parts, where it was asked for
    by: Signer | None = None  # who seals it

    @property
    def nbytes(self) -> int:
        return sum(file.nbytes for file in self.files)


def save(
    path: str | os.PathLike[str],
    /,
    *,
    step: int | None = None,
    metrics: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    probe: Any = None,
    progress: Tell | None = None,
    seal: Any = False,
    **parts: Any,
) -> Saved:
    """Keep `parts` as one checkpoint at `path`, durable when this returns.

    Parts are modules, optimizers, schedulers, scalers, loaders, objects and plain values, each
    under the name it will have. The global random states are always kept as part `rng`.

    `probe` are inputs for the first module (or a `Probe`): what it answers is kept, so that a
    restore can tell whether the model still computes the same. `progress` is told bytes done and
    bytes in all, from any thread; `holdtrue.ProgressBar()` shows them. `seal` writes the SHA-256 of
    every file beside them, see `holdtrue.seal`: True, a private key, or the path of its PEM file.

    Raises SaveError, before a byte is written, when a value cannot be kept or `path` exists, and
    when the disk is full or refuses; what was there before is then unchanged. `overwrite` replaces
    a checkpoint, whole or damaged; one that holds files which are not part of it is refused, too.
    """
    number = None if step is None else whole_step(str(path), step)
    by = signer(seal)
    prepared = prepare(Path(path), parts, number, metrics, overwrite=overwrite, probe=probe, by=by)
    return write(prepared, prepared.sources, progress=progress)


def prepare(
    target: Path,
    parts: Mapping[str, Any],
    step: int | None = None,
    metrics: Mapping[str, Any] | None = None,
    ranking: Ranking | None = None,
    *,
    overwrite: bool = False,
    aside: Path | None = None,
    probe: Any = None,
    gradients: bool = False,
    began: float | None = None,
    before: Before | None = None,
    remember_it: bool = False,
    by: Signer | None = None,
) -> Prepared:
    """Read the state of all parts and lay it out. What stands at `target` is replaced, or kept
    under the name `aside`; `began` is when the save was asked for, by `time.perf_counter`; `by`
    seals it. `before` is what a save of the same parts remembered. Raises SaveError when something
    cannot be kept."""
    began = time.perf_counter() if began is None else began
    if before is not None and before.limits != limits():
        before = None
    metrics_node, odd = _checked(target, parts, metrics, overwrite, aside)
    with put_off():
        captured = capture(
            parts, probe, gradients=gradients, before=before.captured if before else None
        )
    findings = [*captured.findings, *odd]
    if any(f.severity == "error" for f in findings):
        raise SaveError(report(str(target), findings))
    with put_off():
        laid_out = {
            part: before.files[part]
            if before is not None and part in captured.again
            else lay_out(captured.tensors, own)
            for part, own in captured.by_part.items()
        }
    files = [file for own in laid_out.values() for file in own]
    for name, text in captured.texts.items():
        raw = text.encode("utf-8", "backslashreplace")
        files.append(PlannedFile(name, raw, len(raw), ()))
    manifest = Manifest(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        environment=environment(),
        parts=with_recipes(captured.parts, parts),
        tensors=captured.tensors,
        files={},
        step=step,
        metrics=metrics_node,
        ranking=ranking,
    )
    return Prepared(
        target=target,
        manifest=manifest,
        files=files,
        sources=captured.sources,
        began=began,
        overwrite=overwrite,
        aside=aside,
        before=_remembered(before, parts, captured, laid_out)
        if remember_it and not gradients and not captured.findings
        else None,
        by=by,
    )


def _remembered(
    before: Before | None,
    parts: Mapping[str, Any],
    captured: Captured,
    laid_out: dict[str, list[PlannedFile]],
) -> Before:
    if before is not None and captured.again and captured.again == before.captured.parts.keys():
        return before
    made = remember(
        parts, captured.parts, captured.tensors, captured.by_part, captured.architectures
    )
    return Before(made, {part: laid_out[part] for part in made.parts}, limits())


def write(
    prepared: Prepared,
    sources: Mapping[str, Readable],
    *,
    images: Mapping[str, memoryview] | None = None,
    earlier: Earlier | None = None,
    stall: float | None = None,
    waited: bool = False,
    staging: int = 0,
    progress: Tell | None = None,
    confirm: Callable[[str], None] | None = None,
) -> Saved:
    """Write and publish what was prepared. Raises SaveError; what was on disk is then unchanged.

    `confirm` is asked last of all, before it is published, and may raise.

    `sources` are those of `prepared`, or copies of them. `stall` is how long the caller waited,
    where that is over already, and `waited` that a run's caller waits until it is durable; the
    manifest of a run's save says what it cost.
    """
    of_run = waited or stall is not None
    cost = Cost(stall=round(stall or 0.0, 4), staging=staging) if of_run else None
    try:
        with (
            telling(progress, prepared.nbytes) as tell,
            publish(prepared.target, replace=prepared.overwrite, aside=prepared.aside) as directory,
        ):
            done = write_checkpoint(
                directory,
                prepared.manifest,
                prepared.files,
                sources,
                images=images,
                together=copy_together,
                earlier=earlier,
                cost=cost,
                waited=waited,
                began=prepared.began,
                progress=tell,
                name=prepared.target.absolute().name,
                by=prepared.by,
            )
            if confirm is not None:
                confirm(str(prepared.target))
    except OSError as error:
        raise not_written(prepared.target, error, prepared.nbytes) from error
    seconds = time.perf_counter() - prepared.began
    return Saved(
        path=prepared.target,
        nbytes=done.nbytes,
        files=len(prepared.files) + 1 + (prepared.by is not None),
        seconds=seconds,
        stall=seconds if stall is None else stall,
        written=done.written,
        linked=done.linked,
        not_linked=done.refused,
        buffered=done.buffered,
        staging=staging,
    )


def _checked(
    target: Path,
    parts: Mapping[str, Any],
    metrics: Mapping[str, Any] | None,
    overwrite: bool,
    aside: Path | None,
) -> tuple[Any, list[Finding]]:
    """The metrics as a node and what is odd about them. Raises SaveError for names and places
    that cannot be."""
    findings = _check_names(parts)
    if "\0" in str(target):
        findings.append(_zero_character(target))
    elif not overwrite and aside is None and os.path.lexists(target):
        findings.append(already_exists(target))
    elif overwrite and os.path.lexists(target):
        findings += _not_replaceable(target)
    node, odd = capture_metrics(metrics)
    if findings:
        raise SaveError(report(str(target), findings))
    return node, odd


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


def whole_step(subject: str, step: Any) -> int:
    """The step as an int, whatever kind of whole number it is. Raises SaveError."""
    try:
        number = -1 if isinstance(step, bool) else operator.index(step)
    except TypeError:
        number = -1
    if number < 0:
        raise fail(SaveError, subject, _bad_step(step))
    return number


def _bad_step(step: Any) -> Finding:
    return Finding(
        code="step-invalid",
        severity="error",
        where=f"step={step!r}"[:100],
        what="a step is a whole number from 0",
        why="checkpoints of a run are named and ordered by it",
        fix="run.save(step + 1, metrics={…})",
    )


def _zero_character(target: Path) -> Finding:
    return Finding(
        code="path-invalid",
        severity="error",
        where=repr(str(target)),
        what="the path holds a zero character",
        why="no file system has such names; the path was cut together from something else",
        fix="give a path as the file system knows it",
    )


def _not_replaceable(target: Path) -> list[Finding]:
    try:
        if is_checkpoint(target):
            names = strangers(target)
            return [strangers_found(target, names)] if names else []
        plain = target.is_dir() and not target.is_symlink()
        return [] if plain and not any(target.iterdir()) else [_foreign(target)]
    except OSError:
        return []  # then publishing is refused too, with the reason


def _foreign(target: Path) -> Finding:
    return Finding(
        code="not-a-checkpoint",
        severity="error",
        where=str(target),
        what="what stands here is not a checkpoint, so it is not overwritten",
        why="overwrite=True replaces checkpoints; anything else may be someone's work",
        fix="choose another path, or remove it yourself",
    )
