"""torch's values without parts of their own to value nodes, beside those of `leaf_nodes`."""

from collections.abc import Callable
from typing import Any

import msgspec
import torch

from holdtrue.records import leaf_nodes
from holdtrue.records.leaf_nodes import b64, tagged
from holdtrue.records.values import TAG


def generator_node(value: torch.Generator) -> dict[str, Any]:
    """The device and state of a generator."""
    state = b64(value.get_state().numpy().tobytes())
    return {TAG: "generator", "v": [str(value.device), state]}


LEAVES: dict[type, Callable[[Any], Any]] = {
    **leaf_nodes.LEAVES,
    torch.dtype: tagged("dtype", lambda v: str(v).removeprefix("torch.")),
    torch.device: tagged("device", str),
    torch.layout: tagged("layout", lambda v: str(v).removeprefix("torch.")),
    torch.memory_format: tagged("memory_format", lambda v: str(v).removeprefix("torch.")),
}


def leaf_node(value: Any) -> Any:
    """The node of a value that holds no others; msgspec.UNSET for anything else."""
    if value is None or type(value) is bool:
        return value
    leaf = LEAVES.get(type(value))
    return msgspec.UNSET if leaf is None else leaf(value)
