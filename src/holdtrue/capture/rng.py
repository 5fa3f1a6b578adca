"""The global random states: Python, NumPy, torch on the CPU and on every accelerator."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from msgspec import Struct

from holdtrue.capture.tensors import TensorSet
from holdtrue.capture.values import ValueEncoder


class Source(Struct, frozen=True):
    """One global random state: how to read it and how to set it."""

    get: Callable[[], Any]
    set: Callable[[Any], None]


def sources() -> dict[str, Source]:
    """The random states of this process by name. Accelerators not yet in use are left asleep."""
    found = {
        "python": Source(random.getstate, _set_python),
        "numpy": Source(_get_numpy, _set_numpy),
        "torch": Source(torch.get_rng_state, torch.set_rng_state),
    }
    for kind in ("cuda", "xpu"):
        module = getattr(torch, kind, None)
        if module is not None and module.is_available() and module.is_initialized():
            for i in range(module.device_count()):
                found[f"{kind}:{i}"] = _device(module, i)
    if torch.backends.mps.is_available():
        found["mps"] = Source(torch.mps.get_rng_state, torch.mps.set_rng_state)
    return found


def _device(module: Any, index: int) -> Source:
    return Source(
        lambda: module.get_rng_state(index), lambda state: module.set_rng_state(state, index)
    )


def _set_python(state: Any) -> None:
    random.setstate(state)


def _get_numpy() -> Any:
    # As bytes: 624 words in a file of their own would cost a save one more fsync.
    state: Any = np.random.get_state(legacy=False)
    words = state["state"]
    return {**state, "state": {**words, "key": words["key"].tobytes()}}


def _set_numpy(state: Any) -> None:
    words = state["state"]
    key = np.frombuffer(words["key"], "<u4")
    np.random.set_state({**state, "state": {**words, "key": key}})


def capture_rng(into: TensorSet) -> Any:
    """A value node: name → state, as each library gives it; torch's as bytes."""
    states: dict[str, Any] = {}
    for name, source in sources().items():
        state = source.get()
        states[name] = state.numpy().tobytes() if isinstance(state, torch.Tensor) else state
    return ValueEncoder(into).encode(states, "")
