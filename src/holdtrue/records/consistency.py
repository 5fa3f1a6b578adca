"""Whether a manifest describes something that can be: checked once, before any of it is used.

Each check returns what is wrong as the end of a sentence, or None.
"""

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from holdtrue.limits import limits
from holdtrue.records.architecture import find_record_problem
from holdtrue.records.dtypes import DTYPES, OVERLAP_FACTOR, extent, product
from holdtrue.records.manifest import Chunk, FileRecord, Manifest, Part, TensorRecord
from holdtrue.records.parts import ModuleState, OptimizerState
from holdtrue.records.values import TAG

_FILE_NAME = re.compile(r"(source/)?[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}\Z")
_DIGEST = re.compile(r"[0-9a-f]{32}\Z")
_DIGESTS = re.compile(r"[0-9a-f]*\Z")  # of many, end to end
_QUANTIZED = frozenset({"quint8", "qint8", "qint32", "quint4x2", "quint2x4"})
# layout → the components that it is made of; None for any
_COMPONENTS: dict[str, frozenset[str] | None] = {
    "strided": frozenset(),
    "uninitialized": frozenset(),
    "sparse_coo": frozenset({"indices", "values"}),
    "sparse_csr": frozenset({"crow_indices", "col_indices", "values"}),
    "sparse_csc": frozenset({"ccol_indices", "row_indices", "values"}),
    "sparse_bsr": frozenset({"crow_indices", "col_indices", "values"}),
    "sparse_bsc": frozenset({"ccol_indices", "row_indices", "values"}),
    "quantized": None,
    "subclass": None,
}
# A subclass may hold subclasses; a few levels are seen in practice, hundreds are an attack.
_COMPONENT_DEPTH, _COMPONENT_COUNT = 8, 10_000
_PLAIN = frozenset(DTYPES) - _QUANTIZED
_TRAINABLE = frozenset(n for n, d in DTYPES.items() if d.floating or n.startswith("complex"))


def find_problem(manifest: Manifest) -> str | None:
    """The first thing that cannot be; None for a manifest that holds together."""
    if len(manifest.tensors) > limits().entries:
        return f"it lists {len(manifest.tensors):,} tensors"
    for name, file in manifest.files.items():
        problem = _file_problem(name, file)
        if problem:
            return f"it lists the file {name[:80]!r}, which {problem}"
    others = _not_plain(manifest)
    for key, tensor in others.items():
        problem = _tensor_problem(tensor, manifest)
        if problem:
            return f"tensor {key[:200]!r} {problem}"
    problem = _nesting_problem(others, manifest.tensors) or _overlap_problem(others)
    if problem:
        return problem
    for name, part in manifest.parts.items():
        problem = _part_problem(name, part, manifest)
        if problem:
            return f"part {name[:100]!r} {problem}"
    return None


def is_file_name(name: str) -> bool:
    """True for a name that is one plain path component on every system, or one under source/."""
    return bool(_FILE_NAME.match(name)) and not name.endswith(".")


def _file_problem(name: str, file: FileRecord) -> str | None:
    if not is_file_name(name):
        return "is not a plain name"
    if not 0 <= file.header <= min(file.nbytes, limits().header_bytes) or file.nbytes >= 1 << 63:
        return f"claims {file.header:,} of {file.nbytes:,} bytes before its data"
    return None if _DIGEST.match(file.header_digest) else "has no digest of its header"


def _not_plain(manifest: Manifest) -> dict[str, TensorRecord]:
    """All tensors but those that pass every check below at a glance: whole, contiguous, and alone.

    Nearly all are, and tens of thousands that go through one function a check take as long as
    reading them. Whatever is odd about one is told by the checks themselves.
    """
    others: dict[str, TensorRecord] = {}
    digests: list[str] = []
    shapes: set[tuple[int, ...]] = set()  # those that have been checked
    most, files = limits().dimensions, manifest.files
    for key, tensor in manifest.tensors.items():
        chunks, shape = tensor.chunks, tensor.shape
        if (
            len(chunks) == 1
            and tensor.layout == "strided"
            and tensor.dtype in _PLAIN
            and tensor.stride is None
            and tensor.overlap is None
            and not tensor.components
            and (not tensor.requires_grad or tensor.dtype in _TRAINABLE)
        ):
            chunk = chunks[0]
            known = shape in shapes or (
                len(shape) <= most and all(0 <= size < 1 << 63 for size in shape)
            )
            if known and chunk.start is None and chunk.shape is None and chunk.file in files:
                shapes.add(shape)
                digests.append(chunk.digest)
                continue
        others[key] = tensor
    right = all(len(digest) == 32 for digest in digests) and _DIGESTS.match("".join(digests))
    return others if right else dict(manifest.tensors)


def _tensor_problem(tensor: TensorRecord, manifest: Manifest) -> str | None:
    shape = tensor.shape
    if tensor.layout not in _COMPONENTS:
        return f"has the unknown layout {tensor.layout[:40]!r}"
    if tensor.dtype not in DTYPES:
        return f"has the unknown dtype {tensor.dtype[:40]!r}"
    if (tensor.dtype in _QUANTIZED) != (tensor.layout == "quantized"):
        return f"is {tensor.layout}, which {tensor.dtype} cannot be"
    number = DTYPES[tensor.dtype]
    if tensor.requires_grad and not number.floating and not number.name.startswith("complex"):
        return f"is {tensor.dtype}, which has no gradient, and requires one"
    if len(shape) > limits().dimensions:
        return f"has {len(shape)} dimensions"
    if any(not 0 <= size < 1 << 63 for size in shape):
        return "has a size that is not one"
    return (
        _stride_problem(tensor)
        or _components_problem(tensor, manifest)
        or _chunks_problem(tensor, manifest)
    )


def _stride_problem(tensor: TensorRecord) -> str | None:
    if tensor.stride is None:
        return None
    if len(tensor.stride) != len(tensor.shape) or min(tensor.stride, default=0) < 0:
        return "has strides that do not fit its shape"
    if tensor.overlap is None and extent(tensor.shape, tensor.stride) > product(tensor.shape):
        return "has strides that reach past its own elements"
    return None


def _components_problem(tensor: TensorRecord, manifest: Manifest) -> str | None:
    wanted = _COMPONENTS[tensor.layout]
    quantizer = tensor.quantizer
    if tensor.layout == "quantized":
        if quantizer is None:
            return "is quantised, and does not say how"
        simple = quantizer.scale is not None and quantizer.zero_point is not None
        wanted = frozenset() if simple else frozenset({"scales", "zero_points"})
        if not simple and not 0 <= (quantizer.axis or 0) < len(tensor.shape):
            return f"is quantised along dimension {quantizer.axis}, which it does not have"
    if wanted is not None and tensor.components.keys() != wanted:
        return f"is {tensor.layout}, and does not have exactly {sorted(wanted)}"
    for key in tensor.components.values():
        if key not in manifest.tensors:
            return f"has the component {key[:80]!r}, which is not listed"
    return None


def _chunks_problem(tensor: TensorRecord, manifest: Manifest) -> str | None:
    if tensor.layout not in ("strided", "quantized"):
        return "has bytes and components" if tensor.chunks else None
    boxes: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    for chunk in tensor.chunks:
        if chunk.file not in manifest.files:
            return f"is stored in {chunk.file[:80]!r}, which is not listed"
        if not _DIGEST.match(chunk.digest):
            return "has a piece without a digest"
        box = _box(chunk, tensor.shape)
        if box is None:
            return "has a piece that lies outside"
        boxes.append(box)
    if sum(product(shape) for _, shape in boxes) != product(tensor.shape) or _overlapping(boxes):
        return "is not covered by its pieces exactly once"
    return None


def _box(chunk: Chunk, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    start = (0,) * len(shape) if chunk.start is None else chunk.start
    size = shape if chunk.shape is None else chunk.shape
    if len(start) != len(shape) or len(size) != len(shape):
        return None
    inside = all(
        s >= 0 and n >= 0 and s + n <= m for s, n, m in zip(start, size, shape, strict=True)
    )
    return (start, size) if inside else None


def _overlapping(boxes: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> bool:
    """True when two of the boxes share an element. Sorted, so that few pairs are compared."""
    solid = sorted(box for box in boxes if product(box[1]))
    for i, (start, size) in enumerate(solid):
        for other, extent_ in solid[i + 1 :]:
            if start and other[0] >= start[0] + size[0]:
                break
            if all(
                a < b + m and b < a + n
                for a, n, b, m in zip(start, size, other, extent_, strict=True)
            ):
                return True
    return False


def _nesting_problem(
    among: Mapping[str, TensorRecord], tensors: Mapping[str, TensorRecord]
) -> str | None:
    """Components end after a few levels, and no small file stands for millions of them."""
    counts: dict[str, int] = {}

    def count(key: str, depth: int) -> int:
        if depth > _COMPONENT_DEPTH:
            return _COMPONENT_COUNT + 1
        if key not in counts:
            inner = sum(count(k, depth + 1) for k in tensors[key].components.values())
            counts[key] = min(1 + inner, _COMPONENT_COUNT + 1)
        return counts[key]

    for key in among:
        if tensors[key].components and count(key, 0) > _COMPONENT_COUNT:
            return f"tensor {key[:200]!r} is made of itself, or of too many others"
    return None


def _overlap_problem(tensors: Mapping[str, TensorRecord]) -> str | None:
    """Tensors laid over one memory do not ask for much more of it than they fill."""
    groups: dict[tuple[str, int], list[TensorRecord]] = {}
    for key, tensor in tensors.items():
        if tensor.overlap is not None:
            if tensor.layout != "strided" or tensor.stride is None or tensor.overlap[1] < 0:
                return f"tensor {key[:200]!r} shares memory in a way that cannot be"
            groups.setdefault((key.partition("/")[0], tensor.overlap[0]), []).append(tensor)
    for (part, _), peers in groups.items():
        span = max(
            t.overlap[1] + extent(t.shape, t.stride) for t in peers if t.overlap and t.stride
        )
        kept = sum(product(t.shape) for t in peers)
        if span > OVERLAP_FACTOR * kept or len({t.dtype for t in peers}) > 1:
            return f"tensors of {part[:100]!r} share {span:,} elements of which they fill {kept:,}"
    return None


def _part_problem(name: str, part: Part, manifest: Manifest) -> str | None:
    problem = find_record_problem(part.architecture) if part.architecture else None
    if problem:
        return f"has an architecture record where {problem}"
    shapes: dict[str, Any] = {"module": ModuleState, "optimizer": OptimizerState}
    if part.kind == "rng" and not isinstance(part.state, dict):
        return "has no random states"
    if part.kind not in shapes:
        return None
    try:
        state = msgspec.convert(part.state, shapes[part.kind])
    except msgspec.ValidationError as error:
        return f"is not the state of a module or optimizer: {error}"
    if isinstance(state, ModuleState):
        prefix = f"{name}/"
        for key in (*state.entries.values(), *(state.gradients or {}).values()):
            if key not in manifest.tensors or not key.startswith(prefix):
                return f"holds {key[:200]!r}, which is not a tensor of its own"
        return None
    for group in state.groups:
        if not isinstance(group.settings, dict) or group.settings.get(TAG, "dict") != "dict":
            return "has a group of parameters whose settings have no names"
    listed = [p for group in state.groups for p in group.params]
    return "lists a parameter twice" if len(set(listed)) != len(listed) else None
