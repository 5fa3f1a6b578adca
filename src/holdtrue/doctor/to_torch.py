"""A state dict as a torch zip file that `torch.load(weights_only=True)` takes."""

from typing import Any

from msgspec import Struct

from holdtrue.doctor.memory import Memory, lay_over
from holdtrue.engine.stored import StoredSource, packed_bytes, stored_source
from holdtrue.engine.torch_pickle import (
    Call,
    StorageReference,
    pickle_state_dict,
    quantized_call,
    sparse_call,
    tensor_call,
)
from holdtrue.formats.view import LazyTensor
from holdtrue.records.dtypes import DTYPES

_COMPRESSED = {
    "sparse_csr": ("crow_indices", "col_indices", "values"),
    "sparse_bsr": ("crow_indices", "col_indices", "values"),
    "sparse_csc": ("ccol_indices", "row_indices", "values"),
    "sparse_bsc": ("ccol_indices", "row_indices", "values"),
}


class TorchFile(Struct, frozen=True, eq=False):
    """The pickle, and the storages that it refers to by number."""

    pickle: bytes
    storages: list[StoredSource]


def unfit(tensor: LazyTensor) -> str | None:
    """Why a tensor cannot be in the file; None where it can."""
    if tensor.layout not in ("strided", "quantized", "sparse_coo", *_COMPRESSED):
        return f"a {tensor.layout} tensor"
    if packed_bytes(tensor) is not None:
        return f"{tensor.dtype}, which packs several numbers into a byte"
    row = DTYPES.get(tensor.dtype)
    if row is None or (tensor.numpy is not None and tensor.numpy != row.numpy):
        return f"torch has no {tensor.numpy or tensor.dtype[:40]}"
    if tensor.layout != "quantized" and tensor.dtype in ("quint8", "qint8", "qint32"):
        return "the integers of a quantised tensor without its scale"
    wanted = _COMPRESSED.get(tensor.layout) or (
        ("indices", "values") if tensor.layout == "sparse_coo" else ()
    )
    if any(role not in tensor.components for role in wanted):
        return f"a {tensor.layout} tensor without its parts"
    inner = (unfit(part) for part in tensor.components.values())
    return next((why for why in inner if why is not None), None)


def torch_file(names: dict[str, LazyTensor], attributes: dict[str, Any]) -> TorchFile:
    """The file that holds these tensors; `attributes` are plain values, the dict's own."""
    strided: dict[str, LazyTensor] = {}
    for name, tensor in names.items():
        _gather(strided, _key("", name), tensor)
    memory = lay_over(strided)
    storages = [stored_source(storage) for storage in memory.storages]
    calls = {
        name: _call(_key("", name), tensor, memory, storages) for name, tensor in names.items()
    }
    return TorchFile(pickle_state_dict(calls, attributes), storages)


def _key(above: str, name: str) -> str:
    # With its length, so that no name can be taken for another one's component.
    return f"{above}{len(name)}:{name}"


def _gather(strided: dict[str, LazyTensor], key: str, tensor: LazyTensor) -> None:
    if tensor.layout in ("strided", "quantized"):
        strided[key] = tensor
    for role, part in tensor.components.items():
        _gather(strided, _key(key, role), part)


def _call(key: str, tensor: LazyTensor, memory: Memory, storages: list[StoredSource]) -> Call:
    parts = {
        role: _call(_key(key, role), part, memory, storages)
        for role, part in tensor.components.items()
    }
    if tensor.layout == "sparse_coo":
        coalesced = tensor.coalesced or (
            isinstance(tensor.state, dict) and tensor.state.get("is_coalesced") is True
        )
        return sparse_call(
            tensor.layout, (parts["indices"], parts["values"], tensor.shape, coalesced)
        )
    if tensor.layout in _COMPRESSED:
        roles = _COMPRESSED[tensor.layout]
        return sparse_call(tensor.layout, (*(parts[role] for role in roles), tensor.shape))
    laid = memory.places[key]
    storage = StorageReference(laid.storage, tensor.dtype, storages[laid.storage].nbytes)
    if tensor.quantizer is not None:
        q = tensor.quantizer
        rest = (
            (q.scale, q.zero_point)
            if q.scale is not None
            else (parts["scales"], parts["zero_points"], q.axis or 0)
        )
        return quantized_call(storage, laid.offset, tensor.shape, laid.stride, (q.scheme, *rest))
    # state_dict() gives detached tensors; a parameter in a whole pickled model is none of those.
    number = DTYPES[tensor.dtype].floating or tensor.dtype.startswith("complex")
    gradient = tensor.requires_grad and not tensor.parameter and number
    return tensor_call(storage, laid.offset, tensor.shape, laid.stride, gradient)
