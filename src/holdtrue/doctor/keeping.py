"""Lazy tensors to the tensor records of a holdtrue checkpoint, as `capture` makes of live ones."""

from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace

from holdtrue.engine.stored import StoredSource, stored_source
from holdtrue.formats.view import LazyTensor
from holdtrue.records.dtypes import DTYPES, contiguous_stride, extent, product
from holdtrue.records.manifest import TensorRecord
from holdtrue.records.overlaps import Span, mark_overlaps
from holdtrue.records.strides import dense_stride

_QUANTIZED = frozenset({"quint8", "qint8", "qint32", "quint4x2", "quint2x4"})
_LAYOUTS = frozenset({
    "strided", "sparse_coo", "sparse_csr", "sparse_csc", "sparse_bsr", "sparse_bsc", "quantized",
    "subclass", "uninitialized",
})  # fmt: skip


class Kept(Struct, frozen=True, eq=False):
    """The tensors of a checkpoint that is to be written, gathered while its parts are encoded."""

    records: dict[str, TensorRecord] = field(default_factory=dict)
    sources: dict[str, StoredSource] = field(default_factory=dict)
    known: dict[Any, str] = field(default_factory=dict)  # identity of the memory → key
    spans: dict[Any, list[Span]] = field(default_factory=dict)  # by part, storage and dtype
    strides: dict[str, tuple[int, ...]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)  # path → why it cannot be carried
    held: list[Any] = field(default_factory=list)  # keeps what was seen alive, for its id


def keep_tensor(
    kept: Kept, part: str, name: str, tensor: LazyTensor, *, own: bool = False
) -> str | None:
    """The key of a tensor's record; the same memory seen before gives the same key.

    A module's entries have to be its `own`: then only the memory of its part counts as seen.

    One that the format cannot hold is entered as left out, and gives None.
    """
    memory = memory_of(tensor)
    seen = kept.known.get((part, memory) if own else memory)
    if seen is not None:
        return seen
    why = unkept(tensor)
    if why is not None:
        kept.left_out.setdefault(f"{part}/{name}", why)
        return None
    key = _free_key(kept, part, name)
    kept.known.setdefault(memory, key)
    kept.known[part, memory] = key
    kept.held.append(tensor)
    kept.records[key] = TensorRecord(dtype="uint8", shape=())  # takes the key before components do
    components = {
        role: keep_tensor(kept, part, f"{key.partition('/')[2]}#{role}", inner)
        for role, inner in _components(tensor).items()
    }
    if tensor.pieces:
        kept.sources[key] = stored_source(tensor)
    kept.records[key] = _record(tensor, {r: k for r, k in components.items() if k is not None})
    _note_span(kept, part, key, tensor)
    return key


def finish(kept: Kept) -> None:
    """Mark the tensors that lie over one another, once all of them are known."""
    for part in {part for part, *_ in kept.spans}:
        spans = [own for (name, *_), own in kept.spans.items() if name == part]
        mark_overlaps(kept.records, spans, kept.strides)


def memory_of(tensor: LazyTensor) -> Any:
    """Equal for tensors that are views of the very same elements."""
    if len(tensor.pieces) != 1 or tensor.components or not product(tensor.shape):
        return id(tensor)
    piece = tensor.pieces[0]
    return (
        piece.storage.file,
        piece.storage.key,
        tensor.dtype,
        tensor.numpy,
        piece.offset,
        tensor.shape,
        tensor.stride,
        tensor.lazy_bits,
        tensor.class_name,
    )


def unkept(tensor: LazyTensor) -> str | None:
    """Why the format cannot hold a tensor; None where it can."""
    if tensor.layout not in _LAYOUTS:
        return f"a {tensor.layout} tensor has no place in the format"
    if tensor.numpy is None and tensor.dtype not in DTYPES:
        return f"its dtype {tensor.dtype[:40]} is not known"
    if (tensor.dtype in _QUANTIZED) != (tensor.layout == "quantized"):
        return f"a {tensor.layout} tensor of {tensor.dtype} is neither numbers nor quantised"
    inner = (unkept(part) for part in _components(tensor).values())
    return next((why for why in inner if why is not None), None)


def _components(tensor: LazyTensor) -> dict[str, LazyTensor]:
    """Of a wrapper subclass from a pickle, the tensors are among its attributes."""
    if tensor.layout != "subclass" or tensor.components:
        return tensor.components
    state = tensor.state if isinstance(tensor.state, dict) else {}
    return {
        name: value
        for name, value in state.items()
        if isinstance(name, str) and isinstance(value, LazyTensor)
    }


def _record(tensor: LazyTensor, components: dict[str, str]) -> TensorRecord:
    stride = dense_stride(tensor.shape, tensor.stride) if tensor.stride else None
    plain = stride is None or stride == contiguous_stride(tensor.shape)
    coalesced = isinstance(tensor.state, dict) and tensor.state.get("is_coalesced") is True
    return TensorRecord(
        dtype=tensor.dtype if tensor.dtype in DTYPES else "uint8",
        shape=tensor.shape,
        stride=None if plain else stride,
        layout=tensor.layout,
        device=tensor.device,
        requires_grad=tensor.requires_grad,
        parameter=tensor.parameter,
        persistent=tensor.persistent,
        components=components,
        quantizer=tensor.quantizer,
        numpy=tensor.numpy,
        class_name=tensor.class_name,
        coalesced=tensor.coalesced or (tensor.layout == "sparse_coo" and coalesced),
    )


def _note_span(kept: Kept, part: str, key: str, tensor: LazyTensor) -> None:
    if len(tensor.pieces) != 1 or tensor.layout != "strided" or tensor.lazy_bits:
        return
    piece = tensor.pieces[0]
    if piece.stride != tensor.stride or tensor.numpy is not None:
        return
    memory = (part, piece.storage.file, piece.storage.key, tensor.dtype)
    span = (piece.offset, piece.offset + extent(tensor.shape, tensor.stride), key)
    kept.spans.setdefault(memory, []).append(span)
    kept.strides[key] = tensor.stride


def _free_key(kept: Kept, part: str, name: str) -> str:
    name = name or part  # a part that is one tensor
    # Control characters read badly, lone surrogates have no UTF-8, and safetensors keeps one name
    # for itself. A part's entries hold the true names.
    name = "".join(c if c.isprintable() else "_" for c in name)
    name = "_metadata_" if name == "__metadata__" else name
    key, count = f"{part}/{name}", 2
    while key in kept.records:
        key, count = f"{part}/{name}~{count}", count + 1
    return key


def update_record(kept: Kept, key: str, **changes: Any) -> None:
    """Change fields of a record that has been kept."""
    kept.records[key] = replace(kept.records[key], **changes)
