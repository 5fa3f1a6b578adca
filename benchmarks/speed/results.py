"""The results of one run as a file: every value, the machine, the versions."""

import shlex
from collections.abc import Sequence
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


def command_line(given: Sequence[str]) -> str:
    """To be repeated elsewhere: without the folder, of which only the file system is told."""
    shown = list(given)
    if "--dir" in shown:
        del shown[shown.index("--dir") : shown.index("--dir") + 2]
    return shlex.join(["python", "-m", "benchmarks", *shown])


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


def add(earlier: Results, found: Results) -> Results:
    """Both: what only the earlier run measured, and all that this one did. Raises
    ValueError where they are not of one machine with the same versions."""
    if (earlier.machine, earlier.versions) != (found.machine, found.versions):
        raise ValueError("the results that are there are of another machine or other versions")
    both = msgspec.structs.replace(found, measured=earlier.measured)
    both.command = f"{earlier.command}; {found.command}"
    both.date = f"{earlier.date}, {found.date}" if earlier.date != found.date else found.date
    both.seconds += earlier.seconds
    both.rounds = min(earlier.rounds, found.rounds)
    of_earlier, new = earlier.measured, found.measured
    for state, measures in new.values.items():
        of_earlier.values.setdefault(state, {}).update(measures)
    for name in ("failed", "few", "nbytes", "absent"):
        getattr(of_earlier, name).update(getattr(new, name))
    of_earlier.does = new.does
    return both


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
