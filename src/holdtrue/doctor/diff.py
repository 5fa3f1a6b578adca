"""What differs between two checkpoints of any two formats, tensor by tensor and value by value."""

import os
from collections.abc import Callable, Iterable
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from holdtrue.doctor.architecture import compare_manifests
from holdtrue.doctor.elements import element_type
from holdtrue.doctor.name_mapping import (
    PrefixMapping,
    Renamed,
    find_mapping,
    find_renamed,
    map_names,
    same_kind,
)
from holdtrue.doctor.side_by_side import known_digest
from holdtrue.doctor.sides import Side, flatten, open_side
from holdtrue.doctor.tensor_difference import Numbers, content_digest, measure, same_bytes
from holdtrue.doctor.tree_leaves import Leaves
from holdtrue.doctor.value_difference import ValueChange, compare_values, same_value, shown
from holdtrue.findings import Finding
from holdtrue.formats.tensor_bytes import element_bytes
from holdtrue.formats.view import LazyTensor
from holdtrue.records.dtypes import product

Progress = Callable[[int, int], None]  # bytes read so far, bytes to read


class Described(Struct, frozen=True, kw_only=True):
    """A tensor without its content."""

    dtype: str
    shape: tuple[int, ...]
    layout: str = "strided"


class TensorChange(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A tensor that both have and that differs. `name` is A's, `other` B's.

    `what` names what differs: values, dtype, shape, layout, quantizer. `numbers` is there where
    the shapes are equal.
    """

    name: str
    other: str
    what: tuple[str, ...]
    a: Described
    b: Described
    numbers: Numbers | None = None


class OneSided(Struct, frozen=True, kw_only=True):
    """A tensor that only one side has."""

    name: str
    tensor: Described


class Difference(Struct, frozen=True, kw_only=True):
    """All that differs, and how much was found equal."""

    a: str
    b: str
    formats: tuple[str, str]
    changed: tuple[TensorChange, ...] = ()
    added: tuple[OneSided, ...] = ()
    removed: tuple[OneSided, ...] = ()
    renamed: tuple[Renamed, ...] = ()
    values: tuple[ValueChange, ...] = ()
    mapping: PrefixMapping | None = None
    notes: tuple[str, ...] = ()  # what differs without being state: strides, devices, origin
    equal_tensors: int = 0
    equal_by_digest: int = 0  # of those: told by the digests that both keep, not read
    equal_values: int = 0

    @property
    def equal(self) -> bool:
        """True when both hold the same state under the same names."""
        found = self.changed or self.added or self.removed or self.renamed or self.values
        return not found and not (self.mapping is not None and self.mapping.renames)

    def __str__(self) -> str:
        from holdtrue.doctor.difference_text import render

        return render(self)


class _Meter:
    """Progress by tensors whose size is known beforehand, however often their bytes are read."""

    def __init__(self, total: int, tell: Progress | None) -> None:
        self.total, self.tell, self.base, self.own, self.size = total, tell, 0, 0, 0

    def start(self, size: int) -> None:
        self.base, self.own, self.size = self.base + self.size, 0, size
        self.read(0)

    def read(self, count: int) -> None:
        self.own += count
        if self.tell is not None:
            self.tell(self.base + min(self.own, self.size), self.total)


def diff(
    a: str | os.PathLike[str], b: str | os.PathLike[str], *, progress: Progress | None = None
) -> Difference:
    """Compare two checkpoints of any format. Nothing of either is run; torch is not needed.

    Raises OpenError or DamageError where one of them cannot be read.
    """
    opened = open_side(a), open_side(b)
    as_torch = any(side.manifest is None for side in opened)
    left, right = (flatten(side, as_torch=as_torch) for side in opened)
    found = compare(left, right, progress)
    models = compare_manifests(opened[0].manifest, opened[1].manifest)
    return replace(found, notes=(*found.notes, *map(_architecture_note, models)))


def _architecture_note(finding: Finding) -> str:
    values = f": {finding.saved} → {finding.expected}" if finding.saved is not None else ""
    return f"{finding.code} at {finding.where}: {finding.what}{values}"


def compare(a: Side, b: Side, progress: Progress | None = None) -> Difference:
    """The difference of two checkpoints that have been laid flat."""
    mapping = find_mapping(a.leaves.tensors, b.leaves.tensors)
    called = map_names(a.leaves.tensors, b.leaves.tensors, mapping)
    tensors = {called[name]: (name, tensor) for name, tensor in a.leaves.tensors.items()}
    pairs = [(old, name, tensor, b.leaves.tensors[name])
             for name, (old, tensor) in tensors.items() if name in b.leaves.tensors]  # fmt: skip
    notes, lost, gained = _left_out(
        a,
        b,
        {old: tensor for name, (old, tensor) in tensors.items() if name not in b.leaves.tensors},
        {name: tensor for name, tensor in b.leaves.tensors.items() if name not in tensors},
    )
    alike = same_kind(lost, gained, _kind)
    compared = [tensor for _, _, x, y in pairs for tensor in (x, y)]
    searched = [tensor for side in alike for tensor in side.values()]
    meter = _Meter(sum(map(_nbytes, (*compared, *searched))), progress)
    changed, by_digest = [], 0
    for old, name, x, y in pairs:
        meter.start(_nbytes(x) + _nbytes(y))
        by_digest += known_digest(x) is not None and known_digest(x) == known_digest(y)
        change = _compare_tensor(old, name, x, y, meter.read)
        if change is not None:
            changed.append(change)

    def content(tensor: LazyTensor) -> tuple[object, ...]:
        meter.start(_nbytes(tensor))
        return (*_kind(tensor), content_digest(tensor, meter.read))

    renamed = find_renamed(*alike, content)
    meter.start(0)
    gone = {name for row in renamed for name in row.a}
    come = {name for row in renamed for name in row.b}
    values, equal_values, more = _values(a.leaves, b.leaves, mapping, a.name, b.name)
    return Difference(
        a=a.name,
        b=b.name,
        formats=(a.format, b.format),
        changed=tuple(changed),
        added=tuple(_one_sided(gained, come)),
        removed=tuple(_one_sided(lost, gone)),
        renamed=tuple(renamed),
        values=tuple(values),
        mapping=mapping,
        notes=(*notes, *more, *_tensor_notes(pairs), *_about(a, b)),
        equal_tensors=len(pairs) - len(changed),
        equal_by_digest=by_digest,
        equal_values=equal_values,
    )


def _compare_tensor(
    old: str, name: str, a: LazyTensor, b: LazyTensor, read: Callable[[int], None]
) -> TensorChange | None:
    what = []
    if element_type(a) != element_type(b):
        what.append("dtype")
    if a.shape != b.shape:
        what.append("shape")
    if a.layout != b.layout:
        what.append("layout")
    if a.quantizer != b.quantizer:
        what.append("quantizer")
    numbers = None
    comparable = a.shape == b.shape and bool(a.pieces) and bool(b.pieces)
    if comparable and ("dtype" in what or not same_bytes(a, b, read)):
        numbers = measure(a, b, read)
        if numbers.differing:
            what.insert(0, "values")
    if bool(a.pieces) != bool(b.pieces) and product(a.shape) and "layout" not in what:
        what.append("values")
    if not what:
        return None
    return TensorChange(
        name=old, other=name, what=tuple(what), a=_describe(a), b=_describe(b), numbers=numbers
    )


def _left_out(
    a: Side, b: Side, lost: dict[str, LazyTensor], gained: dict[str, LazyTensor]
) -> tuple[list[str], dict[str, LazyTensor], dict[str, LazyTensor]]:
    """Buffers that a state dict leaves out are no difference from a file that holds one."""
    notes = []
    kept = []
    for side, table in ((a, lost), (b, gained)):
        hidden = [name for name, tensor in table.items() if not tensor.persistent]
        if hidden:
            notes.append(
                f"only {side.name} holds {_several(hidden, 'non-persistent buffer')}: state dicts "
                "leave them out"
            )
        kept.append({name: tensor for name, tensor in table.items() if tensor.persistent})
    return notes, kept[0], kept[1]


def _values(
    a: Leaves, b: Leaves, mapping: PrefixMapping | None, name_a: str, name_b: str
) -> tuple[list[ValueChange], int, list[str]]:
    left = _renamed(a.values, b.values, mapping)
    names = map_names(a.tensors, b.tensors, mapping).values()
    rows = compare_values(left, b.values, [*a.tensors, *names, *b.tensors])
    equal = _equal_count(left, b.values)
    notes = []
    for label in dict.fromkeys([*a.extras, *b.extras]):
        old, new = a.extras.get(label), b.extras.get(label)
        if old is None or new is None:
            notes.append(f"only {name_b if old is None else name_a} holds {label}")
            continue
        old = _renamed(old, new, mapping)
        rows += compare_values(old, new, ())
        equal += _equal_count(old, new)
    return rows, equal, notes


def _renamed(
    values: dict[str, Any], others: dict[str, Any], mapping: PrefixMapping | None
) -> dict[str, Any]:
    called = map_names(values, others, mapping)
    return {called[path]: value for path, value in values.items()}


def _equal_count(a: dict[str, Any], b: dict[str, Any]) -> int:
    return sum(path in b and same_value(value, b[path]) for path, value in a.items())


def _tensor_notes(pairs: list[tuple[str, str, LazyTensor, LazyTensor]]) -> list[str]:
    notes = []
    for field in ("stride", "device", "requires_grad"):
        found = [
            f"{old} ({getattr(x, field)} → {getattr(y, field)})"
            for old, _, x, y in pairs
            if getattr(x, field) != getattr(y, field) and x.shape == y.shape and x.pieces
        ]
        if found:
            notes.append(f"{field} differs: {_several(found, 'tensor')}")
    return notes


def _about(a: Side, b: Side) -> list[str]:
    if not a.about or not b.about:
        return []
    return [
        f"{name} {shown(a.about.get(name))} → {shown(b.about.get(name))}"
        for name in dict.fromkeys([*a.about, *b.about])
        if not same_value(a.about.get(name), b.about.get(name))
    ]


def _several(names: list[str], noun: str) -> str:
    if len(names) == 1:
        return f"one {noun}, {names[0]}"
    return f"{len(names):,} {noun}s, first {names[0]}"


def _one_sided(table: dict[str, LazyTensor], told: Iterable[str]) -> list[OneSided]:
    told = set(told)
    return [
        OneSided(name=name, tensor=_describe(tensor))
        for name, tensor in table.items()
        if name not in told
    ]


def _kind(tensor: LazyTensor) -> tuple[object, ...]:
    # One without bytes of its own, as a sparse one, equals no other by content: its parts do.
    own = None if tensor.pieces or not product(tensor.shape) else id(tensor)
    return element_type(tensor), tensor.shape, tensor.layout, own


def _describe(tensor: LazyTensor) -> Described:
    return Described(dtype=tensor.dtype, shape=tensor.shape, layout=tensor.layout)


def _nbytes(tensor: LazyTensor) -> int:
    return product(tensor.shape) * element_bytes(tensor) if tensor.pieces else 0
