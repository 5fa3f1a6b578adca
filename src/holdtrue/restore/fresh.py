"""New tensors and arrays from lazy ones, verified, with the strides, ties and overlaps they had."""

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from msgspec import Struct, field
from msgspec.structs import replace
from torch import Tensor

from holdtrue.capture.raw import dtype_named, raw_view
from holdtrue.errors import OpenError, fail
from holdtrue.findings import Finding
from holdtrue.formats.proven import Proven, read_proven
from holdtrue.formats.view import LazyTensor
from holdtrue.records.arrays import dtype_of
from holdtrue.records.dtypes import DTYPES, OVERLAP_FACTOR, contiguous_stride, extent, product
from holdtrue.records.inert import Record
from holdtrue.records.strides import dense_stride
from holdtrue.records.trust import Trust, find_class
from holdtrue.records.values import Decoding, NodeError, decode
from holdtrue.restore.nested import build_nested


class Fresh(Struct):
    """Builds each tensor once, so that what was tied is one object again."""

    tensors: Mapping[str, LazyTensor]
    agreed: Trust = field(default_factory=Trust)
    proven: Proven = field(default_factory=Proven)
    foreign: bool = False  # of a file that no manifest describes: strides are those of its memory
    built: dict[str, Any] = field(default_factory=dict)
    memory: dict[tuple[str, int], Tensor] = field(default_factory=dict)  # of overlapping groups

    def __call__(self, key: str) -> Any:
        if key not in self.built:
            lazy = self.tensors[key]
            self.built[key] = (
                build_array(lazy, self.proven, key) if lazy.numpy else self._tensor(key, lazy)
            )
        return self.built[key]

    def _tensor(self, key: str, lazy: LazyTensor) -> Any:
        if lazy.overlap is not None:
            tensor: Any = self._overlapping(key, lazy)
        else:
            tensor = build_tensor(lazy, self, key)
        if isinstance(tensor, Tensor) and not torch.nn.parameter.is_lazy(tensor):
            tensor = dress(tensor, lazy)
        return tensor

    def _overlapping(self, key: str, lazy: LazyTensor) -> Tensor:
        part, (group, first) = key.partition("/")[0], lazy.overlap or (0, 0)
        dtype = _dtype(lazy.dtype, key)
        if (part, group) not in self.memory:
            peers = [
                t
                for k, t in self.tensors.items()
                if k.startswith(part + "/") and t.overlap and t.overlap[0] == group
            ]
            span = max(t.overlap[1] + extent(t.shape, t.stride) for t in peers if t.overlap)
            kept = sum(product(t.shape) for t in peers)
            if span > OVERLAP_FACTOR * kept:
                raise unusable(key, f"it spans {span:,} elements of which {kept:,} are kept")
            base = torch.empty(span, dtype=dtype, device="cpu")
            raw_view(base).zero_()
            self.memory[part, group] = base
        base = self.memory[part, group]
        end = first + extent(lazy.shape, lazy.stride)
        if base.dtype != dtype or first < 0 or min(lazy.stride, default=0) < 0 or end > len(base):
            raise unusable(key, "it does not fit the memory that it shares")
        tensor = base.as_strided(lazy.shape, lazy.stride, first)
        place_bytes(tensor, read_proven(lazy, self.proven, key).data)
        return tensor


def build_array(lazy: LazyTensor, proven: Proven, where: str) -> "np.ndarray[Any, Any]":
    """A NumPy array, in the memory order it had."""
    data, dtype = read_proven(lazy, proven, where), dtype_of(lazy.numpy)
    # An itemsize of 0 (empty texts) leaves no bytes to look at.
    array = data.view(dtype).reshape(lazy.shape) if dtype.itemsize else np.zeros(lazy.shape, dtype)
    fortran = lazy.stride != contiguous_stride(lazy.shape)
    return np.asfortranarray(array) if fortran else array


def build_tensor(lazy: LazyTensor, fresh: Fresh, where: str) -> Any:
    """A new CPU tensor of any layout. Raises OpenError where this torch cannot build it.

    A subclass that nobody agreed to comes as a `Record` around its plain tensors.
    """
    if lazy.layout == "uninitialized":
        dtype = _dtype(lazy.dtype, where)
        lazy_class: Any = (
            torch.nn.UninitializedParameter if lazy.parameter else torch.nn.UninitializedBuffer
        )
        return lazy_class(dtype=dtype, device="cpu")
    if lazy.layout == "subclass":
        return _wrapper(lazy, fresh, where)
    if lazy.layout.startswith("sparse"):
        return _sparse(lazy, fresh, where)
    if lazy.layout == "meta":
        return _meta(lazy, where)
    if lazy.layout == "nested":
        parts = {k: build_tensor(c, fresh, where) for k, c in lazy.components.items()}
        return build_nested(parts, lazy.state)
    if fresh.foreign:  # its bytes are gathered, so the gaps that they had are gone
        lazy = replace(lazy, stride=dense_stride(lazy.shape, lazy.stride))
    if lazy.layout == "quantized":
        tensor = _quantized(lazy, fresh, where)
    else:
        dtype = _dtype(lazy.dtype, where)
        if min(lazy.stride, default=0) < 0 or extent(lazy.shape, lazy.stride) > product(lazy.shape):
            raise unusable(
                where, f"its strides {lazy.stride} do not fit {lazy.shape}", foreign=fresh.foreign
            )
        if lazy.dtype.startswith(("qint", "quint")):
            raise unusable(
                where, f"it is {lazy.dtype}, and lacks a quantiser", foreign=fresh.foreign
            )
        # The default device may be another one; a value that is read is always on the CPU.
        tensor = torch.empty_strided(lazy.shape, lazy.stride, dtype=dtype, device="cpu")
    place_bytes(tensor, read_proven(lazy, fresh.proven, where).data)
    if lazy.class_name is not None:
        return _subclass(tensor, lazy, fresh, where)
    return tensor


def place_bytes(tensor: Tensor, data: memoryview) -> None:
    """Copy C-order bytes into a CPU or device tensor of the same dtype, bit by bit."""
    raw = raw_view(tensor)
    repeated = [n > 1 and s == 0 for n, s in zip(raw.shape, raw.stride(), strict=True)]
    source = torch.frombuffer(data, dtype=raw.dtype) if data.nbytes else raw.new_empty(0)
    source = source.reshape(raw.shape)
    if any(repeated):
        # Every repeat holds the same bytes; writing each to one address would be refused.
        once = tuple(slice(0, 1) if r else slice(None) for r in repeated)
        raw, source = raw[once], source[once]
    raw.copy_(source)


def torch_builders() -> dict[str, Any]:
    """How torch's own kinds of value nodes are built."""
    return {
        "dtype": lambda v: _dtype(v, "a dtype"),
        "device": torch.device,
        "size": torch.Size,
        "layout": lambda v: _attribute(v, torch.layout),
        "memory_format": lambda v: _attribute(v, torch.memory_format),
        "generator": _generator,
    }


def decode_value(
    node: Any, tensors: Fresh, live: Any = None, path: str = ""
) -> tuple[Any, Decoding]:
    """A node's value with torch's kinds built, and what the decoding gathered."""
    decoding = Decoding(tensor=tensors, builders=torch_builders(), agreed=tensors.agreed)
    try:
        return decode(node, decoding, live, path), decoding
    except NodeError as error:
        raise unusable(path, str(error)) from None


def dress(tensor: Tensor, lazy: LazyTensor) -> Tensor:
    if torch.nn.parameter.is_lazy(tensor) or not isinstance(tensor, Tensor):
        return tensor
    if lazy.parameter and not isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(tensor, requires_grad=lazy.requires_grad)
    if lazy.requires_grad and not tensor.requires_grad:
        tensor.requires_grad_()
    return tensor


def _meta(lazy: LazyTensor, where: str) -> Tensor:
    try:
        return torch.empty_strided(
            lazy.shape, lazy.stride, dtype=_dtype(lazy.dtype, where), device="meta"
        )
    except (RuntimeError, TypeError) as error:  # a shape that overflows
        raise unusable(where, f"it is on the meta device, and {error}", foreign=True) from None


def _sparse(lazy: LazyTensor, fresh: Fresh, where: str) -> Tensor:
    parts = {k: build_tensor(c, fresh, f"{where}#{k}") for k, c in lazy.components.items()}
    dtype, shape = _dtype(lazy.dtype, where), torch.Size(lazy.shape)
    try:
        if lazy.layout == "sparse_coo":
            return torch.sparse_coo_tensor(
                parts["indices"],
                parts["values"],
                shape,
                dtype=dtype,
                device="cpu",
                check_invariants=True,
                is_coalesced=lazy.coalesced,
            )
        outer, inner = (
            ("crow_indices", "col_indices")
            if lazy.layout in ("sparse_csr", "sparse_bsr")
            else ("ccol_indices", "row_indices")
        )
        return torch.sparse_compressed_tensor(
            parts[outer],
            parts[inner],
            parts["values"],
            shape,
            dtype=dtype,
            device="cpu",
            layout=getattr(torch, lazy.layout),
            check_invariants=True,
        )
    except (RuntimeError, KeyError) as error:  # torch checks indices against the shape
        raise unusable(
            where, f"its indices do not fit its shape: {error}", foreign=fresh.foreign
        ) from None


def _quantized(lazy: LazyTensor, fresh: Fresh, where: str) -> Tensor:
    dtype, q = _dtype(lazy.dtype, where), lazy.quantizer
    if q is None or min(lazy.stride, default=0) < 0:
        raise unusable(where, "it is quantised, but does not say how", foreign=fresh.foreign)
    if q.scale is not None and q.zero_point is not None:
        made = torch._empty_affine_quantized(
            lazy.shape, scale=q.scale, zero_point=q.zero_point, dtype=dtype, device="cpu"
        )
    else:
        parts = {k: build_tensor(c, fresh, f"{where}#{k}") for k, c in lazy.components.items()}
        made = torch._empty_per_channel_affine_quantized(
            lazy.shape,
            scales=parts["scales"],
            zero_points=parts["zero_points"],
            axis=q.axis or 0,
            dtype=dtype,
            device="cpu",
        )
    if lazy.stride != contiguous_stride(lazy.shape):
        if extent(lazy.shape, lazy.stride) > product(lazy.shape):
            raise unusable(
                where, f"its strides {lazy.stride} do not fit {lazy.shape}", foreign=fresh.foreign
            )
        made = made.as_strided(lazy.shape, lazy.stride)
    return made


def _wrapper(lazy: LazyTensor, fresh: Fresh, where: str) -> Any:
    inner = {k: build_tensor(c, fresh, f"{where}#{k}") for k, c in lazy.components.items()}
    cls: Any = find_class(lazy.class_name or "", fresh.agreed)
    if cls is None:
        return Record(class_name=lazy.class_name or "?", state=inner)
    context, _ = decode_value(lazy.state, fresh, path=where)
    return cls.__tensor_unflatten__(inner, context, torch.Size(lazy.shape), lazy.stride)


def _subclass(tensor: Tensor, lazy: LazyTensor, fresh: Fresh, where: str) -> Any:
    state, _ = decode_value(lazy.state, fresh, path=where)
    cls: Any = find_class(lazy.class_name or "", fresh.agreed)
    if not (isinstance(cls, type) and issubclass(cls, Tensor)):
        return Record(class_name=lazy.class_name or "?", args=(tensor,), state=state)
    made = tensor.as_subclass(cls)
    made.__dict__.update(state or {})
    return made


def _generator(payload: list[str]) -> Any:
    device, state = payload
    try:
        made = torch.Generator(device)
    except RuntimeError:  # no such device here
        return Record(class_name="torch.Generator", args=(device,), state=base64.b64decode(state))
    made.set_state(torch.frombuffer(bytearray(base64.b64decode(state)), dtype=torch.uint8))
    return made


def _attribute(name: str, kind: type) -> Any:
    found = getattr(torch, name, None)
    if not isinstance(found, kind):
        raise ValueError(f"this torch has no {kind.__name__} {name[:40]!r}")
    return found


def _dtype(name: str, where: str) -> torch.dtype:
    found = dtype_named(name) if name in DTYPES else None
    if found is None:
        raise fail(
            OpenError,
            where,
            Finding(
                code="dtype-unknown",
                severity="error",
                where=where,
                what=f"this torch has no dtype {name[:40]}",
                why=f"it was saved by another torch; here is {torch.__version__}",
                fix="pip install --upgrade torch",
            ),
        )
    return found


def unusable(where: str, why: str, *, foreign: bool = False) -> OpenError:
    return fail(
        OpenError,
        where,
        Finding(
            code="manifest-damaged" if not foreign else "tensor-unusable",
            severity="error",
            where=where,
            what="the manifest describes something that cannot be"
            if not foreign
            else "the file describes a tensor that cannot be built",
            why=why,
            fix="use another checkpoint; this one was not written by holdtrue as it stands"
            if not foreign
            else "save the file again with a torch that can load it",
        ),
    )
