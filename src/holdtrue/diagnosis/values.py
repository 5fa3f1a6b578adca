"""What the values of a checkpoint's tensors show, once they are all read."""

from collections.abc import Callable
from typing import Any

from holdtrue.checkpoint import Checkpoint, verify
from holdtrue.doctor.examining import examine
from holdtrue.doctor.reading_weights import read_weights
from holdtrue.doctor.state_dicts import state_dicts
from holdtrue.findings import Finding
from holdtrue.formats.view import View

Progress = Callable[[int, int], None]  # bytes read, bytes in all


def about_values(
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


def about_damage(checkpoint: Checkpoint, known: list[Finding]) -> list[Finding]:
    """Bytes that are not those that were written, as far as the format keeps checksums."""
    told = {finding.code for finding in known if finding.severity == "error"}
    found = verify(checkpoint.path).findings
    return [finding for finding in found if finding.code not in told and finding not in known]


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
