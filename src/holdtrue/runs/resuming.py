"""Which checkpoint of a run is resumed, and what is said of those that were passed over."""

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import replace

from holdtrue.checkpoint import Checkpoint
from holdtrue.checkpoint import open as open_checkpoint
from holdtrue.engine.telling import Tell
from holdtrue.errors import DamageError, HoldtrueError, fail
from holdtrue.findings import Finding, Report
from holdtrue.records.manifest import NAME
from holdtrue.storage.commit import may_list
from holdtrue.storage.locating import is_ours

_log = logging.getLogger("holdtrue")
# Reasons why bytes cannot be read that say nothing of the bytes. Going back to an older checkpoint
# for these would lose work that is there.
_NO_DAMAGE = frozenset({"permission-denied", "read-failed"})

Restore = Callable[[Path], Report]


class Resumed(Struct, frozen=True):
    """The step that was restored, and the damaged ones that were passed over."""

    step: int | None  # None: there was nothing
    report: Report | None
    damaged: frozenset[int] = frozenset()
    error: HoldtrueError | None = None  # where all of them are damaged


def resume_first_whole(found: Iterable[tuple[int, Path]], restore: Restore) -> Resumed:
    """Restore the first checkpoint that is whole. What is wrong beside damage is raised."""
    passed: list[HoldtrueError] = []
    damaged: set[int] = set()
    for step, path in found:
        try:
            if _half_there(path):
                raise fail(DamageError, str(path), _not_whole(path))
            report = restore(path)
        except DamageError as error:
            if any(f.code in _NO_DAMAGE for f in error.report.findings):
                raise
            said = "; ".join(f.what for f in error.report.errors)
            _log.warning("step %d is passed over, it is damaged: %s", step, said)
            passed.append(error)
            damaged.add(step)
            continue
        except HoldtrueError as error:  # it does not fit: nothing fills again what was overwritten
            raise _unusable(passed) or error from None
        if passed:
            findings = [*_passed_over(passed), *report.findings]
            report = Report(subject=report.subject, findings=tuple(findings))
        return Resumed(step, report, frozenset(damaged))
    first = passed[0] if passed else None
    return Resumed(None, None, frozenset(damaged), _unusable(passed) or first)


def _unusable(passed: list[HoldtrueError]) -> HoldtrueError | None:
    """The error of the checkpoint that left the target partly overwritten, if one did."""
    for error in passed:
        if any(f.code == "target-unusable" for f in error.report.findings):
            return error
    return None


def restore_parts(
    parts: Mapping[str, Any],
    allow: tuple[str, ...],
    on_conflict: Literal["file", "code"] = "file",
    progress: Tell | None = None,
    *,
    gradients: bool = False,
    verify: Literal["first", "while"] = "first",
) -> Restore:
    """A function that restores every part, and the random states, from a checkpoint."""

    def restore(path: Path) -> Report:
        checkpoint = open_checkpoint(path)
        done = checkpoint.restore(
            rng=True,
            allow=allow,
            on_conflict=on_conflict,
            verify=verify,
            progress=progress,
            **parts,
        )
        more = _compare_gradients(checkpoint, parts, gradients)
        return replace(done, findings=(*done.findings, *more))

    return restore


def _compare_gradients(
    checkpoint: Checkpoint, parts: Mapping[str, Any], kept_here: bool
) -> list[Finding]:
    """One note where the run keeps gradients and the checkpoint has none, or the reverse."""
    saved = checkpoint.manifest.parts if checkpoint.manifest else {}
    kept = {
        name: record.state.get("gradients")
        for name, record in saved.items()
        if record.kind == "module" and name in parts
    }
    if kept_here and kept and all(gradients is None for gradients in kept.values()):
        return [_gradients_differ(checkpoint.path, "without gradients", "gradients=True", _LACKING)]
    if not kept_here and any(kept.values()):
        return [_gradients_differ(checkpoint.path, "with gradients", "no gradients=True", _GIVEN)]
    return []


def _gradients_differ(path: Path, saved: str, here: str, said: tuple[str, str, str]) -> Finding:
    what, why, fix = said
    return Finding(
        code="gradients-setting-differs",
        severity="note",
        where=str(path),
        what=what,
        why=why,
        fix=fix,
        saved=saved,
        expected=here,
    )


_LACKING = (
    "the run keeps gradients, and this checkpoint has none",
    "it was saved by a run without gradients=True: what had been accumulated between backward and "
    "step then, if anything, is lost",
    "none is needed where it was saved after optimizer.zero_grad()",
)
_GIVEN = (
    "the gradients of the checkpoint were restored, and this run will not keep any",
    "it was saved with gradients=True; the next save drops what is accumulated when it comes",
    "Run(…, gradients=True), or save only after optimizer.zero_grad()",
)


def _half_there(path: Path) -> bool:
    """True for a step without a manifest. What may not be looked into is not known to lack it."""
    return not path.is_dir() or (may_list(path) and not is_ours(path))


def _passed_over(errors: list[HoldtrueError]) -> list[Finding]:
    return [
        Finding(
            code="checkpoint-passed-over",
            severity="warning",
            where=error.report.subject,
            what="a newer checkpoint is damaged; an older one was restored",
            why="; ".join(f.what for f in error.report.findings),
            fix=f"holdtrue verify {error.report.subject}",
        )
        for error in errors
    ]


def _not_whole(path: Path) -> Finding:
    return Finding(
        code="manifest-missing",
        severity="error",
        where=str(path),
        what=f"a step without its {NAME}",
        why="it was copied or deleted in part; a save of holdtrue appears whole or not at all",
        fix="copy the whole directory again, or use another checkpoint",
    )
