"""What the values of a checkpoint's tensors show, once they are all read."""

from collections.abc import Callable

from holdtrue.checkpoint import Checkpoint
from holdtrue.doctor.damage_causes import places_of, same_place
from holdtrue.doctor.examining import examine
from holdtrue.doctor.reading_weights import read_weights
from holdtrue.findings import Finding
from holdtrue.verification import verify

Progress = Callable[[int, int], None]  # bytes read, bytes in all


def about_values(
    checkpoint: Checkpoint,
    known: list[Finding],
    progress: Progress | None,
    wanted: dict[str, str],
) -> list[Finding]:
    """What the values of the tensors show, apart from damage that has been told already.

    `wanted` is the dtype that each tensor is meant for, by path, where that is known.
    """
    view = checkpoint.view
    weights, damage = read_weights(view, progress, wanted)
    told = places_of(known)
    new = [f for f in damage if not any(same_place(f.where, place) for place in told)]
    return [*new, *examine(weights, view.path)]


def about_damage(checkpoint: Checkpoint, known: list[Finding]) -> list[Finding]:
    """Bytes that are not those that were written, as far as the format keeps checksums."""
    told = {finding.code for finding in known if finding.severity == "error"}
    found = verify(checkpoint.path).findings
    return [finding for finding in found if finding.code not in told and finding not in known]
