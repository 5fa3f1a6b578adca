"""torch's nested tensors from their parts, every bound checked first: torch does not check them."""

from typing import Any

import torch
from torch import Tensor

from holdtrue.limits import limits
from holdtrue.records.dtypes import product
from holdtrue.records.inert import Record


def build_nested(parts: dict[str, Any], state: Any) -> Any:
    """A strided or jagged nested tensor; an inert record around its parts where they do not fit."""
    try:
        made = _jagged(parts, _ragged(state)) if "offsets" in parts else _strided(parts)
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError):
        made = None
    return Record(class_name="torch.nested.NestedTensor", kwargs=parts) if made is None else made


def _strided(parts: dict[str, Tensor]) -> Tensor | None:
    values, sizes = parts["values"].reshape(-1), parts["sizes"]
    if sizes.dim() != 2 or len(sizes) > limits().entries:
        return None
    rows = zip(sizes.tolist(), parts["strides"].tolist(), parts["storage_offsets"].tolist(),
               strict=True)  # fmt: skip
    # as_strided refuses what reaches past the storage; more elements than there are would repeat
    # (in Python's integers, which do not wrap).
    if bool((sizes < 0).any()) or sum(map(product, sizes.tolist())) > values.numel():
        return None
    made = [values.as_strided(size, stride, first) for size, stride, first in rows]
    return torch.nested.as_nested_tensor(made, layout=torch.strided) if made else None


def _jagged(parts: dict[str, Tensor], axis: int) -> Tensor | None:
    values, offsets, lengths = parts["values"], parts["offsets"], parts.get("lengths")
    if offsets.dim() != 1 or not len(offsets) or offsets.dtype not in (torch.int32, torch.int64):
        return None
    if lengths is not None and lengths.shape != (len(offsets) - 1,):
        return None
    if not 1 <= axis <= values.dim():
        return None
    ends = offsets[1:] if lengths is None else offsets[:-1] + lengths
    bounds = bool((offsets.diff() >= 0).all()) and int(offsets[0]) >= 0
    if (
        not bounds
        or bool((ends < offsets[:-1]).any())
        or bool((ends > values.shape[axis - 1]).any())
    ):
        return None
    return torch.nested.nested_tensor_from_jagged(values, offsets, lengths, jagged_dim=axis)


def _ragged(state: Any) -> int:
    """Which dimension is the ragged one; a transposed tensor says another than the first."""
    axis = state.get("_ragged_idx", 1) if isinstance(state, dict) else 1
    return axis if type(axis) is int else 0
