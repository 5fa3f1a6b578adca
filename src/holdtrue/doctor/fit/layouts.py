"""Tensors that hold the same numbers another way: fused, split, transposed, flattened.

Each rewrite is pieces of the file's own storages, laid out anew: nothing is read to plan it. None
is done unless the caller allows it by its code.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Literal, TypeVar

from msgspec import Struct

from holdtrue.doctor.fit.boxes import can_be_laid_out, cut_out, flat_part, joined, transposed
from holdtrue.doctor.fit.roles import FUSED, gate_and_up, triples
from holdtrue.doctor.fit.spellings import likeness
from holdtrue.doctor.fit.wrappers import Shape
from holdtrue.formats.view import LazyTensor
from holdtrue.records.dtypes import product

T = TypeVar("T")
Code = Literal["qkv-fused", "qkv-split", "gate-up-fused", "gate-up-split", "weights-transposed",
               "flat-parameters"]  # fmt: skip
LAYOUTS = frozenset({"qkv-fused", "qkv-split", "gate-up-fused", "gate-up-split",
                     "weights-transposed", "flat-parameters"})  # fmt: skip

_INTERLEAVED = "query_key_value"  # head by head, as GPT-NeoX, BLOOM and Falcon have it
_FLAT = re.compile(r"(^|\.)_?flat_param(_\d+)?$")


class Rewrite(Struct, frozen=True, kw_only=True):
    """Names of the file that become tensors of the target, laid out as they are there."""

    code: Code
    sources: tuple[str, ...]
    made: dict[str, LazyTensor]
    sure: bool = True  # False: the shapes fit another reading as well


def find_rewrites(
    file: Mapping[str, LazyTensor],
    shapes: Mapping[str, Shape | None],
    *,
    conv1d: frozenset[str] = frozenset(),
    matrices: frozenset[str] = frozenset(),
    parameters: tuple[str, ...] = (),
) -> list[Rewrite]:
    """What would fill names of the target that no tensor of the file fits as it stands.

    `conv1d` names weights that are stored as [in, out]; `matrices` all that could be stored either
    way; `parameters` are those of the target in its order, for what was flattened.
    """
    usable = {n: t for n, t in file.items() if can_be_laid_out(t)}
    open_names = {
        n: s for n, s in shapes.items() if s is not None and (n not in file or file[n].shape != s)
    }
    free = {n: t for n, t in usable.items() if n not in shapes or n in open_names}
    found: list[Rewrite] = []
    for finder in (_transposed, _fused, _split, _gate_and_up_joined, _gate_and_up_cut):
        for rewrite in finder(free, open_names, conv1d):
            if rewrite.made.keys() <= open_names.keys() and all(s in free for s in rewrite.sources):
                found.append(rewrite)
                for name in rewrite.made:
                    del open_names[name]
                for name in rewrite.sources:
                    del free[name]
    # A square matrix shows nothing by its shape; what stands around it does.
    found += _square(usable, shapes, found, matrices)
    found += _flat(free, open_names, parameters)
    return found


def _transposed(
    free: Mapping[str, LazyTensor], wanted: Mapping[str, Shape], conv1d: frozenset[str]
) -> Iterator[Rewrite]:
    for name, shape in list(wanted.items()):
        lazy = free.get(name)
        if lazy is not None and len(shape) == 2 and lazy.shape == shape[::-1] != shape:
            made = {name: transposed(lazy)}
            yield Rewrite(code="weights-transposed", sources=(name,), made=made)


def _square(
    file: Mapping[str, LazyTensor],
    shapes: Mapping[str, Shape | None],
    found: list[Rewrite],
    matrices: frozenset[str],
) -> list[Rewrite]:
    """Square matrices whose neighbours were all turned, the nearest that show it."""
    turned = {r.sources[0] for r in found if r.code == "weights-transposed"}
    if not turned:
        return []
    both = [n for n in matrices if n in file and len(file[n].shape) == 2]
    decided = [n for n in both if not _is_square(file[n].shape)]
    more = []
    for name in sorted(both):
        if not _is_square(file[name].shape) or file[name].shape != shapes[name]:
            continue
        near = _neighbours(name, decided)
        if near and near <= turned:
            made = {name: transposed(file[name])}
            more.append(Rewrite(code="weights-transposed", sources=(name,), made=made, sure=False))
    return more


def _neighbours(name: str, others: list[str]) -> set[str]:
    """Those that stand with it in the smallest part of the model that has some."""
    head = name
    while head:
        head = head.rpartition(".")[0]
        near = {n for n in others if not head or n.startswith(f"{head}.")}
        if near:
            return near
    return set()


def _is_square(shape: Shape) -> bool:
    return len(shape) == 2 and shape[0] == shape[1]


def _fused(
    free: Mapping[str, LazyTensor], wanted: Mapping[str, Shape], conv1d: frozenset[str]
) -> Iterator[Rewrite]:
    """Three of the file into one of the target."""
    groups = triples(free)
    for name, shape in list(wanted.items()):
        if not FUSED.search(name) or _INTERLEAVED in name or name in free:
            continue
        kind = _kind(name)
        turned = name in conv1d and len(shape) == 2
        axis = 1 if turned else 0
        fitting = []
        for names in groups.values():
            parts = [free[n] for n in names if n in free]
            if len(parts) < 3 or _kind(names[0]) != kind:
                continue
            boxes = [transposed(p) for p in parts] if turned else parts
            if _adds_up([b.shape for b in boxes], shape, axis):
                fitting.append((names, boxes))
        chosen = _nearest(name, fitting, lambda item: item[0][0])
        if chosen is not None:
            names, boxes = chosen
            made = {name: joined(boxes, axis)}
            yield Rewrite(code="qkv-split", sources=tuple(names), made=made)


def _split(
    free: Mapping[str, LazyTensor], wanted: Mapping[str, Shape], conv1d: frozenset[str]
) -> Iterator[Rewrite]:
    """One of the file into three of the target."""
    groups = triples(wanted)
    for name, lazy in list(free.items()):
        if not FUSED.search(name) or _INTERLEAVED in name:
            continue
        kind = _kind(name)
        fitting = []
        for names in groups.values():
            if any(n not in wanted for n in names) or _kind(names[0]) != kind:
                continue
            sizes = [wanted[n] for n in names]
            if _adds_up(sizes, lazy.shape, 0):
                fitting.append((names, lazy))
            elif len(lazy.shape) == 2 and _adds_up(sizes, lazy.shape[::-1], 0):
                fitting.append((names, transposed(lazy)))
        chosen = _nearest(name, fitting, lambda item: item[0][0])
        if chosen is None:
            continue
        names, whole = chosen
        made, at = {}, 0
        for part in names:
            shape = wanted[part]
            made[part] = cut_out(whole, (at, *(0 for _ in shape[1:])), shape)
            at += shape[0]
        sure = not (_is_square(lazy.shape[::-1]) and len(lazy.shape) == 2)
        yield Rewrite(code="qkv-fused", sources=(name,), made=made, sure=sure)


def _gate_and_up_joined(
    free: Mapping[str, LazyTensor], wanted: Mapping[str, Shape], conv1d: frozenset[str]
) -> Iterator[Rewrite]:
    """Gate and up projection of the file into the one tensor of the target."""
    for name, shape in list(wanted.items()):
        parts = [free[n] for n in gate_and_up(name, free)]
        if name not in free and parts and _is_doubled([p.shape for p in parts], shape):
            made = {name: joined(parts, 0)}
            yield Rewrite(code="gate-up-split", sources=gate_and_up(name, free), made=made)


def _gate_and_up_cut(
    free: Mapping[str, LazyTensor], wanted: Mapping[str, Shape], conv1d: frozenset[str]
) -> Iterator[Rewrite]:
    """The one tensor of the file into gate and up projection of the target."""
    for name, lazy in list(free.items()):
        names = gate_and_up(name, wanted)
        shapes = [wanted[n] for n in names]
        if name not in wanted and names and _is_doubled(shapes, lazy.shape):
            starts = (0, shapes[0][0])
            made = {
                part: cut_out(lazy, (at, *(0 for _ in shape[1:])), shape)
                for part, at, shape in zip(names, starts, shapes, strict=True)
            }
            yield Rewrite(code="gate-up-fused", sources=(name,), made=made)


def _is_doubled(parts: list[Shape], whole: Shape) -> bool:
    return (
        bool(whole)
        and parts[0] == parts[1]
        and len(parts[0]) == len(whole)
        and (2 * parts[0][0], *parts[0][1:]) == whole
    )


def _flat(
    free: Mapping[str, LazyTensor], wanted: Mapping[str, Shape], parameters: tuple[str, ...]
) -> list[Rewrite]:
    """FSDP's flat parameters: those of a module one after the other, padded at the end."""
    found = []
    left = dict(wanted)
    for name, lazy in free.items():
        if not _FLAT.search(name) or len(lazy.shape) != 1 or len(lazy.pieces) != 1:
            continue
        owner = _owner(name)
        head = f"{owner}." if owner else ""
        # A module that is wrapped itself has a flat parameter of its own.
        others = [_owner(n) for n in free if _FLAT.search(n) and n != name]
        inner = [o for o in others if o.startswith(head) and o != owner]
        names = [
            n for n in parameters
            if n.startswith(head) and n in left and not any(n.startswith(f"{o}.") for o in inner)
        ]  # fmt: skip
        total = sum(product(left[n]) for n in names)
        if not names or not total <= lazy.shape[0] < total + max(64, 16 * len(names)):
            continue
        made, at = {}, 0
        for n in names:
            made[n] = flat_part(lazy, at, left[n])
            at += product(left[n])
        exact = total == lazy.shape[0]
        found.append(Rewrite(code="flat-parameters", sources=(name,), made=made, sure=exact))
        for n in names:
            del left[n]
    return found


def _owner(name: str) -> str:
    return _FLAT.sub("", name).replace("_fsdp_wrapped_module", "").replace("..", ".").strip(".")


def _kind(name: str) -> str:
    return "bias" if name.endswith("bias") else "weight"


def _adds_up(parts: list[Shape], whole: Shape, axis: int) -> bool:
    """Whether the parts one after the other are the whole; key and value are of one size."""
    if any(len(p) != len(whole) for p in parts) or not whole:
        return False
    rest = all(p[:axis] + p[axis + 1 :] == whole[:axis] + whole[axis + 1 :] for p in parts)
    return rest and sum(p[axis] for p in parts) == whole[axis] and parts[1] == parts[2]


def _nearest(name: str, fitting: list[T], named: Callable[[T], str]) -> T | None:
    """The one whose numbers are those of the name and that is most like it; None where it is open.

    Layers are counted: the third layer's is not the fifth's.
    """
    numbers = _numbers(name)
    same = [item for item in fitting if _numbers(named(item)) == numbers]
    ranked = sorted(same, key=lambda item: -likeness(named(item), name))
    if not ranked:
        return None
    if len(ranked) > 1:
        first, second = (likeness(named(item), name) for item in ranked[:2])
        return ranked[0] if first > second else None
    return ranked[0]


def _numbers(name: str) -> list[str]:
    return re.findall(r"\d+", name)
