"""Why a checkpoint cannot be loaded, or why what was loaded is not what was saved."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from holdtrue.checkpoint import Checkpoint
from holdtrue.diagnosis.folders import find_folder, is_folder, open_meant
from holdtrue.diagnosis.one_call import called_once
from holdtrue.diagnosis.targets import about_targets, about_training, wanted_dtypes
from holdtrue.diagnosis.values import Progress, about_damage, about_values
from holdtrue.doctor.amounts import counted
from holdtrue.doctor.commands import into_model, without_rest
from holdtrue.doctor.examining import examine
from holdtrue.doctor.file_facts import about_text
from holdtrue.errors import HoldtrueError
from holdtrue.findings import Finding, Report, report

# With these there is nothing at the path to be diagnosed.
_OUT_OF_REACH = frozenset({"path-missing", "permission-denied", "path-unreadable", "special-file"})


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
    folder = find_folder(place, deep)
    findings = [] if folder is None else examine(folder, str(place))
    try:
        checkpoint = open_meant(path, folder)
    except HoldtrueError as error:
        said = error.report.findings
        if any(f.code in _OUT_OF_REACH for f in said):
            raise
        if folder is not None and folder.kept and (is_folder(said) or folder.run):
            about = f"folder of {counted(len(folder.kept), 'checkpoint')}"
            left = ["each checkpoint by itself", *_left(deep)]
            if targets:
                left.append(f"whether one fits {', '.join(targets)}: name one of them")
            return report(str(place), findings, left, about)
        told = _told(place, said, deep)
        return report(str(place), [*told, *findings], ["everything else: it cannot be opened"])
    findings += _about_file(checkpoint)
    if deep:
        findings += about_damage(checkpoint, findings)
    findings = [*_told(checkpoint.path, findings, deep), *about_training(place, checkpoint)]
    if targets:
        # The path as it was given, unless it is a folder in which the file had to be found.
        found = folder is None or folder.run or checkpoint.path == place
        given = os.fspath(path) if found else str(checkpoint.path)
        beside = about_targets(checkpoint, place, given, targets)
        # What the comparison knows more of is not told twice.
        compared = {finding.code for finding in beside}
        if any(f.code == "part-missing" and f.where == "model" for f in beside):
            compared.add("weights-absent")
        findings = [*(f for f in findings if f.code not in compared), *beside]
    if deep:
        wanted = wanted_dtypes(checkpoint, os.fspath(path), targets)
        findings += about_values(checkpoint, findings, progress, wanted)
    findings = _once(findings)
    if "model" in targets:
        findings = into_model(findings, str(checkpoint.path))
        findings = called_once(findings, trains=bool(targets.keys() & {"optimizer", "scheduler"}))
    subject, about = checkpoint.path, about_text(checkpoint.view)
    if folder is not None and folder.run:
        many = counted(len(folder.kept), "checkpoint")
        subject, about = place, f"run of {many}, of which {checkpoint.path.name} is read"
    return report(str(subject), findings, _not_checked(deep, targets), about)


def _told(place: Path, findings: Iterable[Finding], deep: bool) -> list[Finding]:
    """The findings; those of damage with what can still be had from the file."""
    findings = without_rest(findings, str(place))
    if all(finding.severity != "error" for finding in findings):
        return findings
    from holdtrue.doctor.damage import told_with_rest

    return told_with_rest(str(place), findings, deep=deep)


def _about_file(checkpoint: Checkpoint) -> list[Finding]:
    view = checkpoint.view
    return [*view.findings, *examine(view, view.path)]


def _once(findings: list[Finding]) -> list[Finding]:
    """Without what a folder and a file in it both say."""
    return list({(f.code, f.where, f.what): f for f in findings}.values())


def _left(deep: bool) -> list[str]:
    return [] if deep else ["tensor values and checksums (--deep)"]


def _not_checked(deep: bool, targets: dict[str, Any]) -> list[str]:
    left = _left(deep)
    return left if targets else [*left, "whether it fits a model (--model)"]
