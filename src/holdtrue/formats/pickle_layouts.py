"""torch's tensors beyond the strided one, as data: quantised, sparse, nested, meta, subclasses."""

from typing import Any

from msgspec.structs import replace

from holdtrue.formats.pickle_context import ArgumentsError, Context
from holdtrue.formats.pickle_tensors import (
    device_of,
    dtype_of,
    is_storage,
    row,
    shape_of,
    strided,
    tensor_of,
    whole_number,
)
from holdtrue.formats.view import Layout, LazyTensor, Quantizer, Storage
from holdtrue.on_demand import numpy as np
from holdtrue.records.dtypes import DTYPES, contiguous_stride, product
from holdtrue.records.inert import NamedReference

_PLAIN_CLASSES = ("torch.Tensor", "torch._tensor.Tensor", "torch.tensor.Tensor")
_PARAMETERS = ("torch.nn.parameter.Parameter", "torch.nn.Parameter")

_PACKED = {"quint4x2": 2, "quint2x4": 4}  # integers to the byte

_SPARSE: dict[str, tuple[Layout, tuple[str, str]]] = {
    "sparse_coo": ("sparse_coo", ("indices", "values")),
    "sparse_csr": ("sparse_csr", ("crow_indices", "col_indices")),
    "sparse_csc": ("sparse_csc", ("ccol_indices", "row_indices")),
    "sparse_bsr": ("sparse_bsr", ("crow_indices", "col_indices")),
    "sparse_bsc": ("sparse_bsc", ("ccol_indices", "row_indices")),
}


def rebuild_qtensor(context: Context, args: tuple[Any, ...]) -> LazyTensor:
    """A quantised tensor: its integers are strided, its scales are components."""
    if len(args) < 6:
        raise ArgumentsError("a quantised tensor with too few arguments")
    storage, offset, size, stride, described, requires_grad, *_ = args
    if is_storage(storage) and storage.dtype in _PACKED:
        plain = _packed(context, storage, shape_of(size), requires_grad)
    else:
        plain = strided(context, storage, offset, size, stride, requires_grad)
    scheme, *rest = described if isinstance(described, tuple) and described else (None,)
    if not isinstance(scheme, NamedReference):
        raise ArgumentsError("a quantised tensor without its scheme")
    name = scheme.name.rpartition(".")[2]
    if len(rest) == 2 and type(rest[0]) is float and type(rest[1]) is int:
        quantizer = Quantizer(scheme=name, scale=rest[0], zero_point=rest[1])
        return replace(plain, layout="quantized", quantizer=quantizer)
    if len(rest) != 3:
        raise ArgumentsError("quantizer arguments that are none")
    axis = whole_number(rest[2])
    kinds = ("float64", "int64") if name == "per_channel_affine" else ("float32", "float32")
    scales, points = (
        _numbers(context, part, kind) for part, kind in zip(rest, kinds, strict=False)
    )
    if axis >= len(plain.shape) or not scales.shape == points.shape == (plain.shape[axis],):
        raise ArgumentsError("scales that do not fit their axis")
    if DTYPES[points.dtype].floating:  # torch writes the plain name for this scheme too
        name = "per_channel_affine_float_qparams"
    return replace(
        plain,
        layout="quantized",
        quantizer=Quantizer(scheme=name, axis=axis),
        components=plain.components | {"scales": scales, "zero_points": points},
    )


def _packed(
    context: Context, storage: LazyTensor, shape: tuple[int, ...], requires_grad: Any
) -> LazyTensor:
    """Integers of 4 or 2 bits, several to the byte, one row after the other."""
    rows = (-(-product(shape) // _PACKED[storage.dtype]),)
    unsigned = replace(storage, dtype="uint8")
    packed = strided(context, unsigned, 0, rows, (1,))
    return LazyTensor(
        dtype=storage.dtype,
        shape=shape,
        stride=contiguous_stride(shape),
        device=storage.device,
        requires_grad=requires_grad is True,
        components={"packed": packed},
    )


def rebuild_sparse(context: Context, args: tuple[Any, ...]) -> LazyTensor:
    """`_rebuild_sparse_tensor(layout, data)` and the older name for CSR."""
    if len(args) != 2 or not isinstance(args[1], tuple):
        raise ArgumentsError("a sparse tensor with other arguments")
    name, data = _layout_of(args[0]), args[1]
    if name not in _SPARSE:
        raise ArgumentsError(f"an unknown sparse layout, {name[:40]}")
    layout, names = _SPARSE[name]
    if layout == "sparse_coo":
        if len(data) not in (3, 4):
            raise ArgumentsError("a sparse tensor with other arguments")
        parts = {"indices": tensor_of(data[0]), "values": tensor_of(data[1])}
        shape = shape_of(data[2])
        state = {"is_coalesced": data[3]} if len(data) > 3 else None
    else:
        if len(data) != 4:
            raise ArgumentsError("a sparse tensor with other arguments")
        first, second, values = (tensor_of(part) for part in data[:3])
        parts = {names[0]: first, names[1]: second, "values": values}
        shape, state = shape_of(data[3]), None
    values = parts["values"]
    return LazyTensor(
        dtype=values.dtype,
        shape=shape,
        stride=(),
        layout=layout,
        device=values.device,
        requires_grad=values.requires_grad,
        components=parts,
        state=state,
    )


def rebuild_meta(context: Context, args: tuple[Any, ...]) -> LazyTensor:
    """A tensor on the meta device: a shape without bytes."""
    if len(args) != 4:
        raise ArgumentsError("a meta tensor with other arguments")
    return LazyTensor(
        dtype=dtype_of(args[0]),
        shape=shape_of(args[1]),
        stride=shape_of(args[2]),
        layout="meta",
        device="meta",
        requires_grad=args[3] is True,
    )


def rebuild_nested(context: Context, args: tuple[Any, ...]) -> LazyTensor:
    """A nested tensor: one buffer, and the sizes, strides and offsets of its parts."""
    if len(args) != 4:
        raise ArgumentsError("a nested tensor with other arguments")
    names = ("values", "sizes", "strides", "storage_offsets")
    parts = {name: tensor_of(arg) for name, arg in zip(names, args, strict=True)}
    values = parts["values"]
    return LazyTensor(
        dtype=values.dtype,
        shape=values.shape,
        stride=(),
        layout="nested",
        device=values.device,
        requires_grad=values.requires_grad,
        components=parts,
    )


def rebuild_jagged(context: Context, args: tuple[Any, ...]) -> LazyTensor:
    """A nested tensor of the jagged layout: its values, and where each part begins."""
    said = args[0] if len(args) == 1 else None
    if not isinstance(said, dict):
        raise ArgumentsError("a nested tensor with other arguments")
    names = [name for name in ("values", "offsets", "lengths") if said.get(name) is not None]
    parts = {name: tensor_of(said[name]) for name in names}
    if "values" not in parts or "offsets" not in parts:
        raise ArgumentsError("a nested tensor without its values")
    values = parts["values"]
    return LazyTensor(
        dtype=values.dtype,
        shape=values.shape,
        stride=(),
        layout="nested",
        device=values.device,
        requires_grad=said.get("requires_grad") is True,
        components=parts,
    )


def rebuild_wrapper(context: Context, args: tuple[Any, ...]) -> LazyTensor:
    """A wrapper subclass: a shape in front; the tensors are in the state that follows."""
    if len(args) != 8:
        raise ArgumentsError("a wrapper subclass with other arguments")
    cls, dtype, size, stride, _, _, device, requires_grad = args
    if not isinstance(cls, NamedReference):
        raise ArgumentsError("a wrapper subclass without its class")
    context.would("import", cls.name, cls)
    return LazyTensor(
        dtype=dtype_of(dtype),
        shape=shape_of(size),
        stride=shape_of(stride),
        layout="subclass",
        device=device_of(device),
        requires_grad=requires_grad is True,
        class_name=cls.name,
    )


def on_device(context: Context, args: tuple[Any, ...]) -> LazyTensor:
    """A tensor that was moved to the CPU, or to NumPy, to be saved."""
    if len(args) != 4:
        raise ArgumentsError("a device tensor with other arguments")
    data, dtype = tensor_of(args[0]), dtype_of(args[1])
    if data.dtype != dtype:  # torch converts while loading; these bytes are what is in the file
        context.note("dtype-converted", f"the file holds {data.dtype}, torch makes it {dtype}")
    return replace(data, device=device_of(args[2]), requires_grad=args[3] is True, numpy=None)


def as_class(context: Context, data: Any, cls: Any, state: Any) -> LazyTensor:
    """What `_rebuild_from_type_v2` does after it has called its function."""
    if not isinstance(cls, NamedReference):
        raise ArgumentsError("a tensor class that is none")
    tensor, kept = tensor_of(data), state if state else None
    if cls.name in _PLAIN_CLASSES:
        return replace(tensor, state=kept)
    if cls.name in _PARAMETERS:
        return replace(tensor, parameter=True, state=kept)
    parts = _inner_tensors(kept) if tensor.layout == "subclass" else tensor.components
    return replace(tensor, class_name=cls.name, state=kept, components=parts)


def _inner_tensors(state: Any) -> dict[str, LazyTensor]:
    """The tensors that a wrapper holds as attributes: its bytes are theirs."""
    found: dict[str, LazyTensor] = {}
    for attributes in state if isinstance(state, tuple) else (state,):  # with its __slots__
        for name, value in attributes.items() if isinstance(attributes, dict) else ():
            if isinstance(name, str) and isinstance(value, LazyTensor):
                found[name] = value
    return found


def uninitialized(context: Context, args: tuple[Any, ...]) -> LazyTensor:
    """A lazy module's parameter that has no shape yet."""
    requires_grad = bool(args) and args[0] is True
    return LazyTensor(
        dtype="float32", shape=(), stride=(), layout="uninitialized", requires_grad=requires_grad
    )


def _numbers(context: Context, value: Any, dtype: str) -> LazyTensor:
    """Scales as a tensor, or as the list that older files hold."""
    if isinstance(value, LazyTensor):
        return value
    if not isinstance(value, list) or not all(type(v) in (int, float) for v in value):
        raise ArgumentsError("scales that are no numbers")
    data = np.array(value, DTYPES[dtype].numpy).tobytes()
    context.spend_bytes(len(data))
    storage = Storage(key=context.fresh_key(), file="", offset=0, nbytes=len(data), inline=data)
    return row(storage, dtype, len(value))


def _layout_of(value: Any) -> str:
    if isinstance(value, NamedReference):
        return value.name.rpartition(".")[2]
    raise ArgumentsError("a layout that is none")
