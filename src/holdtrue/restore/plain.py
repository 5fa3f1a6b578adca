"""The plan for a module where nothing is odd: plain tensors that fit as they are, and no ties.

Nearly all restores are of this kind, and with thousands of tensors the comparisons one by one take
longer than reading the file. Here all of them are made in one pass; whatever does not pass at a
glance is left, with the whole module, to the functions that can tell what it is.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from holdtrue.capture.module import Entry
from holdtrue.capture.raw import dtype_named
from holdtrue.records.dtypes import DTYPES
from holdtrue.restore.fresh import Fresh
from holdtrue.restore.plan import Copy, Plan

_CLASSES = frozenset({Tensor, torch.nn.Parameter})
_DEVICES = frozenset({"cpu", "cuda"})
_DTYPES = {
    name: dtype
    for name in DTYPES
    if (dtype := dtype_named(name)) is not None and not name.startswith("q")  # quantised
}


def plan_plain(
    part: str,
    matched: Mapping[str, str],
    target: Mapping[str, Entry],
    tensors: Fresh,
    plan: Plan,
) -> bool:
    """Add the copies that fill `target`, if all of them are plain; else change nothing.

    Plain is: of torch's own classes, strided, of the saved dtype and shape, contiguous, with
    memory of its own here and a tensor of its own in the file, trained or frozen as it was.
    """
    if len(set(matched.values())) != len(matched):
        return False  # tied in the file
    copies: list[Copy] = []
    memory: set[int] = set()
    moves: set[tuple[str, torch.device]] = set()
    stored = tensors.tensors
    before: tuple[str, torch.device] | None = None
    for name, key in matched.items():
        lazy, entry = stored[key], target[name]
        tensor = entry.tensor
        if (
            type(tensor) not in _CLASSES
            or lazy.layout != "strided"
            or lazy.class_name is not None
            or lazy.state is not None
            or tensor.dtype is not _DTYPES.get(lazy.dtype)
            or tensor.shape != lazy.shape
            or 0 in lazy.shape
            or tensor.layout is not torch.strided
            or tensor.requires_grad != lazy.requires_grad
        ):
            return False
        move = lazy.device, tensor.device
        if move != before:
            if move[1].type not in _DEVICES:
                return False
            moves.add(move)
            before = move
        if not tensor.is_contiguous():  # where it is, no element is the memory of another
            return False
        memory.add(tensor.data_ptr())
        copies.append(Copy(lazy, tensor))
    if len(memory) != len(copies):
        return False  # tied here
    plan.copies += copies
    kinds = {(saved.partition(":")[0], device.type) for saved, device in moves}
    plan.moved += [f"{part}: saved on {a}, here on {b}" for a, b in sorted(kinds) if a != b]
    return True
