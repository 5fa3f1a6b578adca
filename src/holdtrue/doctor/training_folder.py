"""A folder in which a trainer keeps one checkpoint as several files, read as one view.

Weights stand beside `optimizer.pt`, `scheduler.pt`, `rng_state.pth`, `trainer_state.json` and the
like (Hugging Face Trainer, Accelerate). Which file is which is told by content.
"""

from pathlib import Path
from typing import Any

from holdtrue.doctor.optimizer_states import is_optimizer_state
from holdtrue.doctor.training_state import is_scheduler_state
from holdtrue.errors import HoldtrueError
from holdtrue.findings import Finding
from holdtrue.formats.detect import sniff
from holdtrue.formats.directories import list_names
from holdtrue.formats.opening import read
from holdtrue.formats.source import read_bytes
from holdtrue.formats.strict_json import strict_json
from holdtrue.formats.view import LazyTensor, View, prefixed
from holdtrue.limits import MIB

FORMAT = "training-folder"
_FILES = 32  # of one folder that are opened
_SUFFIXES = (".pt", ".pth", ".bin", ".pkl", ".safetensors", ".tar")
_COUNTERS = "trainer_state.json"
_WEIGHTS = ("model", "pytorch_model", "adapter_model", "diffusion_pytorch_model")


def training_folder(folder: str, weights: View | None = None) -> View | None:
    """The files of the folder as one tree, by their names; None where no training is kept there.

    `weights` is what was read of it already.
    """
    place = Path(folder)
    views: dict[str, View] = {}
    findings: list[Finding] = []
    names = sorted(list_names(folder))
    for name in [n for n in names if n.endswith(_SUFFIXES)][:_FILES]:
        if weights is not None and (name.startswith(_WEIGHTS) or name == Path(weights.path).name):
            continue
        try:
            if sniff(str(place / name)) is not None:
                views[name] = read(str(place / name))
        except HoldtrueError as error:
            findings += error.report.findings
    if not any(_is_training(view.tree) for view in views.values()):
        return None
    if weights is not None:
        views["model"] = weights
    tree: dict[str, Any] = {name: view.tree for name, view in views.items()}
    counters = _counters(place / _COUNTERS) if _COUNTERS in names else None
    if counters is not None:
        tree[_COUNTERS] = counters
    tensors: dict[str, LazyTensor] = {}
    for name, view in views.items():
        tensors |= {f"{name}/{p}": prefixed(t, f"{name}/") for p, t in view.tensors.items()}
        findings += view.findings
    return View(
        path=folder, format=FORMAT, about={}, tree=tree, tensors=tensors, findings=tuple(findings)
    )


def _is_training(tree: Any) -> bool:
    if not isinstance(tree, dict):
        return False
    return is_optimizer_state(tree) or is_scheduler_state(tree)


def _counters(path: Path) -> Any:
    """The plain numbers of a trainer's own state: epochs and steps."""
    try:
        found = strict_json(read_bytes(str(path), 0, 16 * MIB))
    except (HoldtrueError, ValueError):
        return None
    if not isinstance(found, dict):
        return None
    return {k: v for k, v in found.items() if isinstance(v, int | float)}
