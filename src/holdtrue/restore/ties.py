"""Ties: tensors that were one when saved are one again, or the report says why not."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdtrue.capture.module import Entry
from holdtrue.findings import Finding
from holdtrue.formats.tensor_bytes import tensor_chunks
from holdtrue.formats.view import LazyTensor
from holdtrue.restore.fresh import Fresh
from holdtrue.restore.plan import Action, Plan


def plan_ties(
    part: str,
    matched: Mapping[str, str],
    target: Mapping[str, Entry],
    tensors: Fresh,
    plan: Plan,
    held: Mapping[int, str],
) -> None:
    """Compare which names share a tensor in the file and here; plan to tie again what was tied."""
    _tie_again(part, matched, target, plan, held)
    _same_values(part, matched, target, tensors, plan)


def _tie_again(
    part: str,
    matched: Mapping[str, str],
    target: Mapping[str, Entry],
    plan: Plan,
    held: Mapping[int, str],
) -> None:
    groups: dict[str, list[str]] = {}
    for name, key in matched.items():
        groups.setdefault(key, []).append(name)
    for first, *others in groups.values():
        one = target[first]
        for name in others:
            other = target[name]
            if _same_memory(one.tensor, other.tensor):
                continue
            orphan = held.get(id(other.tensor))
            kind = one.is_parameter == other.is_parameter
            if orphan or not kind or one.tensor.shape != other.tensor.shape:
                plan.found(_tie_lost(f"{part}/{name}", f"{part}/{first}", orphan))
            else:
                plan.actions.append(Action(f"{part}/{name}", _tie(one, other)))
                plan.found(_tied_again(f"{part}/{name}", f"{part}/{first}"))


def _same_values(
    part: str,
    matched: Mapping[str, str],
    target: Mapping[str, Entry],
    tensors: Fresh,
    plan: Plan,
) -> None:
    homes: dict[Any, str] = {}
    for name in matched:
        first = homes.setdefault(_memory(target[name].tensor), name)
        mine, theirs = (tensors.tensors[matched[n]] for n in (name, first))
        if matched[name] != matched[first] and not _same_bytes(mine, theirs):
            plan.found(
                Finding(
                    code="tie-conflict",
                    severity="error",
                    where=f"{part}/{name}",
                    what=f"one tensor here, two different ones in the file (with {part}/{first})",
                    why="the target ties them; the saved model did not, and trained them apart",
                    fix="build the target without the tie, or take the first of the two: "
                    'allow=["tie-conflict"]',
                )
            )


def _same_bytes(one: LazyTensor, other: LazyTensor) -> bool:
    """By their digests; of files that keep none, by what they hold."""
    digests = [[p.storage.digest for p in t.pieces] for t in (one, other)]
    if any(digest is not None for group in digests for digest in group):
        return digests[0] == digests[1]
    if not (one.pieces and other.pieces):
        return True  # sparse and quantised ones are compared as a whole, where they are placed
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    chunks = zip(tensor_chunks(one), tensor_chunks(other), strict=True)
    return all(np.array_equal(a, b) for a, b in chunks)


def _tie(one: Entry, other: Entry) -> Callable[[], Callable[[], None]]:
    kept: Any = other.owner._parameters if other.is_parameter else other.owner._buffers

    def put(tensor: Tensor) -> None:
        kept[other.attribute] = tensor

    def do() -> Callable[[], None]:
        put(one.tensor)
        return lambda: put(other.tensor)

    return do


def _memory(tensor: Tensor) -> Any:
    plain = type(tensor) in (Tensor, torch.nn.Parameter, torch.nn.Buffer)
    if not plain or tensor.layout is not torch.strided or tensor.device.type == "meta":
        return id(tensor)
    if not tensor.numel():
        return id(tensor)
    return tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.stride()


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.numel() > 0 and _memory(a) == _memory(b))


def _tie_lost(where: str, other: str, orphan: str | None) -> Finding:
    return Finding(
        code="tie-lost",
        severity="error",
        where=where,
        what=f"it was tied to {other} when saved, and is a tensor of its own here",
        why=f"it cannot be tied again: {orphan} trains it as it is"
        if orphan
        else "it cannot be tied again: the two differ in kind or shape here",
        fix="tie them in the model's code before the optimizer is built, or accept two tensors: "
        'allow=["tie-lost"]',
    )


def _tied_again(where: str, other: str) -> Finding:
    return Finding(
        code="tie-restored",
        severity="warning",
        where=where,
        what=f"it is tied to {other} again, as it was when saved",
        why="the target was built without the tie",
        fix="tie them in the model's code, so that a fresh model has the tie as well",
    )
