"""Why a checkpoint cannot be loaded, or why what was loaded is not what was saved."""

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from holdtrue.checkpoint import Checkpoint
from holdtrue.checkpoint import open as open_checkpoint
from holdtrue.doctor.examining import examine
from holdtrue.doctor.reading_weights import read_weights
from holdtrue.doctor.state_dicts import state_dicts
from holdtrue.doctor.subjects import Training
from holdtrue.doctor.training_folder import FORMAT, training_folder
from holdtrue.doctor.training_state import saved_training
from holdtrue.errors import HoldtrueError, torch_missing
from holdtrue.findings import Finding, Report, report
from holdtrue.formats.view import View
from holdtrue.records.trust import Trust

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
        checkpoint = _opened(path)
    except HoldtrueError as error:
        if any(f.code in _OUT_OF_REACH for f in error.report.findings):
            raise
        return report(str(place), error.report.findings, ["everything else: it cannot be opened"])
    findings = [*_about_file(checkpoint), *_about_training(place, checkpoint)]
    if targets:
        findings += _about_targets(checkpoint, os.fspath(path), targets)
    if deep:
        findings += _about_values(checkpoint, findings, progress, targets)
    return report(str(checkpoint.path), findings, _not_checked(deep, targets))


def _opened(path: str | os.PathLike[str]) -> Checkpoint:
    """The checkpoint, also where a trainer keeps it as several files of a folder."""
    try:
        return open_checkpoint(path)
    except HoldtrueError as error:
        unknown = any(f.code == "directory-unknown" for f in error.report.findings)
        view = training_folder(str(path)) if unknown else None
        if view is None:
            raise
        return Checkpoint(Path(path), view, Trust(), None)


def _about_file(checkpoint: Checkpoint) -> list[Finding]:
    view = checkpoint.view
    return [*view.findings, *examine(view, view.path)]


def _about_values(
    checkpoint: Checkpoint,
    known: list[Finding],
    progress: Progress | None,
    targets: dict[str, Any],
) -> list[Finding]:
    """What the values of the tensors show, apart from damage that has been told already."""
    view = checkpoint.view
    weights, damage = read_weights(view, progress, _wanted_dtypes(view, targets))
    told = {(finding.code, finding.where) for finding in known}
    new = [finding for finding in damage if (finding.code, finding.where) not in told]
    return [*new, *examine(weights, view.path)]


def _wanted_dtypes(view: View, targets: dict[str, Any]) -> dict[str, str]:
    """The dtype of the live tensor that each of the file's is meant for, where names are equal.

    The state dict is the one with most of a target's names.
    """
    paths = {id(tensor): path for path, tensor in view.tensors.items()}
    wanted: dict[str, str] = {}
    for target in targets.values():
        named = getattr(target, "named_parameters", None)
        live = {name: str(p.dtype).removeprefix("torch.") for name, p in named()} if named else {}
        states = [state.names for state in state_dicts(view)]
        names = max(states, key=lambda names: len(names.keys() & live.keys()), default={})
        wanted |= {
            paths[id(tensor)]: live[name]
            for name, tensor in names.items()
            if name in live and id(tensor) in paths
        }
    return wanted


def _about_training(place: Path, checkpoint: Checkpoint) -> list[Finding]:
    """What a resume from the file has, and what in it contradicts itself."""
    try:
        view = _training_view(place, checkpoint)
        saved = saved_training(view)
    except HoldtrueError:  # nested past the budgets, which opening it has said
        return []
    return examine(Training(view=view, saved=saved), view.path)


def _training_view(place: Path, checkpoint: Checkpoint) -> View:
    """The view, with the files that a trainer puts beside the weights."""
    view = checkpoint.view
    if checkpoint.manifest is None and view.format != FORMAT and place.is_dir():
        return training_folder(str(place), view) or view
    return view


def _about_targets(checkpoint: Checkpoint, given: str, targets: dict[str, Any]) -> list[Finding]:
    """What a restore into them would find. Imported here: without targets torch is not needed."""
    if find_spec("torch") is None:
        raise torch_missing("comparing with a model")
    from holdtrue.restore.comparing import compare, compare_training, is_module_target, live_targets
    from holdtrue.restore.request import Request
    from holdtrue.restore.training_factories import made_training

    models = {name: target for name, target in targets.items() if is_module_target(name, target)}
    live, findings = live_targets(models)
    others, more = made_training({n: t for n, t in targets.items() if n not in models}, live)
    view, manifest = checkpoint.view, checkpoint.manifest
    # Our own checkpoints know every part by name; of other files rules of their own say the rest.
    asked = live if manifest is None else live | others
    findings += more
    if asked:
        findings += compare(Request(view=view, manifest=manifest, targets=asked, given=given))
    if manifest is None and (live or others):
        whole = _training_view(Path(given), checkpoint)
        findings += compare_training(whole, live | others, given)
    return findings


def _not_checked(deep: bool, targets: dict[str, Any]) -> list[str]:
    left = [] if deep else ["tensor values (--deep)"]
    return left if targets else [*left, "whether it fits a model (--model)"]
