"""The newest checkpoint of a run that is whole, and what is said of those that are passed over."""

import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from holdtrue.errors import DamageError, fail
from holdtrue.findings import Finding, Report
from holdtrue.formats.checkpoint_directory import read_manifest, to_view
from holdtrue.formats.verifying import verify_view
from holdtrue.records.manifest import NAME
from holdtrue.storage.commit import may_list

_log = logging.getLogger("holdtrue")
# Reasons why bytes cannot be read that say nothing of the bytes. Going back to an older checkpoint
# for these would lose work that is there.
_NO_DAMAGE = frozenset({"permission-denied", "read-failed"})


def newest_whole(found: Mapping[int, Path]) -> tuple[int | None, list[Report]]:
    """The latest step of which every byte verifies, None where none does, and what is wrong with
    those after it. Reads all of them. Raises DamageError where bytes cannot be read at all."""
    damaged: list[Report] = []
    for step in sorted(found, reverse=True):
        try:
            require_manifest(found[step])
            checked = verify_view(to_view(found[step], read_manifest(found[step])))
            if checked.ok:
                return step, damaged
            raise DamageError(checked)
        except DamageError as error:
            pass_over(step, error)
            damaged.append(error.report)
    return None, damaged


def pass_over(step: int, error: DamageError) -> None:
    """Log that a damaged step is not used. Raises the error where it says nothing of the bytes."""
    if any(f.code in _NO_DAMAGE for f in error.report.findings):
        raise error
    said = "; ".join(f.what for f in error.report.errors)
    _log.warning("step %d is passed over, it is damaged: %s", step, said)


def passed_over(damaged: Iterable[Report]) -> tuple[Finding, ...]:
    """A finding for each damaged checkpoint that an older one was taken instead of."""
    return tuple(
        Finding(
            code="checkpoint-passed-over",
            severity="warning",
            where=one.subject,
            what="a newer checkpoint is damaged; an older one was restored",
            why="; ".join(f.what for f in one.findings),
            fix=f"holdtrue verify {one.subject}",
        )
        for one in damaged
    )


def require_manifest(step: Path) -> None:
    """Raise DamageError for a step without one. What may not be listed is not known to lack it."""
    if not step.is_dir() or (may_list(step) and not os.path.lexists(step / NAME)):
        raise fail(DamageError, str(step), _not_whole(step))


def _not_whole(path: Path) -> Finding:
    return Finding(
        code="manifest-missing",
        severity="error",
        where=str(path),
        what=f"a step without its {NAME}",
        why="it was copied or deleted in part; a save of holdtrue appears whole or not at all",
        fix="copy the whole directory again, or use another checkpoint",
    )
