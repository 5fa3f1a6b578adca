"""Whether two live modules are the same model beside the values of their tensors, and where not."""

import functools
import math
import types
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from msgspec import Struct
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from holdtrue.capture.buildable import ARGUMENTS
from holdtrue.capture.module import unwrap
from holdtrue.capture.raw import raw_bytes
from holdtrue.capture.recipe_nodes import is_config
from holdtrue.records.trust import class_name

_DEEPEST = 8  # containers and objects within one attribute
# Kept elsewhere, or no part of what a module computes.
_SKIPPED = frozenset(vars(nn.Module())) | {
    ARGUMENTS, "_is_full_backward_hook", "_is_hf_initialized", "_flat_weight_refs", "_backend",
    "_hparams_initial", "_trainer", "_fabric", "_log_hyperparams",
}  # fmt: skip
# Of a configuration: where it came from, not what it says.
_ORIGIN = frozenset(
    {"transformers_version", "architectures", "dtype", "torch_dtype", "_name_or_path",
     "_commit_hash", "use_timm_backbone", "use_pretrained_backbone"}
)  # fmt: skip
_MISSING: Any = object()


class Difference(Struct, frozen=True):
    """`attribute` is None where the module itself, its tensors or its children differ."""

    path: str
    what: str
    attribute: str | None = None


class Pair:
    """Two models that are compared; tensors and modules are the same when their names are."""

    def __init__(self, one: nn.Module, other: nn.Module) -> None:
        self.one, self.other = unwrap(one), unwrap(other)
        self._names = (_names(self.one), _names(self.other))

    def differences(self) -> Iterator[Difference]:
        """The topmost ones: below a module that differs nothing is compared."""
        yield from self._walk("", self.one, self.other)

    def _walk(self, path: str, one: nn.Module, other: nn.Module) -> Iterator[Difference]:
        problem = _unlike(one, other)
        if problem:
            yield Difference(path, problem)
            return
        yield from self._attributes(path, one, other)
        before, after = one._modules, other._modules
        for name in before.keys() | after.keys() if list(before) != list(after) else before:
            at = f"{path}.{name}" if path else name
            child, made = before.get(name), after.get(name)
            if child is None and made is None:
                continue
            if child is None:
                yield Difference(at, "a module that is not there any more")
            elif made is None:
                yield Difference(at, f"a {type(unwrap(child)).__name__} that was added later")
            else:
                yield from self._walk(at, unwrap(child), unwrap(made))

    def _attributes(self, path: str, one: nn.Module, other: nn.Module) -> Iterator[Difference]:
        mine, theirs = _plain(one), _plain(other)
        for name in mine.keys() | theirs.keys():
            a, b = mine.get(name, _MISSING), theirs.get(name, _MISSING)
            if not self._same(a, b, 0):
                yield Difference(path, f"{name} is {_short(a)}, built {_short(b)}", name)

    def _same(self, a: Any, b: Any, depth: int) -> bool:
        if a is b or depth > _DEEPEST:
            return True
        if isinstance(a, Tensor | nn.Module) or isinstance(b, Tensor | nn.Module):
            # Names of tensors of the state, and of registered modules; others have none.
            name, other = self._names[0].get(id(a)), self._names[1].get(id(b))
            if name is None and other is None and isinstance(a, Tensor):
                return _same_values(a, b)
            return name is not None and name == other
        if class_name(type(a)) != class_name(type(b)):
            return False
        if is_config(a):
            return self._same(_said_by(a), _said_by(b), depth + 1)
        return self._same_value(a, b, depth)

    def _same_value(self, a: Any, b: Any, depth: int) -> bool:
        if isinstance(a, float):
            return a == b or (math.isnan(a) and math.isnan(b))
        if isinstance(a, np.ndarray):
            return bool(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())
        if isinstance(a, Mapping):
            return list(a) == list(b) and all(self._same(a[k], b[k], depth + 1) for k in a)
        if isinstance(a, list | tuple):
            return len(a) == len(b) and all(
                self._same(x, y, depth + 1) for x, y in zip(a, b, strict=True)
            )
        if isinstance(a, types.FunctionType):
            cells = [[c.cell_contents for c in f.__closure__ or ()] for f in (a, b)]
            return a.__code__ == b.__code__ and self._same(cells[0], cells[1], depth + 1)
        if isinstance(a, types.MethodType):
            return a.__func__ is b.__func__ and self._same(a.__self__, b.__self__, depth + 1)
        if isinstance(a, functools.partial):
            parts = [[p.func, p.args, p.keywords] for p in (a, b)]
            return self._same(parts[0], parts[1], depth + 1)
        if hasattr(a, "__dict__") and not isinstance(a, type):
            return self._same(vars(a), vars(b), depth + 1)
        # What has no attributes to look into: a lock, say, is as good as another one.
        comparing: Any = type(a).__eq__
        return comparing is object.__eq__ or bool(a == b)


def _same_values(a: Tensor, b: Any) -> bool:
    """Of tensors that are no part of the state; one on the meta device is like no other."""
    if type(a) is not type(b) or a.is_meta or b.is_meta or a.dtype != b.dtype:
        return False
    plain = a.layout is torch.strided and not a.is_quantized and a.device == b.device
    return plain and a.shape == b.shape and raw_bytes(a.detach()) == raw_bytes(b.detach())


def _said_by(config: Any) -> dict[str, Any]:
    return {k: v for k, v in sorted(config.to_dict().items()) if k not in _ORIGIN}


def _unlike(one: nn.Module, other: nn.Module) -> str:
    if class_name(type(one)) != class_name(type(other)):
        return f"it is a {class_name(type(one))}, built {class_name(type(other))}"
    for kind in ("_parameters", "_buffers"):
        mine, theirs = (_shapes(getattr(m, kind)) for m in (one, other))
        if mine != theirs:
            changed = [n for n in {**mine, **theirs} if mine.get(n) != theirs.get(n)]
            at = changed[0] if changed else next(iter(mine))
            return f"{at} is {mine.get(at, 'absent')}, built {theirs.get(at, 'absent')}"
    if one._non_persistent_buffers_set != other._non_persistent_buffers_set:
        return "other buffers are persistent"
    return ""


def _shapes(tensors: Mapping[str, Tensor | None]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, tensor in tensors.items():
        lazy = tensor is not None and is_lazy(tensor)
        found[name] = None if tensor is None else "uninitialized" if lazy else list(tensor.shape)
    return found


def _plain(module: nn.Module) -> dict[str, Any]:
    return {n: v for n, v in vars(module).items() if n not in _SKIPPED and not _derived(module, n)}


def _derived(module: nn.Module, name: str) -> bool:
    """A tensor that a hook computes anew before every forward (weight norm, spectral norm)."""
    return f"{name}_g" in module._parameters or f"{name}_orig" in module._parameters


def _names(module: nn.Module) -> dict[int, str]:
    found: dict[int, str] = {}
    for path, owner in module.named_modules():
        found[id(owner)] = path
        for name, tensor in (*owner._parameters.items(), *owner._buffers.items()):
            if tensor is not None:
                found.setdefault(id(tensor), f"{path}.{name}")
    return found


def _short(value: Any) -> str:
    if value is _MISSING:
        return "absent"
    text = f"a {type(value).__name__}" if isinstance(value, Tensor) else repr(value)
    return text if len(text) <= 80 else text[:79] + "…"
