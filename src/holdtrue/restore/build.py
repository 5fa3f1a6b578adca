"""Builds a module from its recipe: on the meta device, under a budget, from trusted names only."""

import base64
import functools
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from msgspec import Struct, field
from torch import nn
from torch.nn.modules import module as registration
from torch.overrides import TorchFunctionMode

from holdtrue.capture.raw import dtype_named, raw_view
from holdtrue.capture.rng import sources
from holdtrue.errors import HoldtrueError, RestoreError, fail
from holdtrue.findings import Finding, report
from holdtrue.limits import limits
from holdtrue.records.dtypes import product
from holdtrue.records.recipe import Recipe, needs
from holdtrue.records.trust import Trust
from holdtrue.records.values import Decoding, NodeError, decode
from holdtrue.restore.fresh import torch_builders
from holdtrue.restore.resolving import Resolved, resolve

_MOST_NESTED = 64
_MANAGED = frozenset(vars(nn.Module())) | {"forward", "__class__"}
# Of a configuration: what would fetch other people's weights or code while the model is built.
_FETCHING = ("attn_implementation", "experts_implementation", "auto_map", "custom_pipelines",
             "quantization_config")  # fmt: skip


class Attempt(Struct):
    """What one building has at hand."""

    resolved: Resolved
    where: str
    depth: int = 0
    made: dict[int, Any] = field(default_factory=dict)  # modules that stand in several places
    decoding: Decoding = field(default_factory=lambda: Decoding(tensor=_no_tensor))


def construct(recipe: Recipe, agreed: Trust, where: str) -> nn.Module:
    """The module on the meta device: shapes and no values. Raises RestoreError.

    Every name is looked up before anything is called. Random states stay as they are.
    """
    try:
        resolved = resolve(needs(recipe), agreed, where)
    except NodeError as error:
        raise fail(RestoreError, where, _malformed(where, str(error))) from None
    if resolved.findings:
        raise RestoreError(report(where, resolved.findings))
    with _alone(where):
        try:
            return _construct(recipe, resolved, where)
        except (NodeError, RecursionError) as error:
            raise fail(RestoreError, where, _malformed(where, str(error))) from None


def _construct(recipe: Recipe, resolved: Resolved, where: str) -> nn.Module:
    module = _decoded(recipe.node, resolved, where)
    if not isinstance(module, nn.Module):
        raise NodeError("the recipe does not build a module")
    for path, node in recipe.modules.items():
        parent, _, name = path.rpartition(".")
        holder = _at(module, parent)
        made = None if node is None else _decoded(node, resolved, where)
        if made is None:
            holder._modules.pop(name, None)
        elif isinstance(made, nn.Module) and name not in _MANAGED:
            holder.register_module(name, made)
        else:
            raise NodeError(f"{path} is not built as a module")
    for path, nodes in recipe.attributes.items():
        holder = _at(module, path)
        for name, node in nodes.items():
            if name in _MANAGED or callable(getattr(type(holder), name, None)):
                raise NodeError(f"{path}.{name} is not for a recipe to set")
            # Past properties and __setattr__: the value, and no code.
            vars(holder)[name] = _decoded(node, resolved, where)
    return module


def _at(module: nn.Module, path: str) -> nn.Module:
    for name in path.split(".") if path else ():
        child = module._modules.get(name)
        if child is None:
            raise NodeError(f"there is no module {path!r}")
        module = child
    return module


def _decoded(node: Any, resolved: Resolved, where: str) -> Any:
    attempt = Attempt(resolved, where)
    d = attempt.decoding
    d.agreed = Trust(resolved.classes)
    d.builders = {**torch_builders(), **{k: _bound(b, attempt) for k, b in _BUILDERS.items()}}
    value = decode(node, d)
    if d.unmatched:
        raise NodeError("it holds what cannot be built: " + ", ".join(n for _, n in d.unmatched))
    return value


def _bound(builder: Callable[[Attempt, Any], Any], attempt: Attempt) -> Callable[[Any], Any]:
    return lambda payload: builder(attempt, payload)


def _build(attempt: Attempt, payload: Any) -> Any:
    attempt.depth += 1
    if attempt.depth > _MOST_NESTED:
        raise NodeError(f"modules are nested deeper than {_MOST_NESTED} constructors")
    args = decode(payload.get("args", []), attempt.decoding)
    kwargs = decode(payload.get("kwargs", {}), attempt.decoding)
    attempt.depth -= 1
    cls = attempt.resolved.classes[payload["class"]]
    try:
        made = cls(*args, **kwargs)
    except (NodeError, HoldtrueError):
        raise
    except Exception as error:  # the constructor's own code
        found = _raised(attempt.where, payload["class"], error)
        raise fail(RestoreError, attempt.where, found) from error
    if "id" in payload:
        attempt.made[payload["id"]] = made
    return made


def _config(attempt: Attempt, payload: Any) -> Any:
    values = decode(payload["values"], attempt.decoding)
    if not isinstance(values, dict):
        raise NodeError("a configuration is not a dict")
    cls: Any = attempt.resolved.classes[payload["class"]]
    return cls.from_dict(_harmless(values))


def _harmless(values: Any) -> Any:
    """A configuration that fetches nothing when a model is built from it: no weights of a backbone
    (the checkpoint has them), no kernels or classes from a repository."""
    if isinstance(values, list):
        return [_harmless(v) for v in values]
    if not isinstance(values, dict):
        return values
    made = {
        k: _harmless(v)
        for k, v in values.items()
        if not any(str(k).strip("_").startswith(name) for name in _FETCHING)
        or (isinstance(v, str) and v.isidentifier())
    }
    if "use_pretrained_backbone" in made:
        made["use_pretrained_backbone"] = False
    return made


def _partial(attempt: Attempt, payload: Any) -> Any:
    function = decode(payload["of"], attempt.decoding)
    if not callable(function):
        raise NodeError("a partial of nothing that can be called")
    args = decode(payload["args"], attempt.decoding)
    return functools.partial(function, *args, **decode(payload["kwargs"], attempt.decoding))


def _empty(_: Attempt, payload: Any) -> Any:
    made = torch.empty(_shape(payload), dtype=_dtype(payload), device="meta")
    if not payload.get("parameter"):
        return made
    return nn.Parameter(made, requires_grad=made.is_floating_point() or made.is_complex())


def _inline(_: Attempt, payload: Any) -> Any:
    data, shape = base64.b64decode(payload["data"], validate=True), _shape(payload)
    if "numpy" in payload:
        return np.frombuffer(data, np.dtype(payload["numpy"])).reshape(shape).copy()
    made = torch.empty(shape, dtype=_dtype(payload), device="cpu")
    if made.numel() * made.itemsize != len(data):
        raise NodeError("an inline tensor does not have its bytes")
    if data:
        raw = raw_view(made)
        raw.copy_(torch.frombuffer(bytearray(data), dtype=raw.dtype).reshape(raw.shape))
    return made


def _shape(payload: Any) -> list[int]:
    shape = payload["shape"]
    if not all(type(n) is int and 0 <= n < 1 << 40 for n in shape) or product(shape) >= 1 << 48:
        raise NodeError("a tensor of a shape that cannot be")
    return list(shape)


def _dtype(payload: Any) -> torch.dtype:
    found = dtype_named(str(payload["dtype"]))
    if found is None:
        raise NodeError(f"this torch has no dtype {str(payload['dtype'])[:40]!r}")
    return found


_BUILDERS: dict[str, Callable[[Attempt, Any], Any]] = {
    "build": _build,
    "config": _config,
    "function": lambda attempt, name: attempt.resolved.functions[name],
    "again": lambda attempt, number: attempt.made[number],
    "partial": _partial,
    "empty": _empty,
    "inline": _inline,
}


_RANDOM = frozenset(
    getattr(torch.Tensor, name)
    for name in ("normal_", "uniform_", "random_", "bernoulli_", "exponential_", "geometric_",
                 "cauchy_", "log_normal_")
)  # fmt: skip


class _Counting(TorchFunctionMode):
    """Counts torch calls: a recipe with a billion layers ends here, and not in an hour."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where
        self.left = limits().build_calls
        self.thread = threading.get_ident()

    def one(self) -> None:
        if threading.get_ident() != self.thread:
            return
        self.left -= 1
        if self.left < 0:
            raise fail(RestoreError, self.where, _too_much(self.where))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.one()
        # Random numbers without values: nothing to do. torch would import its decompositions for
        # them, which takes seconds.
        if func in _RANDOM and args[0].device.type == "meta":
            return args[0]
        return func(*args, **(kwargs or {}))


@contextmanager
def _alone(where: str) -> Iterator[None]:
    """On the meta device, counted, quiet, and without a trace in the random states."""
    states = {name: source.get() for name, source in sources().items()}
    counting = _Counting(where)

    def count(*_: Any) -> None:
        counting.one()

    hook = registration.register_module_module_registration_hook(count)
    try:
        with torch.device("meta"), counting, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        hook.remove()
        for name, source in sources().items():
            if name in states:
                source.set(states[name])


def _no_tensor(key: str) -> Any:
    raise NodeError(f"a recipe holds the tensor {key[:80]!r}")


def _malformed(where: str, why: str) -> Finding:
    return Finding(
        code="recipe-damaged",
        severity="error",
        where=where,
        what="the recipe for this module does not follow the format",
        why=why,
        fix="build the model in your own code, then ck.restore(model=model)",
    )


def _too_much(where: str) -> Finding:
    return Finding(
        code="over-budget",
        severity="error",
        where=where,
        what="building this module was stopped: it takes more than is allowed",
        why=f"more than {limits().build_calls:,} calls of torch",
        fix="if the model is really that large: HOLDTRUE_BUILD_CALLS=… , or build it in your code",
    )


def _raised(where: str, name: str, error: Exception) -> Finding:
    return Finding(
        code="build-failed",
        severity="error",
        where=where,
        what=f"{name} could not be built from its recorded arguments",
        why=f"its constructor raised {type(error).__name__}: {error}"[:500],
        fix="the class was changed since; build the model in your own code, "
        "then ck.restore(model=model)",
    )
