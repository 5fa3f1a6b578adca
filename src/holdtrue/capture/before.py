"""What the save before captured, used again for parts that are proved to be as they were then.

With thousands of tensors the describing takes longer than the copying. So every fact that the
records and the layout were made from is read from the live objects again (`capture/seen.py`) and
compared; one that differs, and the whole part is captured anew. What is used again are records and
places, never memory: the bytes are read from the tensors that stand in the model now.
"""

import contextlib
from collections.abc import Mapping
from typing import Any

import msgspec
import torch
from msgspec import Struct
from msgspec.structs import replace
from torch import Tensor, nn

from holdtrue.capture.architecture import CapturedArchitecture, describe_again
from holdtrue.capture.module import entries, unwrap, walk
from holdtrue.capture.optimizer import capture_groups
from holdtrue.capture.seen import (
    Seen,
    UnusualError,
    facts_of,
    live_modules,
    look_at_module,
    look_at_optimizer,
    odd_modules,
    same,
)
from holdtrue.capture.tensors import Source, is_common, tensor_set
from holdtrue.records.manifest import Part, TensorRecord


class KeptPart(Struct, frozen=True, eq=False):
    """One part as it was captured, and all that this depended on. Holds no tensor."""

    subject: type
    seen: Seen
    facts: list[Any]  # of its tensors
    part: Part
    records: dict[str, TensorRecord]
    # Of each source: key, code, shape, bytes, and which of the tensors it reads.
    rows: list[tuple[str, str, tuple[int, ...], int, int]]
    architecture: CapturedArchitecture | None = None
    odd: frozenset[int] = frozenset()  # modules that are described anew
    names: tuple[str, ...] = ()  # of the tensors in `seen`


class Again(Struct, frozen=True, eq=False):
    """A part that is as it was, with what may differ all the same captured anew."""

    part: Part
    records: dict[str, TensorRecord]
    sources: dict[str, Source]
    architecture: CapturedArchitecture | None = None


class CapturedBefore(Struct, frozen=True, eq=False):
    """The parts of the save before that can be compared: modules and optimizers."""

    parts: dict[str, KeptPart]


def unchanged(before: CapturedBefore, parts: Mapping[str, Any]) -> dict[str, Again]:
    """The parts that are as they were at the save before; those not in here are captured anew."""
    found: dict[str, Again] = {}
    places: dict[int, int] = {}
    numbered = any(isinstance(value, torch.optim.Optimizer) for value in parts.values())
    all_modules = True
    for name, value in sorted(parts.items()):  # the order in which parameters get their names
        kept = before.parts.get(name)
        if isinstance(value, nn.Module):
            looked = _look_again(kept, value)
            if kept is None or looked is None:
                all_modules = False
                continue
            described = _described(kept, unwrap(value), looked.tensors)
            if described is None:
                all_modules = False
                continue
            found[name] = Again(kept.part, kept.records, _sources(kept, looked.tensors), described)
            if numbered:
                _number(places, looked.tensors)
        elif isinstance(value, Tensor):
            _number(places, [value])
    for name, value in parts.items() if all_modules else ():
        kept = before.parts.get(name)
        if isinstance(value, torch.optim.Optimizer) and kept is not None:
            looked = _look_again(kept, value, places)
            part = None if looked is None else _with_groups(kept.part, value, name)
            if looked is not None and part is not None:
                found[name] = Again(part, kept.records, _sources(kept, looked.tensors))
    return found


def remember(
    parts: Mapping[str, Any],
    captured: Mapping[str, Part],
    records: Mapping[str, TensorRecord],
    sources: Mapping[str, Mapping[str, Source]],
    architectures: Mapping[str, CapturedArchitecture],
) -> CapturedBefore:
    """What the next save may compare with, of those parts whose facts say everything. `sources`
    are by part."""
    kept: dict[str, KeptPart] = {}
    places: dict[int, int] = {}
    try:
        for name, value in sorted(parts.items()):
            if isinstance(value, nn.Module):
                own = captured[name], records, sources[name]
                kept[name] = _kept_module(value, *own, architectures.get(name), places)
            elif isinstance(value, Tensor):
                _number(places, [value])
    except UnusualError:  # then no names of parameters are proved, for any optimizer
        return CapturedBefore({})
    for name, value in parts.items():
        if isinstance(value, torch.optim.Optimizer) and captured[name].kind == "optimizer":
            with contextlib.suppress(UnusualError):
                if "shared" in captured[name].state or not _with_groups(
                    captured[name], value, name
                ):
                    raise UnusualError("state of no parameter")
                seen = look_at_optimizer(value, places)
                kept[name] = _kept(value, seen, captured[name], records, sources[name])
    return CapturedBefore(kept)


def _kept_module(
    module: nn.Module,
    part: Part,
    records: Mapping[str, TensorRecord],
    sources: Mapping[str, Source],
    architecture: CapturedArchitecture | None,
    places: dict[int, int],
) -> KeptPart:
    if architecture is None or not part.state.keys() <= {"entries", "training"}:
        raise UnusualError("state of its own")
    root = unwrap(module)
    modules, walked = live_modules(root), [m for _, m in walk(root)]
    if list(map(id, modules)) != list(map(id, walked)):
        raise UnusualError("a wrapper inside")
    odd = odd_modules(root)
    seen = look_at_module(root, odd)
    names: dict[int, str] = {}
    for entry in entries(root):
        names.setdefault(id(entry.tensor), entry.name)
    _number(places, seen.tensors)
    return replace(
        _kept(module, seen, part, records, sources),
        architecture=architecture,
        odd=odd,
        names=tuple(names[id(tensor)] for tensor in seen.tensors),
    )


def _kept(
    value: Any,
    seen: Seen,
    part: Part,
    records: Mapping[str, TensorRecord],
    sources: Mapping[str, Source],
) -> KeptPart:
    positions: dict[int, int] = {}
    for position, tensor in enumerate(seen.tensors):
        positions.setdefault(id(tensor), position)
    rows = []
    for key, source in sources.items():
        at = positions.get(id(source.tensor))
        if at is None:
            raise UnusualError("a tensor that is made of others, or held elsewhere")
        rows.append((key, source.code, source.shape, source.nbytes, at))
    if not all(is_common(tensor) and tensor.numel() for tensor in seen.tensors):
        raise UnusualError("a tensor without an address")
    return KeptPart(
        subject=type(value),
        seen=replace(seen, tensors=[]),
        facts=facts_of(seen.tensors),
        part=part,
        records={key: records[key] for key in sources},
        rows=rows,
    )


def _look_again(
    kept: KeptPart | None, value: Any, places: Mapping[int, int] | None = None
) -> Seen | None:
    """What the part is now; None where that is not exactly what it was."""
    subject: Any = type(value)
    if kept is None or subject is not kept.subject:
        return None
    try:
        if places is None:
            now = look_at_module(unwrap(value), kept.odd)
        else:
            now = look_at_optimizer(value, places)
        if same(kept.seen, now) and facts_of(now.tensors) == kept.facts:
            return now
    except (UnusualError, LookupError, TypeError, AttributeError):  # other than it was, then
        pass
    return None


def _described(
    kept: KeptPart, root: nn.Module, tensors: list[Tensor]
) -> CapturedArchitecture | None:
    if kept.architecture is None:
        return None
    held = dict(zip(map(id, tensors), kept.names, strict=True))
    return describe_again(kept.architecture, live_modules(root), held, kept.odd)


def _with_groups(part: Part, optimizer: torch.optim.Optimizer, name: str) -> Part | None:
    """The part with the settings of its groups as they are now; None where one is a tensor."""
    into = tensor_set(name)
    names = [group["params"] for group in part.state["groups"]]
    groups = msgspec.to_builtins(capture_groups(optimizer, names, into))
    if into.records or into.findings:
        return None
    return replace(part, state={**part.state, "groups": groups})


def _sources(kept: KeptPart, tensors: list[Tensor]) -> dict[str, Source]:
    return {
        key: Source(code, shape, nbytes, tensors[at]) for key, code, shape, nbytes, at in kept.rows
    }


def _number(places: dict[int, int], tensors: list[Tensor]) -> None:
    for tensor in tensors:
        places.setdefault(id(tensor), len(places))
