"""Targets on the meta device get memory to be filled, and lose it again where the restore fails.

The tensors stay the objects that they are, so ties, optimizers and attributes follow: what they
hold is exchanged by `torch.utils.swap_tensors`. `Module.to_empty` was rejected: it makes other
parameters, which an optimizer does not have, and it cannot be taken back.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from holdtrue.capture.module import entries
from holdtrue.restore.materializing import untouched
from holdtrue.restore.plan import Plan

CODE = "target-on-meta"  # the finding of a tensor that would be filled, had it memory
_CLASSES = (Tensor, nn.Parameter)
_swap: Callable[[Tensor, Tensor], None] = torch.utils.swap_tensors
_Pairs = dict[int, tuple[Tensor, Tensor]]  # by the id of the tensor on meta


@contextmanager
def memory_for(targets: Mapping[str, Any], plan: Plan) -> Iterator[frozenset[int]]:
    """Memory on the CPU for the tensors of modules that the plan found on meta: its addresses. It
    is taken back where the block raises. None is given, and the plan stands, where one of them
    cannot have any: of another class, or held by a view or a weak reference."""
    places = {finding.where for finding in plan.findings if finding.code == CODE}
    modules = {n: t for n, t in targets.items() if places and isinstance(t, nn.Module)}
    pairs = _pairs(modules, places)
    if not pairs or not _exchange(modules, pairs):
        yield frozenset()
        return
    try:
        yield frozenset(tensor.data_ptr() for tensor, _ in pairs.values())
    except BaseException:
        _exchange(modules, pairs)
        raise


def fills_only(plan: Plan, addresses: frozenset[int]) -> bool:
    """Whether the plan changes nothing but memory at these addresses, which nobody has seen yet."""
    return (
        bool(addresses)
        and not plan.actions
        and all(c.into.data_ptr() in addresses or not c.into.numel() for c in plan.copies)
    )


def _pairs(modules: Mapping[str, nn.Module], places: set[str]) -> _Pairs:
    """Each tensor and what it is exchanged for; nothing where one of the places is left out."""
    pairs: _Pairs = {}
    left = set(places)
    for part, module in modules.items():
        for entry in entries(module):
            where, tensor = f"{part}/{entry.name}", entry.tensor
            plain = type(tensor) in _CLASSES and tensor.layout is torch.strided
            if where not in places or not plain or tensor.is_quantized:
                continue
            left.discard(where)
            if id(tensor) not in pairs:
                pairs[id(tensor)] = tensor, _like(tensor)
    return {} if left else pairs


def _like(tensor: Tensor) -> Tensor:
    made = untouched(tuple(tensor.shape), tensor.stride(), tensor.dtype)
    if isinstance(tensor, nn.Parameter):
        made = nn.Parameter(made, requires_grad=tensor.requires_grad)
    elif tensor.requires_grad:
        made.requires_grad_()
    vars(made).update(vars(tensor))  # what others have written on it
    return made


def _exchange(modules: Mapping[str, nn.Module], pairs: _Pairs) -> bool:
    """Do so for all of them, or none: False where torch refuses one."""
    rnns = [m for top in modules.values() for m in top.modules() if isinstance(m, nn.RNNBase)]
    for rnn in rnns:
        rnn._flat_weight_refs = []  # weak references to its parameters, which torch refuses
    done: list[tuple[Tensor, Tensor]] = []
    try:
        for pair in pairs.values():
            _swap(*pair)
            done.append(pair)
    except RuntimeError:
        for pair in done:
            _swap(*pair)
        return False
    finally:
        for rnn in rnns:
            rnn._init_flat_weights()
    return True
