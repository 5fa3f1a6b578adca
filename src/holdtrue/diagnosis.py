"""Why a checkpoint cannot be loaded, or why what was loaded is not what was saved."""

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from holdtrue.checkpoint import Checkpoint
from holdtrue.checkpoint import open as open_checkpoint
from holdtrue.doctor.examining import examine
from holdtrue.errors import HoldtrueError, torch_missing
from holdtrue.findings import Finding, Report, report

# With these there is nothing at the path to be diagnosed.
_OUT_OF_REACH = frozenset({"path-missing", "permission-denied", "path-unreadable", "special-file"})

Progress = Callable[[int, int], None]  # bytes read, bytes in all


def diagnose(
    path: str | os.PathLike[str],
    *,
    deep: bool = False,
    progress: Progress | None = None,
    **targets: Any,
) -> Report:
    """Everything that is wrong, odd or different about a checkpoint of any format.

    Beside the file alone, each target is compared with it: `model=` (a module, or what makes one),
    `optimizer=`, `scheduler=` and the like; nothing of theirs is changed. `deep` reads the values
    of all tensors. Nothing in the file is run. Raises OpenError where the path cannot be reached.
    """
    place = Path(path)
    try:
        checkpoint = open_checkpoint(path)
    except HoldtrueError as error:
        if any(f.code in _OUT_OF_REACH for f in error.report.findings):
            raise
        return report(str(place), error.report.findings, ["everything else: it cannot be opened"])
    findings = _about_file(checkpoint)
    if targets:
        findings += _about_targets(checkpoint, os.fspath(path), targets)
    return report(str(checkpoint.path), findings, _not_checked(deep, targets))


def _about_file(checkpoint: Checkpoint) -> list[Finding]:
    view = checkpoint.view
    return [*view.findings, *examine(view, view.path)]


def _about_targets(checkpoint: Checkpoint, given: str, targets: dict[str, Any]) -> list[Finding]:
    """What a restore into them would find. Imported here: without targets torch is not needed."""
    if find_spec("torch") is None:
        raise torch_missing("comparing with a model")
    from holdtrue.restore.comparing import compare, is_module_target, live_targets
    from holdtrue.restore.request import Request

    models = {name: target for name, target in targets.items() if is_module_target(name, target)}
    live, findings = live_targets(models)
    if live:
        view, manifest = checkpoint.view, checkpoint.manifest
        findings += compare(Request(view=view, manifest=manifest, targets=live, given=given))
    return findings


def _not_checked(deep: bool, targets: dict[str, Any]) -> list[str]:
    left = [] if deep else ["tensor values (--deep)"]
    return left if targets else [*left, "whether it fits a model (--model)"]
