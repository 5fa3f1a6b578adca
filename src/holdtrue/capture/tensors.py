"""Tensors to tensor records: what is stored, under which key, and what it is tied to."""

import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import torch
from msgspec import Struct
from msgspec.structs import replace
from torch import Tensor
from torch.nn.parameter import is_lazy

from holdtrue.capture.raw import dtype_name, dtype_named, raw_bytes, raw_view, stored_bytes
from holdtrue.findings import Finding
from holdtrue.limits import limits
from holdtrue.records.dtypes import DTYPES, contiguous_stride, extent, packed_bytes
from holdtrue.records.manifest import Quantizer, TensorRecord
from holdtrue.records.overlaps import Span, mark_overlaps
from holdtrue.records.trust import class_name

_QUANTIZED = frozenset({"quint8", "qint8", "qint32", "quint4x2", "quint2x4"})
PLAIN = {torch.Tensor, torch.nn.Parameter, torch.nn.Buffer}
# Whose elements are whole bytes, and nothing else: no scale, no neighbour in the same byte.
_COMMON = {
    dtype: row
    for name, row in DTYPES.items()
    if (dtype := dtype_named(name)) is not None and row.itemsize and name not in _QUANTIZED
}
_c_order = lru_cache(maxsize=4096)(contiguous_stride)
_device_name = lru_cache(maxsize=256)(str)
_SPARSE: dict[torch.layout, tuple[str, tuple[str, ...]]] = {
    torch.sparse_coo: ("sparse_coo", ("_indices", "_values")),
    torch.sparse_csr: ("sparse_csr", ("crow_indices", "col_indices", "values")),
    torch.sparse_csc: ("sparse_csc", ("ccol_indices", "row_indices", "values")),
    torch.sparse_bsr: ("sparse_bsr", ("crow_indices", "col_indices", "values")),
    torch.sparse_bsc: ("sparse_bsc", ("ccol_indices", "row_indices", "values")),
}


class Source(Struct, frozen=True, eq=False, gc=False):
    """Where the bytes of one stored tensor come from; read on any thread."""

    code: str  # safetensors dtype
    shape: tuple[int, ...]  # as stored
    nbytes: int
    tensor: Tensor | None = None  # the live one, where it is a plain tensor
    read: Callable[[], memoryview] | None = None  # of any other

    @property
    def direct(self) -> bool:
        """True where `blocks` gives the tensor's own memory, and no copy of it."""
        tensor = self.tensor
        return tensor is not None and tensor.is_cpu and tensor.is_contiguous()

    def blocks(self) -> Iterator[memoryview]:
        """The bytes for the writer: in one block where they are in memory already in this order.
        A copy is made of one block at a time: the whole of it may be more than there is room for.
        """
        if self.read is not None:
            yield self.read()
        elif self.direct and self.tensor is not None:
            yield raw_bytes(self.tensor)
        elif self.tensor is not None:
            yield from _copies(self.tensor.detach(), limits().chunk_bytes)


def _copies(tensor: Tensor, step: int) -> Iterator[memoryview]:
    """The bytes in C order, copied in blocks of at most `step` bytes, or of one element."""
    if tensor.nbytes <= step or not tensor.dim():
        yield raw_bytes(tensor)
        return
    rows = step // (tensor.nbytes // len(tensor))
    if rows:
        yield from (raw_bytes(tensor[at : at + rows]) for at in range(0, len(tensor), rows))
    else:
        for row in tensor:
            yield from _copies(row, step)


class TensorSet(Struct, eq=False):
    """The tensors of one part, gathered while its state is encoded."""

    part: str
    records: dict[str, TensorRecord]
    sources: dict[str, Source]
    findings: list[Finding]
    known: dict[tuple[Any, ...], str]  # identity of the memory → key
    held: list[Any]  # keeps what was seen alive, so that no address is used twice
    spans: dict[tuple[int, torch.dtype], list[Span]]  # by storage
    strides: dict[str, tuple[int, ...]]  # of the tensors in `spans`, as they are in memory


def tensor_set(part: str) -> TensorSet:
    return TensorSet(part, {}, {}, [], {}, [], {}, {})


def add_tensor(
    into: TensorSet,
    tensor: Tensor,
    name: str,
    *,
    persistent: bool = True,
    encode: Callable[[Any, str], Any] | None = None,
) -> str:
    """Record a tensor and return its key; the same memory seen before returns the same key.

    A tensor that cannot be kept adds a finding instead. `encode` turns the attributes of tensor
    subclasses into value nodes.
    """
    known = _add_common(into, tensor, name, persistent)
    if known is not None:
        return known
    memory = _memory(tensor)
    if memory in into.known:
        return into.known[memory]
    key = free_key(into, name)
    into.known[memory] = key
    into.held.append(tensor)
    problem = _record(into, tensor, key, persistent, encode)
    if problem:
        what, why, fix = problem
        into.findings.append(
            Finding(
                code="tensor-unsupported", severity="error", where=key, what=what, why=why, fix=fix
            )
        )
    return key


def is_common(tensor: Tensor) -> bool:
    """True for an ordinary tensor: of no other class, strided, not nested, of a common dtype."""
    return (
        type(tensor) in PLAIN
        and tensor.layout is torch.strided
        and tensor.dtype in _COMMON
        and not tensor.is_nested
    )


def _add_common(into: TensorSet, tensor: Tensor, name: str, persistent: bool) -> str | None:
    """What `add_tensor` does, in one step for what nearly all tensors are: plain, of a common
    dtype, in C order. None for any other: of those more has to be asked."""
    if not is_common(tensor):
        return None
    row = _COMMON[tensor.dtype]
    count, shape, stride = tensor.numel(), tuple(tensor.shape), tensor.stride()
    if not count or stride != _c_order(shape):
        return None
    device = tensor.device
    if tensor.is_neg() or tensor.is_conj() or device.type == "meta":
        return None
    first = int(tensor.storage_offset())
    storage = tensor.data_ptr() - first * row.itemsize
    memory = (storage, device, tensor.dtype, first, shape, stride, False, False)
    if memory in into.known:
        return into.known[memory]
    key = into.known[memory] = free_key(into, name)
    into.held.append(tensor)
    into.records[key] = TensorRecord(
        dtype=row.name,
        shape=shape,
        device=_device_name(device),
        requires_grad=tensor.requires_grad,
        parameter=isinstance(tensor, torch.nn.Parameter),
        persistent=persistent,
    )
    stored = shape + row.trailing if row.trailing else shape
    nbytes = count * row.itemsize
    into.sources[key] = Source(row.code, stored, nbytes, tensor)
    into.spans.setdefault((storage, tensor.dtype), []).append((first, first + count, key))
    into.strides[key] = stride
    return key


def finish(into: TensorSet) -> None:
    """Mark the tensors that share memory only in part, so that opening can lay them over again."""
    mark_overlaps(into.records, into.spans.values(), into.strides)


def _memory(tensor: Tensor) -> tuple[Any, ...]:
    plain = type(tensor) in PLAIN and tensor.layout is torch.strided
    if (
        plain
        and not (tensor.is_quantized or tensor.is_nested)
        and tensor.numel()
        and tensor.device.type != "meta"
    ):
        return (
            tensor.untyped_storage().data_ptr(),
            tensor.device,
            tensor.dtype,
            tensor.storage_offset(),
            tuple(tensor.shape),
            tensor.stride(),
            tensor.is_conj(),
            tensor.is_neg(),
        )
    return ("object", id(tensor))


def free_key(into: TensorSet, name: str) -> str:
    """The key that a tensor of this name gets, another one where it is taken."""
    name = name or into.part  # a part that is one tensor
    # Lone surrogates have no place in JSON, and safetensors keeps one name for itself.
    if not name.isascii():
        name = name.encode("utf-8", "backslashreplace").decode()
    name = f"{name}~" if name == "__metadata__" else name
    key, n = f"{into.part}/{name}", 2
    while key in into.records:
        key, n = f"{into.part}/{name}~{n}", n + 1
    return key


_Problem = tuple[str, str, str] | None


def _record(
    into: TensorSet,
    tensor: Tensor,
    key: str,
    persistent: bool,
    encode: Callable[[Any, str], Any] | None,
) -> _Problem:
    name = dtype_name(tensor.dtype)
    base = TensorRecord(
        dtype=name,
        shape=(),
        device=str(tensor.device),
        requires_grad=tensor.requires_grad,
        parameter=isinstance(tensor, torch.nn.Parameter),
        persistent=persistent,
    )
    if is_lazy(tensor):
        # A lazy module's parameter before the first batch: there is nothing but its dtype.
        into.records[key] = replace(base, layout="uninitialized")
        return None
    if tensor.is_nested:
        return _not_kept("nested")
    base = replace(base, shape=tuple(tensor.shape))
    if name not in DTYPES:
        return (
            f"dtype {name} is not known",
            "this holdtrue does not know its layout in memory",
            "convert the tensor to another dtype before saving",
        )
    if type(tensor) not in PLAIN and hasattr(tensor, "__tensor_flatten__"):
        return _record_wrapper(into, tensor, key, base, encode)
    if type(tensor) not in PLAIN:
        return _record_subclass(into, tensor, key, base, encode)
    if tensor.device.type == "meta":
        return (
            "the tensor is on the meta device: it has a shape, and no values",
            "it was built under torch.device('meta') and never filled",
            "load or initialise the weights before saving, e.g. with model.to_empty(device='cpu')",
        )
    if tensor.layout in _SPARSE:
        _record_sparse(into, tensor, key, base)
        return None
    if tensor.layout is not torch.strided:
        return _not_kept(str(tensor.layout).removeprefix("torch."))
    if tensor.is_quantized:
        return _record_quantized(into, tensor, key, base)
    _record_strided(into, tensor, key, base)
    return None


def _not_kept(layout: str) -> _Problem:
    return (
        f"layout {layout} is not kept",
        "its memory has no published description",
        "save tensor.to_dense() or, for nested tensors, the list tensor.unbind()",
    )


def _record_strided(into: TensorSet, tensor: Tensor, key: str, base: TensorRecord) -> None:
    row = DTYPES[base.dtype]
    into.records[key] = replace(base, stride=_kept_stride(tensor))
    into.sources[key] = Source(row.code, base.shape + row.trailing, stored_bytes(tensor), tensor)
    # A conjugate view reads its memory another way than its neighbours do.
    if tensor.numel() and not tensor.is_conj() and not tensor.is_neg():
        first, strides = int(tensor.storage_offset()), tuple(int(n) for n in tensor.stride())
        storage = (tensor.untyped_storage().data_ptr(), tensor.dtype)
        into.spans.setdefault(storage, []).append((first, first + extent(base.shape, strides), key))
        into.strides[key] = strides


def _kept_stride(tensor: Tensor) -> tuple[int, ...] | None:
    """The strides that opening gives back; None for C order.

    Dense layouts (channels-last, transposed) and repeated dimensions (stride 0) are kept. Gaps
    between elements, left by slicing something larger, are closed: views are stored compact.
    """
    shape, plain = tuple(tensor.shape), contiguous_stride(tuple(tensor.shape))
    repeated = [n > 1 and s == 0 for n, s in zip(shape, tensor.stride(), strict=True)]
    once = tensor[tuple(slice(0, 1) if r else slice(None) for r in repeated)]
    dense = torch.empty_like(once, device="meta").stride()
    stride = tuple(0 if r else int(s) for r, s in zip(repeated, dense, strict=True))
    return None if stride == plain else stride


def _record_sparse(into: TensorSet, tensor: Tensor, key: str, base: TensorRecord) -> None:
    layout, names = _SPARSE[tensor.layout]
    name = key.removeprefix(into.part + "/")
    detached = tensor.detach()
    components = {
        n.strip("_"): add_tensor(into, getattr(detached, n)(), f"{name}#{n.strip('_')}")
        for n in names
    }
    coalesced = tensor.layout is torch.sparse_coo and tensor.is_coalesced()
    into.records[key] = replace(base, layout=layout, components=components, coalesced=coalesced)


def _record_quantized(into: TensorSet, tensor: Tensor, key: str, base: TensorRecord) -> _Problem:
    scheme = str(tensor.qscheme()).removeprefix("torch.")
    packed = tensor.dtype in (torch.quint4x2, torch.quint2x4)
    if packed and stored_bytes(tensor) != packed_bytes(base.dtype, base.shape):
        return (
            "a packed quantised tensor that is a part of another",
            "several values share a byte, so its strides cannot be followed",
            "save the whole tensor, or its dequantize()",
        )
    row, count = DTYPES[base.dtype], stored_bytes(tensor)
    components: dict[str, str] = {}
    if scheme.startswith("per_channel"):
        name = key.removeprefix(into.part + "/")
        scales, zeros = tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()
        components = {
            "scales": add_tensor(into, scales, f"{name}#scales"),
            "zero_points": add_tensor(into, zeros, f"{name}#zero_points"),
        }
        quantizer = Quantizer(scheme=scheme, axis=tensor.q_per_channel_axis())
    else:
        if not math.isfinite(tensor.q_scale()):
            return (
                f"it is quantised with the scale {tensor.q_scale()}",
                "nothing can be read back from such a tensor",
                "quantise it again with a finite scale",
            )
        quantizer = Quantizer(
            scheme=scheme, scale=tensor.q_scale(), zero_point=tensor.q_zero_point()
        )
    into.records[key] = replace(
        base,
        layout="quantized",
        quantizer=quantizer,
        components=components,
        stride=None if packed else _kept_stride(raw_view(tensor)),
    )
    into.sources[key] = Source(
        row.code, (count,) if packed else base.shape, count, read=lambda: raw_bytes(tensor)
    )
    return None


def _record_wrapper(
    into: TensorSet,
    tensor: Any,
    key: str,
    base: TensorRecord,
    encode: Callable[[Any, str], Any] | None,
) -> _Problem:
    """A subclass that flattens itself into plain tensors (`__tensor_flatten__`)."""
    name = key.removeprefix(into.part + "/")
    try:
        attributes, context = tensor.__tensor_flatten__()
        inner = {a: getattr(tensor, a) for a in attributes}
    except Exception as error:  # the subclass's own code
        return (
            f"{class_name(type(tensor))} does not flatten",
            f"it raised {error!r}",
            "save the plain tensors that it holds",
        )
    components = {a: add_tensor(into, t, f"{name}#{a}", encode=encode) for a, t in inner.items()}
    into.records[key] = replace(
        base,
        layout="subclass",
        class_name=class_name(type(tensor)),
        components=components,
        state=encode(context, f"{name}#context") if encode else None,
    )
    return None


def _record_subclass(
    into: TensorSet,
    tensor: Tensor,
    key: str,
    base: TensorRecord,
    encode: Callable[[Any, str], Any] | None,
) -> _Problem:
    """A subclass that is an ordinary tensor with a class and attributes of its own."""
    dispatch = getattr(type(tensor), "__torch_dispatch__", None)
    disabled = torch._C._disabled_torch_dispatch_impl
    if (
        getattr(dispatch, "__func__", dispatch) is not disabled
        and dispatch is not None
        and dispatch is not Tensor.__torch_dispatch__
    ):
        return (
            f"{class_name(type(tensor))} has no memory of its own",
            "a wrapper subclass without __tensor_flatten__ does not say what it holds",
            "give the class __tensor_flatten__, or save the plain tensors that it holds",
        )
    name = key.removeprefix(into.part + "/")
    plain = tensor.detach().as_subclass(Tensor)
    problem = _record(into, plain, key, base.persistent, None)
    if problem is None:
        attributes = {k: v for k, v in vars(tensor).items() if k != "_is_param"}
        into.records[key] = replace(
            into.records[key],
            class_name=class_name(type(tensor)),
            requires_grad=base.requires_grad,
            parameter=base.parameter,
            state=encode(attributes, f"{name}#attributes") if encode and attributes else None,
        )
    return problem
