"""The hooks of modules, tensors and optimizers: code of a step that the step does not name."""

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as modules
from torch.optim import optimizer as optimizers

from holdtrue.runs.held_state import Held, single

_OWN: tuple[tuple[type, tuple[str, ...]], ...] = (
    (
        nn.Module,
        ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks"),
    ),
    (Tensor, ("_backward_hooks", "_post_accumulate_grad_hooks")),
    (
        torch.optim.Optimizer,
        ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"),
    ),
)
# Those that `register_module_forward_hook` and the like add, for all modules of the process.
_OF_ALL: tuple[tuple[Any, tuple[str, ...]], ...] = (
    (
        modules,
        (
            "_global_forward_pre_hooks",
            "_global_forward_hooks",
            "_global_backward_pre_hooks",
            "_global_backward_hooks",
        ),
    ),
    (optimizers, ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks")),
)


def hooks_of(owner: Any, path: str) -> Iterator[tuple[Held, list[tuple[Any, str]]]]:
    """Each kind of hooks that an object has: which there are, and each with its path."""
    for kind, names in _OWN:
        if isinstance(owner, kind):
            yield from _found(owner, names, path)


def hooks_of_all() -> Iterator[tuple[Held, list[tuple[Any, str]]]]:
    """The hooks of the process, for every module and every optimizer."""
    for module, names in _OF_ALL:
        yield from _found(module, names, module.__name__)


def _found(
    owner: Any, names: tuple[str, ...], path: str
) -> Iterator[tuple[Held, list[tuple[Any, str]]]]:
    for name in names:
        hooks = getattr(owner, name, None)  # None for a tensor without; not in every torch
        if isinstance(hooks, MutableMapping):
            at = f"{path}.{name}"
            held = single(hooks, at, at)
            if held is not None:
                yield held, list(_numbered(hooks, at))


def _numbered(hooks: Mapping[Any, Any], path: str) -> Iterator[tuple[Any, str]]:
    """By their place: the keys are counted through the process, and differ from one to the next."""
    for i, hook in enumerate(tuple(hooks.values())):
        yield hook, f"{path}[{i}]"
