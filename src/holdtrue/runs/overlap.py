"""Copying beside the next forward and backward pass: what only an optimizer's step changes.

Parameters and optimizer state stand still until `optimizer.step()`. They are copied on the save's
own thread, and every step waits for that. Everything else, buffers above all, may change at any
moment and is copied before `save` returns.
"""

import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from holdtrue.capture.pinned import only, stage
from holdtrue.capture.tensors import Source
from holdtrue.engine.layout import PlannedFile
from holdtrue.engine.staging import Places
from holdtrue.errors import SaveError, fail
from holdtrue.findings import Finding, several


class StepGate:
    """Makes every step of some optimizers wait while a copy is in progress."""

    def __init__(self, parts: Mapping[str, Any]) -> None:
        self.optimizers = [p for p in parts.values() if isinstance(p, torch.optim.Optimizer)]
        self._open = threading.Event()
        self._open.set()
        self._deferred: Deferred | None = None
        self._hooks = [o.register_step_pre_hook(self._wait) for o in self.optimizers]

    def shut(self, deferred: "Deferred") -> None:
        """No step begins before `open`; the first one then says whether all stood still."""
        self._deferred = deferred
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    def remove(self) -> None:
        """Take the hooks off the optimizers."""
        for hook in self._hooks:
            hook.remove()

    def _wait(self, *_: Any) -> None:
        self._open.wait()
        deferred, self._deferred = self._deferred, None
        if deferred is not None:
            deferred.seal()


class Deferred:
    """The tensors that are copied later, and how often each had been written to by then."""

    def __init__(
        self,
        files: list[PlannedFile],
        sources: Mapping[str, Source],
        places: Places,
        optimizers: Iterable[torch.optim.Optimizer],
    ) -> None:
        steady = {id(tensor) for optimizer in optimizers for tensor in _tensors_of(optimizer)}
        later: dict[str, Tensor] = {
            key: source.tensor
            for key, source in sources.items()
            if source.tensor is not None
            and id(source.tensor) in steady
            # A GPU is asked at once: later, and from another thread, its work is in no order.
            and source.tensor.is_cpu
            and not source.tensor.is_inference()  # those do not count what is written to them
        }
        self._files, self._sources, self._places = files, sources, places
        self._later = later
        self._versions = {key: tensor._version for key, tensor in later.items()}
        self._sealed: list[str] | None = None
        self._asking = threading.Lock()  # so that no step begins while it is looked at

    def copy_the_rest(self) -> None:
        """What may change at any moment."""
        keys = {p.key for f in self._files for p in f.placements} - self._later.keys()
        stage(only(self._files, keys), self._sources, self._places)

    def copy(self, subject: str) -> None:
        """What stands still. Raises SaveError where something was written to after all."""
        stage(only(self._files, self._later.keys()), self._sources, self._places)
        self.confirm(subject)

    def seal(self) -> None:
        """From here on the tensors may change: the optimizer is about to write to them."""
        with self._asking:
            self._sealed = self._changed()

    def confirm(self, subject: str) -> None:
        """Raises SaveError where something was written to since the save, and before a step.

        Asked after the copy and again before publishing: torch counts a write when it has ended,
        so one that went on during the copy may not be counted yet when the copy has.
        """
        with self._asking:
            changed = self._changed() if self._sealed is None else self._sealed
        if changed:
            raise fail(SaveError, subject, _changed(changed))

    def _changed(self) -> list[str]:
        return sorted(k for k, t in self._later.items() if t._version != self._versions[k])


def _tensors_of(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]
    for state in optimizer.state.values():
        yield from _tensors_in(state)


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors_in(item)


def _changed(keys: list[str]) -> Finding:
    count = f"{len(keys)} tensors were" if len(keys) > 1 else "a tensor was"
    return Finding(
        code="changed-while-copied",
        severity="error",
        where=keys[0],
        places=several(keys),
        what=f"{count} changed while the save was copying; nothing was published",
        why="with overlap=True the copy goes on until the next optimizer.step(), and something "
        "else wrote to the tensors before that: the checkpoint would hold a mix of two moments",
        fix="change parameters before run.save, or make the Run without overlap=True",
    )
