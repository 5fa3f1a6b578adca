"""What is kept of a module: parameters, buffers (persistent or not), flags, and its own extras.

Parameters and buffers are taken from the modules themselves, not from `state_dict()`: that leaves
out non-persistent buffers, and its hooks may rename or drop what is really there.
"""

from collections.abc import Collection, Iterator
from typing import Any

from msgspec import Struct
from torch import Tensor, nn

from holdtrue.capture.tensors import TensorSet, add_tensor
from holdtrue.capture.values import ValueEncoder
from holdtrue.findings import Finding
from holdtrue.records.parts import CustomState, ModuleState
from holdtrue.records.trust import class_name

# Wrappers that add a name of their own to every key: class → attribute of the wrapped module.
# By name, so that none of these libraries has to be imported.
_WRAPPERS = {
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
    "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel": (
        "_fsdp_wrapped_module"
    ),
    "torch.distributed.algorithms._checkpoint.checkpoint_wrapper.ActivationWrapper": (
        "_checkpoint_wrapped_module"
    ),
    "lightning.fabric.wrappers._FabricModule": "_forward_module",
    "lightning_fabric.wrappers._FabricModule": "_forward_module",
    "deepspeed.runtime.engine.DeepSpeedEngine": "module",
}


# Their `__getstate__` drops what cannot be copied; it says nothing about what is worth keeping.
_LIBRARIES = frozenset({"torch", "lightning", "pytorch_lightning"})


_DEPTH = 900  # of modules in modules, as far as torch itself can follow


class Entry(Struct, frozen=True, eq=False, gc=False):
    """A parameter or buffer where it stands: `owner._parameters[attribute]`, or `_buffers`."""

    name: str
    owner: nn.Module
    attribute: str
    tensor: Tensor
    persistent: bool

    @property
    def is_parameter(self) -> bool:
        return self.attribute in self.owner._parameters


def layers(module: nn.Module) -> Iterator[nn.Module]:
    """The module, what it wraps if it is a known wrapper, and so on to the innermost."""
    while True:
        yield module
        inner = next(
            (_WRAPPERS[n] for c in type(module).__mro__ if (n := class_name(c)) in _WRAPPERS), None
        )
        wrapped = getattr(module, inner, None) if inner else None
        if not isinstance(wrapped, nn.Module):
            return
        module = wrapped


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside any known wrappers."""
    *_, inner = layers(module)
    return inner


def walk(
    module: nn.Module, path: str = "", *, wrappers: bool = False
) -> Iterator[tuple[str, nn.Module]]:
    """Every module with its clean path, shared ones once for each path.

    Wrappers are looked through, or come as well, under the path of what they wrap.
    """
    plain: set[type] = set()  # classes that wrap nothing
    pending = [(path, module, 0)]
    while pending:
        path, module, depth = pending.pop()
        if depth > _DEPTH:
            raise RecursionError("the modules contain one another")
        if type(module) not in plain:
            *around, inner = layers(module)
            if inner is module:
                plain.add(type(module))
            elif wrappers:
                yield from ((path, wrapper) for wrapper in around)
            module = inner
        yield path, module
        if module._modules:
            at = f"{path}." if path else ""
            children = [(at + n, m, depth + 1) for n, m in module._modules.items() if m is not None]
            pending += reversed(children)


def entries(module: nn.Module) -> Iterator[Entry]:
    """Every parameter and buffer under its clean name, in the order of `state_dict()`."""
    for path, owner in walk(module):
        if not owner._parameters and not owner._buffers:
            continue
        prefix = f"{path}." if path else ""
        for attribute, tensor in (*owner._parameters.items(), *owner._buffers.items()):
            if tensor is not None:
                persistent = attribute not in owner._non_persistent_buffers_set
                yield Entry(prefix + attribute, owner, attribute, tensor, persistent)


def capture_module(module: nn.Module, into: TensorSet, *, gradients: bool = False) -> ModuleState:
    """The state of a module part; its tensors go `into` the set. Gradients only when asked for."""
    encoder = ValueEncoder(into)
    state = ModuleState(gradients={} if gradients else None)
    for entry in entries(module):
        state.entries[entry.name] = add_tensor(
            into, entry.tensor, entry.name, persistent=entry.persistent, encode=encoder.encode_apart
        )
        gradient = entry.tensor.grad if gradients and entry.is_parameter else None
        if gradient is not None and state.gradients is not None:
            state.gradients[entry.name] = add_tensor(
                into,
                gradient.detach(),
                f"{entry.name}#grad",
                persistent=False,  # in a file apart: nothing that reads weights expects them
                encode=encoder.encode_apart,
            )
    flags: dict[str, bool] = {}
    for path, owner in walk(module):
        flags[path] = owner.training
        parent = path.rpartition(".")[0]
        if not path or flags.get(parent) != owner.training:
            state.training[path] = owner.training
        _capture_extras(owner, path, state, into)
    return state


def _capture_extras(owner: nn.Module, path: str, state: ModuleState, into: TensorSet) -> None:
    at = f"{path}." if path else ""
    if has_extra_state(owner):
        value, node_path = owner.get_extra_state(), f"{at}extra_state"
        state.extra[path] = ValueEncoder(into).encode_state(value, node_path)
    if has_custom_state(owner):
        own: dict[str, Any] = {}
        owner._save_to_state_dict(own, "", True)
        standard = {**owner._parameters, **owner._buffers}
        odd = {k: v for k, v in own.items() if standard.get(k) is not v and k != "_extra_state"}
        if odd:
            nodes = {k: ValueEncoder(into).encode_state(v, f"{at}{k}") for k, v in odd.items()}
            state.custom[path] = CustomState(getattr(owner, "_version", None), nodes)
    if has_getstate(owner):
        try:
            taken: Any = owner
            value = own_state(taken.__getstate__())
        except Exception as error:  # the module's own code
            into.findings.append(_getstate_failed(f"{into.part}/{path}", owner, error))
            return
        state.getstate[path] = ValueEncoder(into).encode_state(value, f"{at}getstate")


def has_extra_state(module: nn.Module) -> bool:
    return type(module).get_extra_state is not nn.Module.get_extra_state


def has_custom_state(module: nn.Module) -> bool:
    return type(module)._save_to_state_dict is not nn.Module._save_to_state_dict


def has_getstate(module: nn.Module) -> bool:
    """True for a user's class that says itself what is to be kept of it."""
    cls = type(module)
    giver = next(c for c in cls.__mro__ if "__getstate__" in vars(c))
    library = giver is object or giver.__module__.partition(".")[0] in _LIBRARIES
    return not library and hasattr(cls, "__setstate__")


# What torch keeps on a module for itself, and `holdtrue.buildable` for the recipe.
INTERNALS = frozenset(vars(nn.Module())) | {"_is_full_backward_hook", "_holdtrue_arguments"}


def own_state(state: Any) -> Any:
    """What `__getstate__` gave, without torch's bookkeeping and what is kept elsewhere."""
    if not isinstance(state, dict):
        return state
    return {k: v for k, v in state.items() if k not in INTERNALS and not isinstance(v, nn.Module)}


def names_of_own_state(module: nn.Module) -> Collection[str]:
    """The attributes that a class's own `__getstate__` keeps; all, where it gives no dict."""
    if not has_getstate(module):
        return ()
    try:
        taken: Any = module
        state = own_state(taken.__getstate__())
    except Exception:  # the module's own code; the save itself says so
        return ()
    return state.keys() if isinstance(state, dict) else vars(module).keys()


def restored_state(module: nn.Module, state: Any) -> Any:
    """The other way: what `__setstate__` is to receive, with the module's live internals."""
    if not isinstance(state, dict):
        return state
    internals = {k: v for k, v in vars(module).items() if k in INTERNALS}
    return {**internals, **state}


def _getstate_failed(where: str, owner: nn.Module, error: Exception) -> Finding:
    return Finding(
        code="value-unsupported",
        severity="error",
        where=where,
        what=f"{class_name(type(owner))}.__getstate__ raised {type(error).__name__}",
        why=str(error),
        fix="mend __getstate__, or remove it: parameters and buffers are kept without it",
    )
