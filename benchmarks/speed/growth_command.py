"""`python -m benchmarks growth`: how the time grows with bytes, tensors, checkpoints of a run.

Each operation is measured at sizes that grow by factors; of each is said whether it grows in a
straight line. Files are read cold: what the page cache holds of them is dropped first. `--write`
makes growth.json and growth.svg, and puts the exponents among the targets of the last `make bench`.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.speed import chart, growth_chart, growth_results, machine, page, results
from benchmarks.speed.growing import GROWTHS, Growth, SkippedError
from benchmarks.speed.growth import gather, table
from benchmarks.speed.growth_results import Grown


def main(arguments: Sequence[str] | None = None) -> Grown:
    """Measures what was asked for and shows it."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    asked = _asked(given)
    place = Path(asked.dir or page.ROOT / "benchmarks").resolve()
    grown = Grown(
        date=datetime.now(UTC).date().isoformat(),
        command=results.command_line(["growth", *given]),
        machine=machine.describe(place),
        versions=machine.versions(),
        series=[],
    )
    for name in asked.only or GROWTHS:
        measured = _measured(GROWTHS[name], asked, place, grown.skipped)
        grown.series += gather(GROWTHS[name].label, measured)
    print(table(grown.series))
    if asked.write:
        _write(grown, Path(asked.results))
    return grown


def _asked(given: Sequence[str]) -> argparse.Namespace:
    options = argparse.ArgumentParser(prog="python -m benchmarks growth", description=__doc__)
    options.add_argument("--quick", action="store_true", help="small sizes, one round: a look")
    options.add_argument("--only", choices=sorted(GROWTHS), action="append", help="of this alone")
    options.add_argument("--least", type=int, default=0, help="no size below")
    options.add_argument("--most", type=int, default=sys.maxsize, help="no size above")
    options.add_argument("--rounds", type=int, help="of each size; else 3, of the largest one")
    options.add_argument("--dir", help="where files are written; on the disk that is asked about")
    options.add_argument("--write", action="store_true", help="write JSON and chart")
    options.add_argument("--results", default=str(page.RESULTS), help="the folder for --write")
    asked = options.parse_args(given)
    in_part = asked.quick or asked.only or asked.least or asked.most != sys.maxsize
    if asked.write and in_part and Path(asked.results) == page.RESULTS:
        options.error("this gives no figures for the page; choose another --results")
    return asked


def _measured(
    growth: Growth, asked: argparse.Namespace, place: Path, skipped: list[str]
) -> list[tuple[int, dict[str, float]]]:
    found: list[tuple[int, dict[str, float]]] = []
    for size in growth.sizes(quick=asked.quick):
        if not asked.least <= size <= asked.most:
            continue
        for _ in range(asked.rounds or growth.rounds(size, quick=asked.quick)):
            with tempfile.TemporaryDirectory(prefix=".growth-", dir=place) as folder:
                try:
                    found.append((size, growth.measure(Path(folder), size)))
                except SkippedError as why:
                    skipped.append(f"{size} {growth.label} were skipped: {why}")
                    print(skipped[-1], file=sys.stderr, flush=True)
                    break
    return found


def _write(grown: Grown, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    growth_results.write(grown, folder / growth_results.NAME)
    (folder / growth_results.CHART).write_text(growth_chart.svg(grown))
    if folder == page.RESULTS:
        page.PAGE.write_text(page.grown(page.PAGE.read_text(), grown))
    if (folder / results.NAME).exists():
        beside = results.read(folder / results.NAME)
        growth_results.fill(beside.measured, grown.series)
        results.write(beside, folder / results.NAME)
        (folder / "speed.svg").write_text(chart.svg(beside))
        (folder / "speed.md").write_text(page.alone(beside))
        if folder == page.RESULTS:
            page.PAGE.write_text(page.filled(page.PAGE.read_text(), beside))
