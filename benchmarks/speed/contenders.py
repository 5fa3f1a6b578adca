"""What a contender is: how it saves, how it loads, how it saves behind a training loop."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from msgspec import Struct, field

from benchmarks.speed.states import State

Act = Callable[[State, Path], object]


class Behind(Protocol):
    """Saves of one state, one after the other, that return before the bytes are on disk."""

    def save(self, step: int) -> None: ...

    def done(self) -> bool:
        """Whether the last save is on disk."""

    def wait(self) -> None:
        """Returns when the last save is on disk."""

    def close(self) -> None: ...


class Load(Struct, frozen=True):
    """One way to load into the live model and optimizer."""

    name: str
    act: Act
    verifies: str = ""  # which digest, where it looks at one


class Contender(Struct, frozen=True, kw_only=True):
    """One library, used as its own manual says for one process on a CPU."""

    name: str
    version: str  # the package whose version counts
    save: Act  # into an empty folder
    loads: tuple[Load, ...] = ()
    behind: dict[str, Callable[[State, Path], Behind]] = field(default_factory=dict)
    syncs: bool = False  # what it has written is durable when it says it is
    optimizer: str = "yes"  # whether the whole state of the optimizer is kept
    digest: str = "none"  # what is kept with the bytes to know them again
    load_note: str = ""
