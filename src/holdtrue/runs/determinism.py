"""Sources of difference that are no state: the clock, the system's entropy, threads.

Each is held still for a few steps, to see whether the steps then repeat.
"""

import contextlib
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import xxhash

_CLOCKS = ("time", "perf_counter", "monotonic")
_MOMENT = 1_700_000_000  # seconds
Still = Callable[[Mapping[str, Any]], contextlib.AbstractContextManager[None]]


@contextlib.contextmanager
def still_clock(scope: Mapping[str, Any]) -> Iterator[None]:
    """Time stands still, always at the same moment, also under names that `scope` has imported."""
    stopped = {name: _constant(_MOMENT) for name in _CLOCKS}
    stopped |= {f"{name}_ns": _constant(_MOMENT * 10**9) for name in _CLOCKS}
    with _exchanged(time, stopped, scope):
        yield


@contextlib.contextmanager
def still_entropy(scope: Mapping[str, Any]) -> Iterator[None]:
    """`os.urandom`, and with it uuid4, secrets and unseeded generators, repeats itself."""
    count = 0

    def urandom(size: int) -> bytes:
        nonlocal count
        count += 1
        return b"".join(
            xxhash.xxh3_128_digest(f"{count}:{i}".encode()) for i in range(size // 16 + 1)
        )[:size]

    with _exchanged(os, {"urandom": urandom}, scope), _exchanged(random, {"_urandom": urandom}, {}):
        yield


@contextlib.contextmanager
def single_thread(scope: Mapping[str, Any]) -> Iterator[None]:
    """One thread of arithmetic, and only deterministic algorithms where torch has them."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    benchmark = torch.backends.cudnn.benchmark
    warn = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict, warn_only=warn)
        torch.backends.cudnn.benchmark = benchmark


SOURCES: Mapping[str, tuple[Still, str]] = {
    "the clock": (still_clock, "let no value that is trained on depend on the time"),
    "the system's entropy": (
        still_entropy,
        "seed the generators; keep names from uuid4 and the like out of the training",
    ),
    "threads, or algorithms that are not deterministic": (
        single_thread,
        "torch.use_deterministic_algorithms(True), and torch.backends.cudnn.benchmark = False",
    ),
}


def _constant(value: Any) -> Callable[[], Any]:
    return lambda: value


@contextlib.contextmanager
def _exchanged(
    module: Any, replacements: Mapping[str, Any], scope: Mapping[str, Any]
) -> Iterator[None]:
    bound: Any = scope
    before = {name: getattr(module, name) for name in replacements}
    names = [
        (name, given)
        for name, value in tuple(scope.items())
        for given, original in before.items()
        if value is original
    ]
    for name, value in replacements.items():
        setattr(module, name, value)
    for name, given in names:
        bound[name] = replacements[given]
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)
        for name, given in names:
            bound[name] = before[given]
