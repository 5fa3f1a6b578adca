"""`python -m benchmarks`: everyone in turn, then tables, and with --write JSON, chart and page."""

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.speed import (
    behind,
    chart,
    everyone,
    files,
    fresh,
    growth_results,
    memory,
    page,
    phases,
    results,
    rounds,
    startup,
    states,
    table,
    trial,
)
from benchmarks.speed.results import Results
from benchmarks.speed.states import State
from benchmarks.speed.targets import outcomes

PARTS = {
    "save": "saving until it is durable",
    "restore": "loading into a live model and optimizer, cold and warm",
    "stall": "how long a save behind keeps its caller",
    "fresh": "a model that is not there yet",
    "training": "what saves behind cost a training loop",
    "memory": "what saving and loading add to a process",
    "phases": "where the time of a save, a stall and a restore goes",
    "startup": "import and --help",
}
_OF_ROUNDS = {
    "save": (rounds.SAVE,),
    "restore": (rounds.COLD, rounds.WARM),
    "stall": (rounds.STALL,),
}
_FULL = ("1GiB", "4GiB", "5000x10KB", "20000x10KB")
_QUICK, _QUICK_PARTS = ("128MiB",), ("save", "restore", "stall", "fresh", "phases", "startup")


def main(arguments: Sequence[str] | None = None) -> Results:
    """Runs what was asked for and shows it."""
    if arguments is None:  # ended from outside: files are removed then too
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    given = sys.argv[1:] if arguments is None else list(arguments)
    asked = _asked(given)
    console = Console(width=None if sys.stdout.isatty() else 140)
    place = Path(asked.dir or page.ROOT / "benchmarks").resolve()
    with tempfile.TemporaryDirectory(prefix=".speed-", dir=place) as name:
        found = _run(asked, Path(name), results.command_line(given))
    judged = outcomes(found.measured)
    console.print(results.setting(found), highlight=False)
    console.print()
    table.show([*table.tables(found.measured), table.target_table(judged)], console)
    reached = [one.reached for one in judged]
    console.print(
        f"{reached.count(True)} targets reached, {reached.count(False)} missed, "
        f"{reached.count(None)} not measured"
    )
    if asked.write:
        there = Path(asked.results) / results.NAME
        with_it = asked.add and there.exists()
        _write(results.add(results.read(there), found) if with_it else found, there.parent)
    return found


def _asked(given: Sequence[str]) -> argparse.Namespace:
    options = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog="names: " + "; ".join(f"{name}: {what}" for name, what in PARTS.items()),
    )
    options.add_argument("names", nargs="*", help="which parts; all without")
    options.add_argument("--rounds", type=int, help="9, and 3 with --quick")
    options.add_argument("--sizes", nargs="+", metavar="SIZE", help="1GiB, 128MiB, 5000x10KB, …")
    options.add_argument("--quick", action="store_true", help="small states: a look, not a figure")
    options.add_argument("--no-peers", action="store_true", help="torch.save and safetensors only")
    options.add_argument("--dir", help="where files are written; on the disk that is asked about")
    options.add_argument("--gentle", action="store_true", help="drop nobody else's page cache")
    options.add_argument("--write", action="store_true", help="write JSON, chart and page")
    options.add_argument(
        "--add", action="store_true", help="keep what is there of other sizes and parts"
    )
    options.add_argument("--results", default=str(page.RESULTS), help="the folder for --write")
    asked = options.parse_args(given)
    unknown = set(asked.names) - set(PARTS)
    if unknown:
        options.error(f"unknown names: {', '.join(sorted(unknown))}; see --help")
    if asked.write and asked.quick and Path(asked.results) == page.RESULTS:
        options.error("--quick gives no figures for the page; choose another --results")
    try:
        chosen = asked.sizes or (_QUICK if asked.quick else _FULL)
        asked.sizes = [states.sizes(text) for text in chosen]
    except ValueError as error:
        options.error(str(error))
    asked.rounds = asked.rounds or (3 if asked.quick else 9)
    asked.names = asked.names or list(_QUICK_PARTS if asked.quick else PARTS)
    return asked


def _run(asked: argparse.Namespace, folder: Path, command: str) -> Results:
    began = time.perf_counter()
    files.only_its_own(asked.gentle)
    date = datetime.now(UTC).date().isoformat()
    found = results.begin(command, asked.rounds, files.how_dropped(), folder, date)
    taking_part, found.measured.absent = everyone.contenders(all_peers=not asked.no_peers)
    found.measured.does = table.does(taking_part)
    measures = [m for name in asked.names for m in _OF_ROUNDS.get(name, ())]
    if measures or "training" in asked.names:
        rounds.warm_up(states.build("16 MiB"), taking_part, folder, _say)
    for index, size in enumerate(asked.sizes):
        first = index == 0 and " x " not in size
        if not measures and not first and "phases" not in asked.names:
            continue
        state = states.build(size)
        found.measured.nbytes[size] = state.nbytes
        if measures:
            refused = partial(trial.refused, size, folder)
            rounds.run(
                state, taking_part, asked.rounds, folder, found.measured, measures, _say, refused
            )
        if "phases" in asked.names:
            phases.run(state, asked.rounds, folder, found.measured, _say)
        if first:
            _on_one_state(asked, state, folder, found)
        del state
    if "startup" in asked.names:
        startup.run(max(asked.rounds, 5), found.measured, _say)
    found.seconds = round(time.perf_counter() - began, 1)
    return found


def _on_one_state(asked: argparse.Namespace, state: State, folder: Path, found: Results) -> None:
    """What is measured on the first GPT-like state only."""
    taking_part, _ = everyone.contenders(all_peers=not asked.no_peers)
    if "fresh" in asked.names:
        fresh.run(state, asked.rounds, folder, found.measured, _say)
    if "training" in asked.names:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        behind.run(state, taking_part, asked.rounds, folder, found.measured, _say)
    if "memory" in asked.names:
        names = [one.name for one in taking_part]
        times = 1 if asked.quick else 3
        memory.run(state.name, names, times, folder, found.measured, _say)


def _write(found: Results, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    grown = folder / growth_results.NAME
    if grown.exists():  # a run of its own, which takes as long as this one
        growth_results.fill(found.measured, growth_results.read(grown).series)
    results.write(found, folder / results.NAME)
    (folder / "speed.svg").write_text(chart.svg(found))
    (folder / "speed.md").write_text(page.alone(found))
    if folder == page.RESULTS:
        page.PAGE.write_text(page.filled(page.PAGE.read_text(), found))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
