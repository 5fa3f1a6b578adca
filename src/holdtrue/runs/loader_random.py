"""The random states that a loader and its workers draw from, as plain values."""

import contextlib
import random
from array import array
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from holdtrue.capture.rng import sources

_NAMES = ("python", "numpy", "torch")  # of the CPU: workers draw from nothing else


def take() -> dict[str, Any]:
    """The states of this process, each as bytes and small values."""
    here = sources()
    version, words, gauss = random.getstate()
    return {
        "python": [version, array("I", words).tobytes(), gauss],
        "numpy": here["numpy"].get(),
        "torch": take_torch(None),
    }


def put(states: Mapping[str, Any]) -> None:
    """Set the states of this process to what `take` gave."""
    here = sources()
    version, words, gauss = states["python"]
    random.setstate((version, tuple(array("I", words)), gauss))
    here["numpy"].set(states["numpy"])
    put_torch(None, states["torch"])


def take_torch(generator: torch.Generator | None) -> bytes:
    """The state of a generator, or of torch's global one."""
    state = torch.get_rng_state() if generator is None else generator.get_state()
    return bytes(state.numpy().tobytes())


def put_torch(generator: torch.Generator | None, state: bytes) -> None:
    """Set a generator, or torch's global one."""
    made = torch.frombuffer(bytearray(state), dtype=torch.uint8)
    if generator is None:
        torch.set_rng_state(made)
    else:
        generator.set_state(made)


def take_generators(generators: Mapping[str, torch.Generator]) -> dict[str, bytes]:
    return {name: take_torch(generator) for name, generator in generators.items()}


def put_generators(generators: Mapping[str, torch.Generator], states: Mapping[str, bytes]) -> None:
    for name, state in states.items():
        if name in generators:
            put_torch(generators[name], state)


@contextlib.contextmanager
def put_back(generators: Mapping[str, torch.Generator]) -> Iterator[None]:
    """What the block draws has not been drawn."""
    before, own = {n: sources()[n].get() for n in _NAMES}, take_generators(generators)
    try:
        yield
    finally:
        for name, state in before.items():
            sources()[name].set(state)
        put_generators(generators, own)
