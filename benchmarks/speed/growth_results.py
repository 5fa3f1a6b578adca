"""What `growth` measured as a file, and as values beside all others."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import Struct, field

from benchmarks.speed.growth import Series
from benchmarks.speed.measured import Measured
from benchmarks.speed.targets import GROWTH

NAME, CHART = "growth.json", "growth.svg"
EXPONENT = "exponent"


class Grown(Struct):
    """What `growth.json` holds."""

    date: str
    command: str
    machine: dict[str, str]
    versions: dict[str, str]
    series: list[Series]
    skipped: list[str] = field(default_factory=list)  # sizes this machine is too small for
    format: int = field(default=1)


def write(grown: Grown, path: Path) -> None:
    text = msgspec.json.format(msgspec.json.encode(grown), indent=1)
    path.write_bytes(text + b"\n")


def read(path: Path) -> Grown:
    return msgspec.json.decode(path.read_bytes(), type=Grown)


def fill(measured: Measured, found: Sequence[Series]) -> None:
    """The exponent of each operation, in place of those that are there."""
    measured.values.pop(GROWTH, None)
    for one in found:
        measured.add(GROWTH, EXPONENT, f"{one.name}, by {one.label}", 0, one.exponent)
