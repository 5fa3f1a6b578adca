"""From a module on the meta device to one with memory, as the checkpoint says, not yet filled.

Memory is asked for once, with the dtype and strides that were saved, and no initialisation runs:
what was saved is read straight into it. `Module.to_empty` was rejected: it unties, and allocates in
the dtype of the constructor.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from holdtrue.capture.module import Entry, entries
from holdtrue.capture.raw import dtype_named
from holdtrue.engine.buffers import anonymous
from holdtrue.errors import RestoreError, fail
from holdtrue.findings import Finding, several
from holdtrue.formats.view import LazyTensor
from holdtrue.limits import MIB
from holdtrue.records.dtypes import contiguous_stride, extent, product
from holdtrue.restore.fresh import Fresh, unusable
from holdtrue.restore.mapped import Maps

_LARGE = 4 * MIB  # two large pages: less would gain little
_DEEPEST = 6  # containers within an attribute in which tensors of the state are looked for


def materialize(
    module: nn.Module, part: str, names: Mapping[str, str], tensors: Fresh, maps: Maps | None
) -> None:
    """Give every parameter and buffer that the checkpoint has memory of its own; tied ones share.
    With `maps`, the file is that memory wherever it can be.

    `names` maps names to tensor keys. Raises RestoreError when one is left without values.
    """
    made: dict[str, Tensor] = {}
    exchanged: dict[int, Tensor] = {}
    homeless: list[str] = []
    for entry in list(entries(module)):
        if not _is_meta(entry.tensor):
            continue
        key = names.get(entry.name)
        if key is None:
            homeless.append(f"{part}/{entry.name}")
            continue
        lazy = tensors.tensors[key]
        if not nn.parameter.is_lazy(entry.tensor) and lazy.shape != tuple(entry.tensor.shape):
            continue  # the restore says which shapes differ
        if key not in made:
            made[key] = _memory(key, lazy, entry, tensors, maps)
        exchanged[id(entry.tensor)] = made[key]
        _put(entry, made[key])
    if homeless:
        raise fail(RestoreError, part, _without_values(homeless))
    for owner in module.modules():
        _follow(owner, exchanged)


def _is_meta(tensor: Tensor) -> bool:
    return tensor.device.type == "meta"


def _memory(key: str, lazy: LazyTensor, entry: Entry, tensors: Fresh, maps: Maps | None) -> Tensor:
    plain = lazy.layout == "strided" and lazy.class_name is None and lazy.overlap is None
    if not plain:
        made = tensors(key)
        if not isinstance(made, Tensor):
            raise unusable(key, f"it is of the class {lazy.class_name}, which is not trusted")
        return _as_parameter(made, lazy) if entry.is_parameter else made
    dtype = dtype_named(lazy.dtype)
    if dtype is None:
        made = tensors(key)  # says what is lacking
        return _as_parameter(made, lazy)
    if min(lazy.stride, default=0) < 0 or extent(lazy.shape, lazy.stride) > product(lazy.shape):
        raise unusable(key, f"its strides {lazy.stride} do not fit {lazy.shape}")
    empty = None if maps is None else maps.tensor(lazy)
    if empty is None:
        empty = untouched(lazy.shape, lazy.stride, dtype)
    if entry.is_parameter:
        return _as_parameter(empty, lazy)
    return empty.requires_grad_() if lazy.requires_grad else empty


def untouched(shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """New memory, of large tensors in large pages: most of what a fresh load takes is the system's
    handing out of memory, page by page. Each tensor has memory of its own, which goes with it."""
    count = product(shape)
    if count * dtype.itemsize < _LARGE or stride != contiguous_stride(shape):
        return torch.empty_strided(shape, stride, dtype=dtype, device="cpu")
    memory = anonymous(count * dtype.itemsize)
    return torch.frombuffer(memory, dtype=dtype, count=count).view(shape)


def _as_parameter(tensor: Tensor, lazy: LazyTensor) -> Tensor:
    if isinstance(tensor, nn.Parameter):
        return tensor
    return nn.Parameter(tensor, requires_grad=lazy.requires_grad)


def _put(entry: Entry, tensor: Tensor) -> None:
    home = entry.owner._parameters if entry.is_parameter else entry.owner._buffers
    home[entry.attribute] = tensor  # type: ignore[assignment]


def _follow(owner: nn.Module, exchanged: Mapping[int, Tensor]) -> None:
    """Attributes that held a tensor of the state beside its registration hold it again."""
    attributes = vars(owner)
    for name, value in attributes.items():
        if name not in ("_parameters", "_buffers", "_modules"):
            attributes[name] = _exchange(value, exchanged, 0)
    if isinstance(owner, nn.RNNBase):
        owner._init_flat_weights()  # weak references to its parameters
    for hook in owner._forward_pre_hooks.values():
        # Old-style weight and spectral norm keep the weight they computed last.
        computed = getattr(hook, "name", None)
        if isinstance(computed, str) and hasattr(hook, "compute_weight"):
            attributes.pop(computed, None)


def _exchange(value: Any, exchanged: Mapping[int, Tensor], depth: int) -> Any:
    if isinstance(value, Tensor):
        return exchanged.get(id(value), value)
    if depth < _DEEPEST and type(value) is list:
        value[:] = [_exchange(v, exchanged, depth + 1) for v in value]
    elif depth < _DEEPEST and type(value) is dict:
        for key, item in value.items():
            value[key] = _exchange(item, exchanged, depth + 1)
    elif depth < _DEEPEST and type(value) is tuple:
        return tuple(_exchange(v, exchanged, depth + 1) for v in value)
    return value


def _without_values(places: list[str]) -> Finding:
    return Finding(
        code="missing-keys",
        severity="error",
        where=places[0],
        what=f"the file lacks {len(places)} of the tensors of the module that its recipe builds",
        why="they would hold whatever the memory held: the class gained them since, or the file "
        "leaves them out",
        fix="build the model in your own code, then ck.restore(model=model)",
        places=several(places),
    )
