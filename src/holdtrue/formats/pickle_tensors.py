"""torch's tensor constructors as data: each gives a LazyTensor, and reads no byte of it."""

from typing import Any

from msgspec.structs import force_setattr, replace

from holdtrue.formats.pickle_context import ArgumentsError, Context
from holdtrue.formats.pickle_opcodes import Span
from holdtrue.formats.view import LazyTensor, Piece, Storage
from holdtrue.limits import limits
from holdtrue.records.dtypes import DTYPES, product
from holdtrue.records.inert import NamedReference, Record

_LARGEST = (1 << 63) - 1


def whole_number(value: Any, least: int = 0) -> int:
    """An int within what torch can hold."""
    if type(value) is not int or not least <= value <= _LARGEST:
        raise ArgumentsError("a size, stride or offset that is no number torch could hold")
    return value


def shape_of(value: Any, least: int = 0) -> tuple[int, ...]:
    """A size or stride: a tuple, a list, or torch.Size of ints."""
    if isinstance(value, Record) and value.class_name == "torch.Size" and value.args:
        value = value.args[0]
    if not isinstance(value, (tuple, list)):
        raise ArgumentsError("a size or stride that is no tuple")
    if len(value) > limits().dimensions:
        raise ArgumentsError(f"more than {limits().dimensions} dimensions")
    shape = tuple(whole_number(size, least) for size in value)
    if product(shape) > _LARGEST:
        raise ArgumentsError("more elements than torch could count")
    return shape


def dtype_of(value: Any) -> str:
    """torch's name of a dtype reference."""
    if not isinstance(value, NamedReference) or not value.name.startswith("torch."):
        raise ArgumentsError("a dtype that is none")
    name = value.name.removeprefix("torch.")
    if name not in DTYPES:
        raise ArgumentsError(f"an unknown dtype, {name[:40]}")
    return name


def device_of(value: Any) -> str:
    """A device as torch prints it."""
    if isinstance(value, str):
        return value[:64]
    if isinstance(value, Record) and value.class_name == "torch.device":
        return ":".join(str(part)[:32] for part in value.args[:2])
    raise ArgumentsError("a device that is none")


def span_tensor(span: Span, key: str) -> LazyTensor:
    """A long byte string that stays in the file, as one row of bytes."""
    kind = "builtins.bytearray" if span.mutable else "builtins.bytes"
    storage = Storage(key=key, file=span.file, offset=span.offset, nbytes=span.nbytes)
    return row(storage, "uint8", span.nbytes, class_name=kind)


def row(storage: Storage, dtype: str, numel: int, **more: Any) -> LazyTensor:
    """A storage as a tensor of one dimension."""
    piece = Piece(start=(0,), shape=(numel,), storage=storage, offset=0, stride=(1,))
    return LazyTensor(dtype=dtype, shape=(numel,), stride=(1,), pieces=(piece,), **more)


def is_storage(value: Any) -> bool:
    """Whether the value is what a storage's persistent id became."""
    return (
        isinstance(value, LazyTensor)
        and value.class_name is not None
        and value.class_name.endswith("Storage")
        and len(value.pieces) == 1
    )


def strided(
    context: Context,
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    requires_grad: Any = False,
    dtype: str | None = None,
    metadata: Any = None,
) -> LazyTensor:
    """A view of a storage. One that reaches past its storage is kept, with a finding."""
    if not is_storage(storage):
        raise ArgumentsError("a tensor without a storage")
    own: Piece = storage.pieces[0]
    shape, steps, first = shape_of(size), shape_of(stride), whole_number(offset)
    if len(shape) != len(steps):
        raise ArgumentsError("a size and a stride of different lengths")
    kind = dtype or storage.dtype
    width, base = DTYPES[kind].itemsize, own.offset * DTYPES[storage.dtype].itemsize
    if base % width:
        raise ArgumentsError("a storage view that cuts an element")
    reach = first + 1 + sum((n - 1) * step for n, step in zip(shape, steps, strict=True))
    held = own.storage
    if product(shape) and base + reach * width > held.nbytes:
        context.note(
            "tensor-past-storage",
            "a tensor reaches past its storage",
            f"{kind} {list(shape)} on {held.key} needs "
            f"{base + reach * width:,} bytes, the storage has {held.nbytes:,}",
            error=True,
        )
    if held.big_endian and held.itemsize != swap_unit(kind):
        held = replace(held, itemsize=swap_unit(kind))
    bits = [bit for bit in ("conj", "neg") if isinstance(metadata, dict) and metadata.get(bit)]
    start = (0,) * len(shape)
    offset_here = base // width + first
    piece = Piece(start=start, shape=shape, storage=held, offset=offset_here, stride=steps)
    return LazyTensor(
        dtype=kind,
        shape=shape,
        stride=steps,
        pieces=(piece,),
        device=storage.device,
        requires_grad=requires_grad is True,
        lazy_bits=tuple(bits),
    )


def swap_unit(dtype: str) -> int:
    """Bytes that turn round together: a complex number is two of them."""
    width = DTYPES[dtype].itemsize
    return width // 2 if dtype.startswith("complex") else width


def rebuild_tensor(context: Context, args: tuple[Any, ...]) -> LazyTensor:
    """`_rebuild_tensor(storage, offset, size, stride)` and `_v2` with what follows."""
    if not 4 <= len(args) <= 7:
        raise ArgumentsError("a tensor with too few or too many arguments")
    metadata = args[6] if len(args) > 6 else None
    storage, offset, size, stride, *more = args
    return strided(context, storage, offset, size, stride, bool(more) and more[0], None, metadata)


def rebuild_tensor_v3(context: Context, args: tuple[Any, ...]) -> LazyTensor:
    """A tensor on an untyped storage: the dtype is an argument."""
    if not 7 <= len(args) <= 8:
        raise ArgumentsError("a tensor with too few or too many arguments")
    metadata = args[7] if len(args) > 7 else None
    storage, offset, size, stride, requires_grad, _, dtype, *_ = args
    return strided(context, storage, offset, size, stride, requires_grad, dtype_of(dtype), metadata)


def rebuild_parameter(context: Context, args: tuple[Any, ...]) -> LazyTensor:
    """`_rebuild_parameter(data, requires_grad, hooks[, state])`, and the class called itself."""
    data = tensor_of(args[0] if args else None)
    requires_grad = args[1] if len(args) > 1 else True
    state = args[3] if len(args) > 3 and args[3] else data.state
    return replace(data, parameter=True, requires_grad=requires_grad is True, state=state)


def parameter_of(context: Context, args: tuple[Any, ...]) -> LazyTensor:
    """The class called itself; before torch 0.2 without arguments, and BUILD brings its data."""
    if args:
        return rebuild_parameter(context, args)
    return replace(unset(context, args), parameter=True)


def unset(context: Context, args: tuple[Any, ...]) -> LazyTensor:
    """A tensor made empty, to be filled by BUILD as torch before 0.1.10 did; or from data."""
    if args and is_storage(args[0]):
        return strided(context, args[0], 0, (args[0].shape[0],), (1,))
    if args:
        return tensor_of(args[0])
    return LazyTensor(dtype="float32", shape=(0,), stride=(1,))


def set_state(context: Context, tensor: LazyTensor, state: Any) -> None:
    """BUILD on a tensor, as `torch.Tensor.__setstate__` and `_set_obj_state` take it."""
    if isinstance(state, tuple) and len(state) == 4:
        become(tensor, strided(context, *state))
    elif isinstance(state, tuple) and len(state) == 5 and isinstance(state[0], LazyTensor):
        kept = tensor.parameter
        become(tensor, replace(state[0], requires_grad=state[3] is True, parameter=kept))
    elif isinstance(state, tuple) and len(state) == 3:
        force_setattr(tensor, "requires_grad", state[0] is True)
    elif isinstance(state, (dict, tuple)):
        force_setattr(tensor, "state", state)
    else:
        raise ArgumentsError("a state that no tensor takes")


def become(tensor: LazyTensor, other: LazyTensor) -> None:
    """Give a tensor that the memo may already hold the fields of another."""
    for name in LazyTensor.__struct_fields__:
        force_setattr(tensor, name, getattr(other, name))


def tensor_of(value: Any) -> LazyTensor:
    """The value, where it is a tensor and no storage."""
    if not isinstance(value, LazyTensor) or is_storage(value):
        raise ArgumentsError("something else where a tensor belongs")
    return value
