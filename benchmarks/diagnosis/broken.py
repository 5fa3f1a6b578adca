"""What a case is: something broken, what must be said about it, and how the mend is checked."""

import inspect
import random
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import torch

from benchmarks.diagnosis.vocabulary import codes_for

_SYLLABLES = ("ka", "lo", "mi", "ren", "sta", "tu", "vel", "xo", "zim", "pra", "dor", "fen")


@dataclass(frozen=True)
class At:
    """Where a case is built: an empty folder, and chance."""

    folder: Path
    rng: random.Random

    def word(self, syllables: int = 2) -> str:
        """A name that nothing can be tuned to."""
        return "".join(self.rng.choice(_SYLLABLES) for _ in range(syllables))

    def path(self, suffix: str = ".pt") -> Path:
        return self.folder / f"{self.word()}{suffix}"

    def save(self, value: Any, suffix: str = ".pt", **settings: Any) -> Path:
        """What torch.save writes."""
        path = self.path(suffix)
        torch.save(value, path, **settings)
        return path

    def write(self, data: bytes, suffix: str = ".pt") -> Path:
        path = self.path(suffix)
        path.write_bytes(data)
        return path


@dataclass(frozen=True)
class Tell:
    """No command can mend it on this machine: the finding's words must match."""

    pattern: str


@dataclass(frozen=True)
class Mended:
    """What must hold once the printed command has been executed.

    `check` is given the names that the command saw: model, optimizer, scheduler, `value` of an
    expression, and `written`, the path that a command line names last.
    """

    check: Callable[[Mapping[str, Any]], bool]


@dataclass(frozen=True, kw_only=True)
class Broken:
    """One broken or odd checkpoint, and what a user must be told.

    `finds` is a meaning of vocabulary.py, or several that are right. `place` must stand in a place
    that the finding names; one of several. `cause` and `cure` are what a message of another tool
    has to contain to count as naming the cause and the fix.
    """

    path: Path
    finds: str | tuple[str, ...]
    place: str | tuple[str, ...] = ""
    mend: Tell | Mended
    cause: str
    cure: str
    targets: Mapping[str, Any] = field(default_factory=dict)
    deep: bool = False
    load: str = ""  # the key that a user would take out of the file before load_state_dict

    @property
    def codes(self) -> frozenset[str]:
        several = (self.finds,) if isinstance(self.finds, str) else self.finds
        return frozenset(code for meaning in several for code in codes_for(meaning))

    @property
    def places(self) -> tuple[str, ...]:
        return (self.place,) if isinstance(self.place, str) else self.place


@dataclass(frozen=True)
class Case:
    name: str
    family: str
    builder: Callable[..., Broken]
    variant: tuple[Any, ...]

    def build(self, folder: Path, seed: int) -> Broken:
        """The same for the same seed, whatever was built before."""
        chance = seed ^ zlib.crc32(f"{self.family}/{self.name}".encode())
        torch.manual_seed(chance)
        return self.builder(At(folder, random.Random(chance)), *self.variant)


def variants(*given: Any) -> Callable[[Callable[..., Broken]], Callable[..., Broken]]:
    """Makes one case of a builder for each of the given arguments (a tuple: several arguments)."""

    def mark(builder: Callable[..., Broken]) -> Callable[..., Broken]:
        builder.__dict__["variants"] = [v if isinstance(v, tuple) else (v,) for v in given]
        return builder

    return mark


def all_cases() -> list[Case]:
    """Every public function of the modules in cases/ is a case, or several."""
    from benchmarks.diagnosis import cases

    return [
        case
        for info in iter_modules(cases.__path__)
        for case in _of(import_module(f"{cases.__name__}.{info.name}"), info.name)
    ]


def _of(module: Any, family: str) -> Iterator[Case]:
    for name, builder in vars(module).items():
        own = inspect.isfunction(builder) and builder.__module__ == module.__name__
        if not own or name.startswith("_"):
            continue
        several = builder.__dict__.get("variants", [()])
        for variant in several:
            label = ",".join(getattr(v, "__name__", None) or repr(v).strip("'") for v in variant)
            yield Case(f"{name}[{label}]" if variant else name, family, builder, variant)
