"""Which checkpoint of a run is resumed, and what is said of those that were passed over."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import replace

from holdtrue.checkpoint import Checkpoint
from holdtrue.checkpoint import open as open_checkpoint
from holdtrue.engine.telling import Tell
from holdtrue.errors import DamageError, HoldtrueError
from holdtrue.findings import Finding, Report
from holdtrue.storage.whole import pass_over, passed_over, require_manifest

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
            require_manifest(path)
            report = restore(path)
        except DamageError as error:
            pass_over(step, error)
            passed.append(error)
            damaged.add(step)
            continue
        except HoldtrueError as error:  # it does not fit: nothing fills again what was overwritten
            raise _unusable(passed) or error from None
        if passed:
            over = passed_over(error.report for error in passed)
            report = Report(subject=report.subject, findings=(*over, *report.findings))
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
