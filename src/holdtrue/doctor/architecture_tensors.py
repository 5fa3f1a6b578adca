"""Tensors of two records: what a restore compares anyway, and what torch does not know of."""

from collections.abc import Iterator
from typing import Any

from holdtrue.doctor.architecture_pair import Pair, resolved
from holdtrue.findings import Finding
from holdtrue.records.architecture import Architecture
from holdtrue.records.values import TAG


def compare_registration(pair: Pair) -> list[Finding]:
    """Buffers that joined or left the state dict, and tensors and modules outside of it."""
    return [*_persistence(pair), *_unregistered(pair)]


def _persistence(pair: Pair) -> Iterator[Finding]:
    for path in pair.paths:
        saved, here = pair.kinds(path)
        for name in [n for n in saved.tensors if n in here.tensors]:
            before, after = saved.tensors[name].persistent, here.tensors[name].persistent
            if before != after:
                yield Finding(
                    code="persistence-changed",
                    severity="warning",
                    where=f"{pair.where(path)}.{name}",
                    what="this buffer "
                    + ("left the state dict" if before else "joined the state dict"),
                    why="holdtrue keeps it either way; state_dict() and other tools will not agree "
                    "with older files",
                    fix=f"register_buffer({name!r}, …, persistent={before})",
                    saved=f"persistent={before}",
                    expected=f"persistent={after}",
                )


def _unregistered(pair: Pair) -> Iterator[Finding]:
    for path in pair.paths:
        saved, here = pair.kinds(path)
        for name, node in here.attributes.items():
            after = resolved(node, pair.here)
            before = resolved(saved.attributes.get(name), pair.saved)
            if any(_is(n, "module") for n in _nodes(after)):
                yield Finding(
                    code="modules-unregistered",
                    severity="warning",
                    where=f"{pair.where(path)}.{name}",
                    what="these modules are not registered: their weights are in no checkpoint",
                    why="torch finds modules that are attributes themselves, not those in a list "
                    "or dict; they are neither saved, nor moved, nor trained",
                    fix=f"self.{name} = torch.nn.ModuleList(…), or ModuleDict",
                )
            arrays = [[n for n in _nodes(side) if _is(n, "array")] for side in (before, after)]
            if arrays[1]:
                yield _plain_tensor(f"{pair.where(path)}.{name}", name, *arrays)


def _plain_tensor(where: str, name: str, saved: list[Any], here: list[Any]) -> Finding:
    trained = any(node.get("requires_grad") for node in here)
    same = [n.get("digest") for n in saved] == [n.get("digest") for n in here]
    return Finding(
        code="tensor-unregistered",
        severity="note" if same and not trained else "warning",
        where=where,
        what="this tensor is a plain attribute: it is in no state dict",
        why="it is neither saved, nor moved with the model"
        + (", though it asks for gradients" if trained else "")
        + ("" if same else "; its values are not those of the saved model"),
        fix=f"self.{name} = nn.Parameter(…)" if trained else f"register_buffer({name!r}, …)",
    )


def _nodes(node: Any) -> Iterator[dict[str, Any]]:
    """The tagged nodes within a resolved one, itself included."""
    pending = [node]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            if TAG in item:
                yield item
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)


def _is(node: dict[str, Any], kind: str) -> bool:
    return node.get(TAG) == kind


def compare_tensors(pair: Pair) -> list[Finding]:
    """For two records without a restore: dtypes, frozen parameters, ties."""
    return [*_facts(pair), *_ties(pair.part, pair.saved, pair.here)]


def _facts(pair: Pair) -> Iterator[Finding]:
    for path in pair.paths:
        saved, here = pair.kinds(path)
        for name in [n for n in saved.tensors if n in here.tensors]:
            one, other = saved.tensors[name], here.tensors[name]
            where = f"{pair.where(path)}.{name}"
            if one.dtype != other.dtype:
                yield Finding(
                    code="dtype-changed",
                    severity="warning",
                    where=where,
                    what="another dtype",
                    saved=one.dtype,
                    expected=other.dtype,
                )
            if one.parameter and other.parameter and one.requires_grad != other.requires_grad:
                yield Finding(
                    code="requires-grad-changed",
                    severity="warning",
                    where=where,
                    what="frozen when saved, trained here"
                    if other.requires_grad
                    else "trained when saved, frozen here",
                )


def _ties(part: str, saved: Architecture, here: Architecture) -> Iterator[Finding]:
    def pairs(record: Architecture) -> set[tuple[str, str]]:
        return {(group[0], name) for group in record.ties for name in group[1:]}

    for lost, code in (
        (pairs(saved) - pairs(here), "tie-lost"),
        (pairs(here) - pairs(saved), "tie-added"),
    ):
        for first, name in sorted(lost):
            yield Finding(
                code=code,
                severity="warning",
                where=f"{part}/{name}",
                what=f"one tensor with {first} "
                + (
                    "when saved, and two here" if code == "tie-lost" else "here, and two when saved"
                ),
                fix="tie them in the model's code" if code == "tie-lost" else "",
            )
