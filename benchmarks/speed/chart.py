"""Medians as bars, in SVG: a panel for each state and measure, what the machine can do as a line.

Written by hand: a few rectangles and texts are not worth a plotting library among the requirements.
"""

from html import escape

from msgspec import Struct

from benchmarks.speed import behind, fresh, raw
from benchmarks.speed.measured import Measured, quartiles
from benchmarks.speed.results import Results
from benchmarks.speed.rounds import COLD, DURABLE, STALL, WARM

_WIDTH, _NAMES, _NUMBERS, _BAR, _HEAD = 900, 330, 110, 20, 34
_LONGEST = 6.0  # bars end at so many times ours, and their number says more
_OURS, _OTHERS, _LIMIT = "#1f6f8b", "#c9ccd1", "#8a2d3b"


class Panel(Struct, frozen=True):
    title: str
    bars: list[tuple[str, float, tuple[float, float]]]  # name, median, middle half
    limit: tuple[str, float] | None


def svg(results: Results) -> str:
    """The whole chart."""
    panels = _panels(results.measured)
    heights = [_HEAD + _BAR * len(p.bars) + 14 for p in panels]
    height = 78 + sum(heights) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" font-family="Helvetica, Arial, sans-serif">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        _text(16, 28, "Saving and loading training state: medians", size=17, weight="bold"),
        _text(16, 47, _where(results), size=11, fill="#666"),
        _text(
            16,
            64,
            "Shorter is faster. Red line: what the machine can do with the same bytes. "
            "Thin line: the middle half of the rounds. Bars with a cut are longer.",
            size=11,
            fill="#666",
        ),
    ]
    top = 78
    for panel, tall in zip(panels, heights, strict=True):
        parts += _drawn(panel, top)
        top += tall
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panels(measured: Measured) -> list[Panel]:
    found = []
    for state in measured.values:
        wanted = (
            ("save and fsync", DURABLE, DURABLE, tuple(raw.WRITES)),
            ("stall of a save behind", STALL, "memcpy", ("raw memcpy, 2 threads",)),
            ("load in place, cached", WARM, WARM, (raw.WARM,)),
            ("load in place, from disk", COLD, COLD, tuple(raw.READS)),
            (fresh.FRESH, fresh.FRESH, fresh.FRESH, (raw.FRESH,)),
            (behind.LOST, behind.LOST, "", ()),
        )
        for title, measure, of_limit, limits in wanted:
            bars = []
            for name in measured.contenders(state, measure):
                if not name.startswith("raw"):
                    series = measured.series(state, measure, name)
                    median = measured.median(state, measure, name) or 0.0
                    bars.append((name, median, quartiles(series)))
            best = measured.fastest(state, of_limit, limits)
            limit = None if best is None else (best, measured.median(state, of_limit, best) or 0.0)
            if bars:
                found.append(
                    Panel(f"{state}: {title}", sorted(bars, key=lambda bar: bar[1]), limit)
                )
    return found


def _drawn(panel: Panel, top: float) -> list[str]:
    own = [median for name, median, _ in panel.bars if name.startswith("holdtrue")]
    least = max(own, default=0.0) or max(m for _, m, _ in panel.bars) / _LONGEST
    longest = max((m for _, m, _ in panel.bars), default=1.0)
    whole = max(min(longest, _LONGEST * least), panel.limit[1] if panel.limit else 0.0, 1e-9)
    room = _WIDTH - _NAMES - _NUMBERS
    parts = [_text(16, top + 20, panel.title, size=13, weight="bold")]
    at = top + _HEAD
    begin = at
    for name, median, (low, high) in panel.bars:
        long = max(0.0, min(median, whole) / whole * room)
        ours = name.startswith("holdtrue")
        middle = at + _BAR / 2
        label = _text(_NAMES - 8, middle + 4, name, size=11, anchor="end")
        parts += [label, _bar(_NAMES, at + 3, long, _BAR - 6, _OURS if ours else _OTHERS)]
        if high <= whole:
            ends = [_NAMES + max(0.0, v) / whole * room for v in (low, high)]
            parts.append(_line(ends[0], middle, ends[1], middle, "#333"))
        if median > whole:  # cut: two white strokes across it
            for back in (14, 8):
                x = _NAMES + room - back
                parts.append(_line(x, at + _BAR - 2, x + 4, at + 2, "#ffffff", width=2))
        number = _text(_WIDTH - _NUMBERS + 8, middle + 4, _seconds(median), size=11)
        parts.append(number)
        at += _BAR
    if panel.limit is not None:
        x = _NAMES + panel.limit[1] / whole * room
        parts.append(_line(x, begin - 2, x, at + 2, _LIMIT, width=1.5))
        said = f"{panel.limit[0]}: {_seconds(panel.limit[1])}"
        parts.append(_text(_WIDTH - 16, top + 20, said, size=11, fill=_LIMIT, anchor="end"))
    return parts


def _where(results: Results) -> str:
    of = results.machine
    return (
        f"{of['cores']} cores, {of['memory']}, {of['file system']}; torch "
        f"{results.versions['torch']}, Python {of['python']}; {results.date}"
    )


def _seconds(value: float) -> str:
    return f"{value * 1000:.1f} ms" if abs(value) < 0.1 else f"{value:.2f} s"


def _bar(x: float, y: float, width: float, height: float, fill: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height}" fill="{fill}"/>'


def _line(x1: float, y1: float, x2: float, y2: float, stroke: str, width: float = 1.0) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
        f'stroke="{stroke}" stroke-width="{width}"/>'
    )


def _text(
    x: float,
    y: float,
    words: str,
    *,
    size: int,
    fill: str = "#222",
    weight: str = "normal",
    anchor: str = "start",
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{fill}" '
        f'font-weight="{weight}" text-anchor="{anchor}">{escape(words)}</text>'
    )
