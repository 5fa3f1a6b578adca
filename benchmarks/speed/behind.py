"""What a save behind a training loop costs the training: the stall, and every step it slows down.

A model is trained on all cores. Steps are timed without saves, then a save is made and steps go on
until it is on disk, then without saves again. What the training lost is the time of the steps with
the save, and of the save's call, over what as many steps take without.
"""

import gc
import shutil
import statistics
import time
from collections.abc import Collection
from pathlib import Path

import torch

from benchmarks.speed import files
from benchmarks.speed.contenders import Behind, Contender
from benchmarks.speed.measured import Measured
from benchmarks.speed.rounds import SLOW_ROUNDS, Say, said
from benchmarks.speed.states import GIB, Gpt, State

LOST, STALL, SLOWDOWN = "training lost, s per GiB", "training stall", "steps until on disk"
_TOKENS = 32  # a step: a few tenths of a second for a state of 1 GiB on two cores
_PLAIN_STEPS = 4  # timed before and after
_SLOW_SECONDS = 12.0


def run(
    state: State,
    contenders: Collection[Contender],
    rounds: int,
    folder: Path,
    into: Measured,
    say: Say,
) -> None:
    """All rounds of all ways to save behind, in turn."""
    modes = {name: make for one in contenders for name, make in one.behind.items()}
    slow: set[str] = set()
    _train(state, 2)
    for number in range(rounds):
        names = list(modes)
        at = number % len(names)
        for name in names[at:] + names[:at]:
            broken = into.failed.get(state.name, {})
            if name in broken or (name in slow and number >= SLOW_ROUNDS):
                continue
            began = time.perf_counter()
            place = folder / "behind"
            place.mkdir()
            try:
                _one(state, name, modes[name](state, place), into, number)
            except Exception as error:
                into.failed.setdefault(state.name, {})[name] = said(error)
            finally:
                shutil.rmtree(place, ignore_errors=True)
                files.empty(folder)
            took = time.perf_counter() - began
            say(f"training: round {number + 1} of {rounds}, {name}: {took:.1f} s")
            if not number and took > _SLOW_SECONDS and not name.startswith("holdtrue"):
                slow.add(name)
                if rounds > SLOW_ROUNDS:
                    why = f"{SLOW_ROUNDS} rounds of {rounds}: one takes {took:.0f} s"
                    into.few.setdefault(state.name, {})[name] = why


def _one(state: State, name: str, behind: Behind, into: Measured, number: int) -> None:
    try:
        behind.save(1)  # takes the memory for copies
        behind.wait()
        gc.collect()
        plain = _train(state, _PLAIN_STEPS)
        began = time.perf_counter()
        behind.save(2)
        stall = time.perf_counter() - began
        steps = 0
        while not behind.done():
            _train(state, 1)
            steps += 1
        behind.wait()
        took = time.perf_counter() - began
        plain += _train(state, _PLAIN_STEPS)
    finally:
        behind.close()
    lost = took - steps * statistics.fmean(plain)
    into.add(state.name, LOST, name, number, lost / (state.nbytes / GIB))
    into.add(state.name, STALL, name, number, stall)
    into.add(state.name, SLOWDOWN, name, number, steps)


def _train(state: State, steps: int) -> list[float]:
    """Seconds of each step."""
    model, optimizer = state.model, state.optimizer
    if not isinstance(model, Gpt) or optimizer is None:
        raise TypeError("only the GPT-like state can be trained")
    took = []
    for _ in range(steps):
        began = time.perf_counter()
        tokens = torch.randint(model.vocabulary, (1, _TOKENS + 1))
        logits = model(tokens[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[0, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        took.append(time.perf_counter() - began)
    return took
