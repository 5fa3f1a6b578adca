"""Everything about modules, optimizers and their tensors that a save's plan depends on, as plain
facts that can be compared with those of the save before.

Nothing is taken from memory of earlier saves: each fact is read from the live objects again. No
tensor is held, so that one that was replaced is freed at once; and no fact is an `id`, which may
be used twice.
"""

from collections.abc import Mapping
from functools import lru_cache
from itertools import chain
from operator import itemgetter, methodcaller
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from msgspec import Struct
from torch import Tensor, nn

from holdtrue.capture.installed import is_installed
from holdtrue.capture.module import has_custom_state, has_extra_state, has_getstate

_PLAIN = {Tensor, nn.Parameter}
# Unchanged as long as they are the same objects.
_FIXED = frozenset({type(None), bool, int, float, str, bytes, complex, torch.dtype, torch.device,
                    type, FunctionType, BuiltinFunctionType, torch.Size})  # fmt: skip
_EXACT = frozenset({bool, int, str})  # two objects that are equal stand for the same
_OWN = ("_parameters", "_buffers", "_modules")
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_LARGEST = 100  # items of a list in an attribute
_tensor: Any = Tensor
_FACTS = (
    Tensor.data_ptr,
    _tensor.shape.__get__,
    Tensor.stride,
    _tensor.dtype.__get__,
    _tensor.device.__get__,
    _tensor.requires_grad.__get__,
    Tensor.storage_offset,
    Tensor.is_neg,
)


class UnusualError(Exception):
    """Something that these facts do not describe; it is captured anew at each save."""


class Seen(Struct, frozen=True, eq=False):
    """What one look found: `facts` to compare, and the live tensors that they are of."""

    facts: list[Any]
    values: list[Any]  # attributes, compared as objects
    tensors: list[Tensor]


def look_at_module(root: nn.Module, odd: frozenset[int] = frozenset()) -> Seen:
    """The facts of a module tree. Attributes of the `odd` ones, by position, are left out.

    Raises UnusualError."""
    modules = live_modules(root)
    dicts = [vars(module) for module in modules]
    for one in {type(module): module for module in modules}.values():
        if has_extra_state(one) or has_custom_state(one) or has_getstate(one):
            raise UnusualError("state of its own")
    keys = [tuple(own) for own in dicts]
    facts: list[Any] = [list(map(type, modules)), keys]
    tensors: list[Tensor] = []
    for name in _OWN:
        held = [own[name] for own in dicts]
        inside = list(chain.from_iterable(map(dict.values, held)))
        facts += [
            list(map(len, held)),
            list(chain.from_iterable(held)),
            [v is None for v in inside],
        ]
        if name != "_modules":
            tensors += [v for v in inside if v is not None]
    facts.append([frozenset(own["_non_persistent_buffers_set"]) for own in dicts])
    values: list[Any] = []
    for position, (own, names) in enumerate(zip(dicts, keys, strict=True)):
        if position not in odd:
            values += _attributes(names)(own)
            if own[_HOOKS[0]] or own[_HOOKS[1]] or own[_HOOKS[2]] or own[_HOOKS[3]]:
                raise UnusualError("hooks")
    if not set(map(type, values)) <= _FIXED:
        values = [v if type(v) in _FIXED else _frozen(v) for v in values]
    return Seen(facts, values, tensors)


def look_at_optimizer(optimizer: torch.optim.Optimizer, places: Mapping[int, int]) -> Seen:
    """The facts of an optimizer; `places` numbers the tensors of other parts by `id`.

    Settings of groups are not among them: they are plain values. Raises UnusualError."""
    groups = [group["params"] for group in optimizer.param_groups]
    parameters = list(chain.from_iterable(groups))
    order = dict(places)
    for parameter in parameters:
        order.setdefault(id(parameter), len(order))
    owners, states = list(optimizer.state), list(optimizer.state.values())
    if not set(map(type, owners)) <= _PLAIN or not set(map(type, states)) <= {dict}:
        raise UnusualError("state of something else than a parameter")
    values = list(chain.from_iterable(map(dict.values, states)))
    kinds = list(map(type, values))
    if not set(kinds) <= {Tensor, nn.Parameter, type(None)}:
        raise UnusualError("state that is not a tensor")
    facts = [
        type(optimizer),
        list(map(len, groups)),
        [order[id(parameter)] for parameter in parameters],
        [order.get(id(owner)) for owner in owners],
        list(map(len, states)),
        list(chain.from_iterable(states)),
        kinds,
    ]
    held = [value for value in values if value is not None]
    return Seen(facts, [], parameters + held)


def facts_of(tensors: list[Tensor]) -> list[Any]:
    """Where each tensor's memory is and how it is read. Raises UnusualError."""
    kinds = list(map(type, tensors))
    if not set(kinds) <= _PLAIN:
        raise UnusualError("a tensor of another class")
    try:
        facts: list[Any] = [list(map(read, tensors)) for read in _FACTS]
        dtypes = set(facts[3])
        if any(dtype.is_complex for dtype in dtypes):
            facts.append(list(map(methodcaller("is_conj"), tensors)))
    except (RuntimeError, NotImplementedError) as error:  # sparse ones have no address
        raise UnusualError(str(error)) from error
    return [kinds, *facts]


def same(before: Seen, now: Seen) -> bool:
    """Whether two looks at one part found the same, its tensors apart: see `facts_of`."""
    return before.facts == now.facts and same_values(before.values, now.values)


def same_values(before: list[Any], now: list[Any]) -> bool:
    """Exactly the same: 1 is not True, and 0.0 is not -0.0."""
    return len(before) == len(now) and all(
        a is b or (type(a) is type(b) and (type(a) in _EXACT or type(a) is _Frozen) and a == b)
        for a, b in zip(before, now, strict=True)
    )


def odd_modules(root: nn.Module) -> frozenset[int]:
    """The positions of modules whose attributes, or hooks, say more than plain values do."""
    odd = set()
    for position, module in enumerate(live_modules(root)):
        own = vars(module)
        try:
            if any(own[name] for name in _HOOKS):
                raise UnusualError("hooks")
            for value in _attributes(tuple(own))(own):
                if type(value) is FunctionType and not is_installed(value):
                    raise UnusualError("code of the user's")
                if type(value) not in _FIXED:
                    _frozen(value)
        except UnusualError:
            odd.add(position)
    return frozenset(odd)


def live_modules(root: nn.Module) -> list[nn.Module]:
    """Every module, shared ones once for each path, in the order of `walk`.

    Raises UnusualError for modules that contain one another."""
    found: list[nn.Module] = []
    pending = [root]
    while pending:
        module = pending.pop()
        found.append(module)
        children = module._modules
        if children:
            pending += [child for child in reversed(children.values()) if child is not None]
            if len(pending) > 1_000_000 or len(found) > 10_000_000:
                raise UnusualError("modules without end")
    return found


@lru_cache(maxsize=4096)
def _attributes(names: tuple[str, ...]) -> Any:
    """Reads what is not torch's own bookkeeping; `training` twice, so that it is always a tuple."""
    wanted = [n for n in names if n not in _INTERNALS]
    return itemgetter("training", "training", *wanted)


_INTERNALS = frozenset(vars(nn.Module())) | {"_is_full_backward_hook", "_compiled_call_impl"}


class _Frozen(tuple[Any, ...]):
    """A list or tuple of plain values, and their types, as it was."""

    __slots__ = ()


def _frozen(value: Any) -> _Frozen:
    if type(value) not in (list, tuple) or len(value) > _LARGEST:
        raise UnusualError(f"an attribute that is a {type(value).__name__}")
    if not set(map(type, value)) <= {bool, int, str, type(None)}:
        raise UnusualError("a list of other things than plain values")
    return _Frozen((type(value), *map(type, value), *value))
