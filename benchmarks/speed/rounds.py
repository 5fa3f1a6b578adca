"""Rounds: in each, everyone has a turn at everything, in an order that turns from round to round.

What comes before may leave the disk or the memory slower for what comes after; in turn, that hits
everyone alike, and ratios are taken within a round.
"""

import gc
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Collection
from pathlib import Path

from benchmarks.speed import files, raw
from benchmarks.speed.contenders import Behind, Contender, Load
from benchmarks.speed.measured import Measured
from benchmarks.speed.states import GIB, State

SLOW_SECONDS = 12.0  # for a GiB or less: whose first turn takes longer has fewer rounds
SLOW_ROUNDS = 3
RAW = "raw limits"
SAVE, DURABLE, COLD, WARM, STALL = "save", "save durable", "load cold", "load warm", "stall"
Say = Callable[[str], None]


def run(
    state: State,
    contenders: Collection[Contender],
    rounds: int,
    folder: Path,
    into: Measured,
    measures: Collection[str],
    say: Say,
    refused: Callable[[str], str | None] = lambda name: None,
) -> None:
    """All rounds on one state. `refused` is asked before a contender's first turn, and says why
    there is to be none."""
    into.nbytes[state.name] = state.nbytes
    turns: dict[str, Callable[[int], None]] = {
        RAW: lambda number: raw.measure(state, folder, into, number)
    }
    for one in contenders:
        turns[one.name] = turn(state, one, folder, into, measures)
    slow: dict[str, float] = {}
    slow_from = SLOW_SECONDS * max(1.0, state.nbytes / GIB)
    for number in range(rounds):
        names = list(turns)
        at = number % len(names)
        for name in names[at:] + names[:at]:
            broken = into.failed.get(state.name, {})
            if name in broken or (name in slow and number >= SLOW_ROUNDS):
                continue
            why_not = refused(name) if number == 0 else None
            if why_not is not None:
                into.failed.setdefault(state.name, {})[name] = why_not
                continue
            began = time.perf_counter()
            try:
                turns[name](number)
            except Exception as error:
                into.failed.setdefault(state.name, {})[name] = said(error)
            finally:
                gc.collect()  # who failed may hold memory and files, up to the last descriptor
                files.empty(folder)
            took = time.perf_counter() - began
            say(f"{state.name}: round {number + 1} of {rounds}, {name}: {took:.1f} s")
            may_be_slow = name not in (RAW, "holdtrue") and rounds > SLOW_ROUNDS
            if number == 0 and may_be_slow and took > slow_from:
                slow[name] = took
    for name, took in slow.items():
        why = f"{SLOW_ROUNDS} rounds of {rounds}: one takes {took:.0f} s"
        into.few.setdefault(state.name, {})[name] = why


def warm_up(state: State, contenders: Collection[Contender], folder: Path, say: Say) -> None:
    """One turn each on a small state that counts for nothing: imports, first calls, caches."""
    ignored = Measured()
    for one in contenders:
        began = time.perf_counter()
        try:
            turn(state, one, folder, ignored, (SAVE, COLD, WARM))(0)
        except Exception as error:
            say(f"warm-up, {one.name}: {said(error)}")
        finally:
            files.empty(folder)
        say(f"warm-up, {one.name}: {time.perf_counter() - began:.1f} s")


def said(error: BaseException) -> str:
    """An error in one line: its type, and the line of its message that says most."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    kind = type(error).__name__
    naming = [line for line in lines if "Error" in line and not line.startswith("File")]
    return f"{kind}: {(naming or lines or ['no message'])[-1]}"[:240]


def turn(
    state: State, one: Contender, folder: Path, into: Measured, measures: Collection[str]
) -> Callable[[int], None]:
    """A function that saves and loads once, and measures what was asked for."""

    def take(number: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the others, about their own future
            _saved_and_loaded(state, one, folder, into, measures, number)
            if STALL in measures:
                for name, make in one.behind.items():
                    _held_up_or_failed(state, name, make, folder, into, number)

    return take


def _held_up_or_failed(
    state: State,
    name: str,
    make: Callable[[State, Path], Behind],
    folder: Path,
    into: Measured,
    number: int,
) -> None:
    """Who fails behind, and can save in front, keeps the turns at that."""
    if name in into.failed.get(state.name, {}):
        return
    try:
        _held_up(state, name, make, folder, into, number)
    except Exception as error:
        into.failed.setdefault(state.name, {})[name] = said(error)


def _saved_and_loaded(
    state: State,
    one: Contender,
    folder: Path,
    into: Measured,
    measures: Collection[str],
    number: int,
) -> None:
    gc.collect()
    began = time.perf_counter()
    one.save(state, folder)
    saved = time.perf_counter() - began
    if not one.syncs:
        files.sync_all(folder)
    durable = time.perf_counter() - began
    if SAVE in measures:
        into.add(state.name, SAVE, one.name, number, saved)
        into.add(state.name, DURABLE, one.name, number, saved if one.syncs else durable)
    # Cold first, then warm: what has been read past the page cache is read into it in between.
    for measure, prepare in ((COLD, files.make_cold), (WARM, files.make_warm)):
        if measure not in measures:
            continue
        for load in one.loads:
            prepare(folder)
            into.add(state.name, measure, load.name, number, loaded(state, load, folder))


def loaded(state: State, load: Load, folder: Path) -> float:
    """Seconds that a load took. Raises RuntimeError where it did not bring back the state."""
    before = state.spoil()
    gc.collect()
    began = time.perf_counter()
    try:
        load.act(state, folder)
        took = time.perf_counter() - began
        state.check(before)
    except BaseException:
        state.put_back(before)
        raise
    return took


def _held_up(
    state: State,
    name: str,
    make: Callable[[State, Path], Behind],
    folder: Path,
    into: Measured,
    number: int,
) -> None:
    """How long the second save of a series keeps its caller; the first one takes the memory."""
    place = Path(tempfile.mkdtemp(prefix="behind-", dir=folder))
    behind = make(state, place)
    try:
        for step in (1, 2):
            state.change()
            gc.collect()
            began = time.perf_counter()
            behind.save(step)
            stall = time.perf_counter() - began
            behind.wait()
    finally:
        behind.close()
    into.add(state.name, STALL, name, number, stall)
    shutil.rmtree(place)
