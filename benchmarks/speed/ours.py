"""holdtrue, by its public functions."""

import inspect
from pathlib import Path
from typing import Any

import holdtrue
from benchmarks.speed.contenders import Contender, Load
from benchmarks.speed.states import State

SAVE = "holdtrue"
VERIFIED = "holdtrue restore"
WHILE = 'holdtrue restore(verify="while")'
BUILD, MAPPED = "holdtrue build", "holdtrue build(mapped=True)"
ON_META = "holdtrue restore into a model on meta"
PLAIN = "holdtrue Run.save"
OVERLAP = "holdtrue Run.save, overlap=True"
_PLACE = "checkpoint"


def save(state: State, folder: Path) -> None:
    holdtrue.save(folder / _PLACE, **state.parts)


def restore(state: State, folder: Path) -> None:
    holdtrue.open(folder / _PLACE).restore(**state.parts)


def restore_while(state: State, folder: Path) -> None:
    holdtrue.open(folder / _PLACE).restore(verify="while", **state.parts)


def has(function: str, argument: str) -> bool:
    """Whether this version's method of a checkpoint takes that argument."""
    return argument in inspect.signature(getattr(holdtrue.Checkpoint, function)).parameters


class Kept:
    """A run that keeps its last checkpoint, saving behind."""

    def __init__(self, state: State, folder: Path, *, overlap: bool = False) -> None:
        self._run = holdtrue.Run(
            folder / "run", keep=holdtrue.Keep(last=1), overlap=overlap, **state.parts
        )
        self._last: Any = None

    def save(self, step: int) -> None:
        self._last = self._run.save(step)

    def done(self) -> bool:
        return self._last is None or self._last.done

    def wait(self) -> None:
        self._run.flush()

    def close(self) -> None:
        self._run.close()


def contender() -> tuple[Contender, dict[str, str]]:
    """holdtrue, and what is not in this version, by name, with the reason."""
    loads, absent = [Load(VERIFIED, restore, "xxh3-128, before anything is touched")], {}
    if has("restore", "verify"):
        loads.append(Load(WHILE, restore_while, "xxh3-128, in the same pass"))
    else:
        absent[WHILE] = "Checkpoint.restore takes no verify= in this version"
    if not has("build", "mapped"):
        absent[MAPPED] = "Checkpoint.build takes no mapped= in this version"
    found = Contender(
        name=SAVE,
        version="holdtrue",
        save=save,
        loads=tuple(loads),
        behind={
            PLAIN: Kept,
            OVERLAP: lambda state, folder: Kept(state, folder, overlap=True),
        },
        syncs=True,
        digest="xxh3-128 a tensor",
    )
    return found, absent
