"""The results of one run as a file: every value, the machine, the versions."""

from pathlib import Path

import msgspec
from msgspec import Struct, field

from benchmarks.speed import machine
from benchmarks.speed.measured import Measured

NAME = "speed.json"


class Results(Struct):
    """What `speed.json` holds."""

    date: str
    command: str
    rounds: int
    cold: str  # how files were thrown out of the page cache
    machine: dict[str, str]
    versions: dict[str, str]
    measured: Measured
    seconds: float = 0.0
    format: int = field(default=1)


def begin(command: str, rounds: int, cold: str, folder: Path, date: str) -> Results:
    return Results(
        date=date,
        command=command,
        rounds=rounds,
        cold=cold,
        machine=machine.describe(folder),
        versions=machine.versions(),
        measured=Measured(),
    )


def setting(results: Results) -> str:
    """Where, when and with what, in a few lines."""
    of_machine = ", ".join(f"{name}: {what}" for name, what in results.machine.items())
    used = ", ".join(f"{name} {what}" for name, what in results.versions.items())
    return (
        f"{results.date}, `{results.command}`, {results.seconds / 60:.0f} minutes.\n"
        f"{of_machine}.\n{used}.\n"
        f"{results.rounds} rounds in turn where a table does not say fewer; "
        f"cold files by {results.cold}."
    )


def write(results: Results, path: Path) -> None:
    text = msgspec.json.format(msgspec.json.encode(results), indent=1)
    path.write_bytes(text + b"\n")


def read(path: Path) -> Results:
    return msgspec.json.decode(path.read_bytes(), type=Results)
