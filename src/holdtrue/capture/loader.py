"""What is kept of a plain DataLoader: the generators it draws from, and what it should match.

A plain DataLoader does not know its place in an epoch, so it is resumed at the start of one.
Loaders with a `state_dict` of their own (torchdata's StatefulDataLoader) are kept by that instead.
"""

from typing import Any

import torch
from torch.utils.data import DataLoader

from holdtrue.capture.tensors import TensorSet
from holdtrue.capture.values import ValueEncoder


def is_plain_loader(value: Any) -> bool:
    return isinstance(value, DataLoader) and not hasattr(value, "state_dict")


def generators(loader: "DataLoader[Any]") -> dict[str, torch.Generator]:
    """The loader's own generators by place; empty when it draws from torch's global one."""
    places = {
        "loader": loader,
        "sampler": loader.sampler,
        "batch_sampler": loader.batch_sampler,
        "batch_sampler.sampler": getattr(loader.batch_sampler, "sampler", None),
    }
    found = {name: getattr(place, "generator", None) for name, place in places.items()}
    return {k: v for k, v in found.items() if isinstance(v, torch.Generator)}


def settings(loader: "DataLoader[Any]") -> dict[str, Any]:
    """What decides which samples a batch holds."""
    dataset: Any = loader.dataset
    return {
        "samples": len(dataset) if hasattr(dataset, "__len__") else None,
        "batch_size": loader.batch_size,
        "drop_last": loader.drop_last,
        "sampler": type(loader.sampler).__name__,
        "workers": loader.num_workers,
    }


def capture_loader(loader: "DataLoader[Any]", into: TensorSet) -> Any:
    """A value node with the settings and the generators' states."""
    state = {"settings": settings(loader), "generators": generators(loader)}
    return ValueEncoder(into).encode(state, "")
