"""A line through times at sizes that grow by factors: how steep it is, whether it is straight."""

import math
import statistics
from collections.abc import Iterable, Sequence

from msgspec import Struct

Point = tuple[float, float]  # size, median seconds
STEEPEST = 1.15  # the exponent up to which a curve is called a straight line


class Series(Struct, frozen=True, kw_only=True):
    """The times of one operation, and the line through them.

    `exponent` is the slope of log(time) over log(size) in the last decade of sizes: 0 where the
    time does not depend on the size, 1 for a line, 2 where twice the size takes four times as long.
    """

    name: str  # "save", "resume", …
    label: str  # what the size counts: "MiB", "tensors", "checkpoints"
    points: tuple[Point, ...]
    slope: float  # seconds for one more
    intercept: float  # seconds for none
    deviation: float  # the largest, from the line, as a part of the measured time
    exponent: float
    straight: bool


def series(name: str, label: str, points: Iterable[Point]) -> Series:
    """Put a line through the points. Each counts by its relative error: the sizes grow by factors,
    and the largest would else be all that matters."""
    found = tuple(sorted(points))
    slope, intercept = _line(found)
    steep = _exponent(found)
    return Series(
        name=name,
        label=label,
        points=found,
        slope=slope,
        intercept=intercept,
        deviation=max(abs(intercept + slope * x - y) / y for x, y in found),
        exponent=steep,
        straight=steep <= STEEPEST,
    )


def gather(label: str, rounds: Iterable[tuple[int, dict[str, float]]]) -> list[Series]:
    """One series an operation, of the medians, from (size, operation → seconds) of every round."""
    times: dict[str, dict[int, list[float]]] = {}
    for size, seconds in rounds:
        for name, value in seconds.items():
            times.setdefault(name, {}).setdefault(size, []).append(value)
    return [
        series(name, label, [(size, statistics.median(all_)) for size, all_ in by_size.items()])
        for name, by_size in times.items()
    ]


HEAD = ("", "of", "times", "slope", "off", "exponent", "")


def rows(found: Sequence[Series]) -> list[tuple[str, ...]]:
    """One an operation: its times, its slope, and whether it is straight."""
    made = []
    for one in found:
        times = "  ".join(f"{x:g}: {_seconds(y)}" for x, y in one.points)
        slope = f"{_seconds(one.slope)} each"
        said = "straight" if one.straight else "STEEP"
        off = f"{one.deviation:.0%}"
        made.append((one.name, one.label, times, slope, off, f"{one.exponent:.2f}", said))
    return made


def table(found: Sequence[Series]) -> str:
    """The rows as text, in columns."""
    shown = [HEAD, *rows(found)]
    widths = [max(len(row[i]) for row in shown) for i in range(len(HEAD))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in shown
    )


def _line(points: Sequence[Point]) -> tuple[float, float]:
    """Slope and intercept of the least squares, each point weighted by 1 / time²."""
    weights = [1 / y**2 for _, y in points]
    total = sum(weights)
    x0 = sum(w * x for w, (x, _) in zip(weights, points, strict=True)) / total
    y0 = sum(w * y for w, (_, y) in zip(weights, points, strict=True)) / total
    spread = sum(w * (x - x0) ** 2 for w, (x, _) in zip(weights, points, strict=True))
    if not spread:
        return 0.0, y0
    both = sum(w * (x - x0) * (y - y0) for w, (x, y) in zip(weights, points, strict=True))
    return both / spread, y0 - both / spread * x0


def _exponent(points: Sequence[Point]) -> float:
    """Over the last decade, which what every call costs hides least."""
    last = [(math.log(x), math.log(y)) for x, y in points if x * 10 >= points[-1][0]]
    if len(last) < 2:
        return 0.0
    x0, y0 = statistics.fmean(x for x, _ in last), statistics.fmean(y for _, y in last)
    return sum((x - x0) * (y - y0) for x, y in last) / sum((x - x0) ** 2 for x, _ in last)


def _seconds(value: float) -> str:
    for least, factor, unit in ((1.0, 1, "s"), (1e-3, 1e3, "ms"), (1e-6, 1e6, "µs")):
        if abs(value) >= least:
            return f"{value * factor:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"
