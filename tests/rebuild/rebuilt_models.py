"""Whether a rebuilt model is the saved one: bit for bit, ties and flags included."""

from collections import defaultdict
from typing import Any

import torch
from torch import nn


def named(model: nn.Module) -> dict[str, torch.Tensor]:
    found = dict(model.named_parameters(remove_duplicate=False))
    found.update(model.named_buffers(remove_duplicate=False))
    return found


def ties(model: nn.Module) -> set[frozenset[str]]:
    groups: dict[int, set[str]] = defaultdict(set)
    for name, tensor in named(model).items():
        groups[id(tensor)].add(name)
    return {frozenset(g) for g in groups.values() if len(g) > 1}


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    if (a.dtype, a.shape, a.stride()) != (b.dtype, b.shape, b.stride()):
        return False
    raw = [t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (a, b)]
    return torch.equal(*raw)


def flat(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for v in value.values() for t in flat(v)]
    if isinstance(value, list | tuple):
        return [t for v in value for t in flat(v)]
    return []


def assert_same_model(saved: nn.Module, built: nn.Module) -> None:
    mine, theirs = named(saved), named(built)
    assert list(mine) == list(theirs)
    for name, tensor in mine.items():
        assert same_bits(tensor, theirs[name]), name
        assert tensor.requires_grad == theirs[name].requires_grad, name
        assert type(tensor) is type(theirs[name]), name
    assert ties(saved) == ties(built)
    before = {path: (type(m).__qualname__, m.training) for path, m in saved.named_modules()}
    after = {path: (type(m).__qualname__, m.training) for path, m in built.named_modules()}
    assert before == after
    persistent = [{n: m._non_persistent_buffers_set for n, m in x.named_modules()}
                  for x in (saved, built)]  # fmt: skip
    assert persistent[0] == persistent[1]
    for module in built.modules():
        for attribute, value in vars(module).items():
            for tensor in flat(value):
                assert tensor.device.type != "meta", attribute


def assert_same_outputs(saved: nn.Module, built: nn.Module, *args: Any, **kwargs: Any) -> None:
    outputs = []
    for model in (saved, built):
        torch.manual_seed(7)
        with torch.no_grad():
            outputs.append(flat(model(*args, **kwargs)))
    assert outputs[0]
    assert all(same_bits(a, b) for a, b in zip(*outputs, strict=True))
