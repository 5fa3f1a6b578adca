"""Bytes in the file that its weights do not need."""

from collections.abc import Iterator

from holdtrue.doctor.amounts import size
from holdtrue.doctor.commands import convert_command
from holdtrue.doctor.file_facts import storages, wasted
from holdtrue.doctor.state_dicts import nbytes, state_dicts
from holdtrue.findings import Finding, several
from holdtrue.formats.tree_walk import children, tensors_by_path
from holdtrue.formats.view import View
from holdtrue.limits import MIB

_NOTABLE = 64 * MIB  # wasted bytes from which it is more than a note
_LEAST = 4096  # bytes of weights below which a factor says nothing


def storage_waste(view: View) -> Iterator[Finding]:
    """Views that were saved with the whole storage behind them."""
    found = wasted(view)
    if not found:
        return
    lost = sum(one.held - one.used for one in found)
    total = sum(storages(view.tensors).values())
    places = tuple(
        f"{view.path}: {one.name}: {size(one.used)} of a storage of {size(one.held)}"
        for one in found
    )
    yield Finding(
        code="storage-waste",
        severity="warning" if lost >= _NOTABLE and 2 * lost > total else "note",
        where=places[0],
        places=several(places),
        what=f"{size(lost)} of the file's {size(total)} belong to no tensor in it",
        why="torch.save writes the whole storage behind a view: a slice of a large tensor brings "
        "all of it along",
        fix="keeps what the tensors use; when saving, tensor.clone() before torch.save",
        command=convert_command(view.path),
    )


def weights_share(view: View) -> Iterator[Finding]:
    """How much of a training checkpoint is not weights: Adam's state is twice their size."""
    if view.format == "holdtrue" or not isinstance(view.tree, dict):
        return
    states = state_dicts(view)
    total = sum(storages(view.tensors).values())
    model = max(map(nbytes, states), default=0)
    if model < _LEAST or total < 2 * model:
        return
    parts = {
        name: sum(storages(tensors_by_path(value, view.path)).values())
        for name, value in children(view.tree)
    }
    places = tuple(
        f"{view.path}: {name}: {size(held)}" for name, held in parts.items() if held > total // 100
    )
    yield Finding(
        code="more-than-weights",
        severity="note",
        where=places[0] if places else view.path,
        places=several(places),
        what=f"the file is {total / model:.1f} times the size of its model's weights",
        why="an optimizer's state (twice the weights for Adam), averages or other models are in it",
        fix="takes the weights of one model out; keep the file for resuming",
        command=convert_command(view.path, ".safetensors"),
    )
