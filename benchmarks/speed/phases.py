"""Where the time of a call goes: the phases of a save, of a stall and of a restore.

Functions of the library are timed while the call runs; what stands between them is “the rest”. The
names are looked up in the modules that use them, so that a function that is no longer there fails.
"""

import contextlib
import gc
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import holdtrue
import holdtrue.checkpoint
import holdtrue.engine.checkpoint
import holdtrue.restore.apply
import holdtrue.restore.request
import holdtrue.runs.run
import holdtrue.saving
from benchmarks.speed import files
from benchmarks.speed.measured import Measured
from benchmarks.speed.rounds import Say
from benchmarks.speed.states import State

SAVE, STALL = "where a save spends its time", "where the stall of the second save is spent"
WARM = "where a warm restore spends its time"
ONCE = 'where a cold restore(verify="while") spends its time'
COLD = "where a cold restore spends its time"
MEASURES = (SAVE, STALL, WARM, COLD, ONCE)
REST = "the rest"

_Named = tuple[tuple[str, Any, str], ...]  # phase, where its function is looked up, name
_SAVE: _Named = (
    ("look at parts and tensors", holdtrue.saving, "capture"),
    ("lay out files, build headers", holdtrue.saving, "lay_out"),
    ("copy, hash, write, sync the tensors", holdtrue.engine.checkpoint, "write_files"),
    ("digests into the manifest", holdtrue.engine.checkpoint, "_placed"),
    ("encode the manifest", holdtrue.engine.checkpoint, "encode_manifest"),
    ("write and sync the manifest", holdtrue.engine.checkpoint, "write_synced"),
)
_STALL: _Named = (
    ("prove that all is as it was, lay out", holdtrue.runs.run, "prepare"),
    ("copy into staging memory", holdtrue.runs.run, "stage"),
    ("find files to link", holdtrue.runs.shelf.Shelf, "earlier"),
)
_RESTORE: _Named = (
    ("open: read and check the manifest", holdtrue.checkpoint, "read_manifest"),
    ("open: headers, descriptions of tensors", holdtrue.checkpoint, "to_view"),
    ("plan: compare with the target", holdtrue.restore.request, "plan_request"),
    ("bounds", holdtrue.restore.apply, "_out_of_bounds"),
    ("read and verify", holdtrue.restore.apply, "verify_storages"),
    ("read into place", holdtrue.restore.apply, "_fill"),
)


def run(state: State, rounds: int, folder: Path, into: Measured, say: Say) -> None:
    """Each call so many times, in turn; one before that does not count."""
    kept, tried = folder / "kept", folder / "tried"
    holdtrue.save(kept, **state.parts)

    def restore(prepare: Callable[[Path], None], verify: Any) -> Callable[[], Callable[[], None]]:
        def begin() -> Callable[[], None]:
            prepare(kept)
            return lambda: _discard(holdtrue.open(kept).restore(**state.parts, verify=verify))

        return begin

    for number in range(-1, rounds):
        shutil.rmtree(tried, ignore_errors=True)
        files.sync_folder(folder)
        _note(SAVE, _SAVE, lambda: lambda: _discard(holdtrue.save(tried, **state.parts)),
              state, into, number)  # fmt: skip
        with holdtrue.Run(folder / "run", keep=holdtrue.Keep(last=1), **state.parts) as behind:
            behind.save(2 * number + 3)
            behind.flush()
            state.change()
            _note(STALL, _STALL, lambda step=2 * number + 4: lambda: _discard(behind.save(step)),
                  state, into, number)  # fmt: skip
            behind.flush()
        _note(WARM, _RESTORE, restore(files.make_warm, "first"), state, into, number)
        _note(COLD, _RESTORE, restore(files.make_cold, "first"), state, into, number)
        _note(ONCE, _RESTORE, restore(files.make_cold, "while"), state, into, number)
        say(f"{state.name}: phases, round {number + 1} of {rounds}")
    files.empty(folder)


def _discard(_: object) -> None:
    """Nothing is done with what a call returns."""


def _note(
    measure: str,
    named: _Named,
    begin: Callable[[], Callable[[], None]],
    state: State,
    into: Measured,
    number: int,
) -> None:
    act = begin()
    gc.collect()
    with _timed(named) as spent:
        began = time.perf_counter()
        act()
        whole = time.perf_counter() - began
    if number < 0:
        return
    for phase, seconds in spent.items():
        into.add(state.name, measure, phase, number, seconds)
    into.add(state.name, measure, REST, number, max(0.0, whole - sum(spent.values())))
    into.add(state.name, measure, "all of it", number, whole)


@contextlib.contextmanager
def _timed(named: _Named) -> Iterator[dict[str, float]]:
    spent = {phase: 0.0 for phase, _, _ in named}
    before = [(where, name, getattr(where, name)) for _, where, name in named]
    for (phase, where, name), (_, _, function) in zip(named, before, strict=True):
        setattr(where, name, _clocked(function, phase, spent))
    try:
        yield spent
    finally:
        for where, name, function in before:
            setattr(where, name, function)


def _clocked(function: Any, phase: str, spent: dict[str, float]) -> Any:
    def clocked(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            spent[phase] += time.perf_counter() - began

    return clocked
