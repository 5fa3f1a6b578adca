"""A checkpoint beside what it is to be restored into, and whether training can go on from it."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from holdtrue.checkpoint import Checkpoint
from holdtrue.doctor.examining import examine
from holdtrue.doctor.subjects import Training
from holdtrue.doctor.training_folder import FORMAT, training_folder
from holdtrue.doctor.training_state import saved_training
from holdtrue.errors import HoldtrueError, torch_missing
from holdtrue.findings import Finding
from holdtrue.formats.view import View


def about_training(place: Path, checkpoint: Checkpoint) -> list[Finding]:
    """What a resume from the file has, and what in it contradicts itself."""
    try:
        view = _training_view(place, checkpoint)
        saved = saved_training(view)
    except HoldtrueError:  # nested past the budgets, which opening it has said
        return []
    return examine(Training(view=view, saved=saved), view.path)


def about_targets(
    checkpoint: Checkpoint, place: Path, given: str, targets: dict[str, Any]
) -> list[Finding]:
    """What a restore into them would find; `given` is what the calls that are proposed open."""
    if find_spec("torch") is None:
        raise torch_missing("comparing with a model")
    # Imported here: without targets torch is not needed.
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
        whole = _training_view(place, checkpoint)
        findings += compare_training(whole, live | others, given)
    return findings


def wanted_dtypes(checkpoint: Checkpoint, given: str, targets: dict[str, Any]) -> dict[str, str]:
    """The dtype of the live parameter that each tensor of the file is meant for, by path."""
    if not targets:
        return {}
    from holdtrue.restore.comparing import is_module_target, live_targets, meant_dtypes
    from holdtrue.restore.request import Request

    models = {name: target for name, target in targets.items() if is_module_target(name, target)}
    live, _ = live_targets(models)
    view, manifest = checkpoint.view, checkpoint.manifest
    request = Request(view=view, manifest=manifest, targets=live, given=given)
    return meant_dtypes(request) if live else {}


def _training_view(place: Path, checkpoint: Checkpoint) -> View:
    """The view, with the files that a trainer puts beside the weights."""
    view = checkpoint.view
    if checkpoint.manifest is None and view.format != FORMAT and place.is_dir():
        return training_folder(str(place), view) or view
    return view
