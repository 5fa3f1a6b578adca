"""The tensors of a part, read in one pass by several threads instead of one by one."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from holdtrue.capture.raw import dtype_named, raw_view
from holdtrue.engine.read import Fill, fill
from holdtrue.records.values import TAG
from holdtrue.restore.fresh import Fresh, dress
from holdtrue.restore.mapped import lies_as_in_memory

# Those that NumPy knows: `raw_view` takes three times as long.
_AS_NUMPY = frozenset({torch.float32, torch.float64, torch.float16, torch.int64, torch.int32,
                       torch.int16, torch.int8, torch.uint8, torch.bool})  # fmt: skip


def prefill(fresh: Fresh, keys: Iterable[str]) -> None:
    """Build what is plain of these tensors, verified. What turns out to be damaged is left to the
    one who asks for it, who reads it again and says what is wrong: nobody may ask at all."""
    fills: list[Fill] = []
    made: dict[str, torch.Tensor] = {}
    for key in dict.fromkeys(keys):
        lazy = fresh.tensors.get(key)
        dtype = None if lazy is None else dtype_named(lazy.dtype)
        if lazy is None or dtype is None or key in fresh.built or not lies_as_in_memory(lazy):
            continue
        tensor = torch.empty(lazy.shape, dtype=dtype, device="cpu")
        into = tensor if dtype in _AS_NUMPY else raw_view(tensor).reshape(-1)
        fills.append(Fill(lazy.pieces[0].storage, into.numpy()))
        made[key] = tensor
    wrong = {id(one.storage) for one in fill(fills)}
    for key, tensor in made.items():
        lazy = fresh.tensors[key]
        if id(lazy.pieces[0].storage) not in wrong:
            fresh.built[key] = dress(tensor, lazy)


def keys_in(node: Any) -> Iterator[str]:
    """The tensors that a value node names."""
    left = [node]
    while left:
        item = left.pop()
        if isinstance(item, dict):
            if item.get(TAG) == "tensor" and isinstance(item.get("v"), str):
                yield item["v"]
            left += item.values()
        elif isinstance(item, list):
            left += item
