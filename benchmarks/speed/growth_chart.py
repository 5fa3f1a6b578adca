"""How times grow, as lines in SVG: a panel for each kind of size, both axes logarithmic."""

import math
from collections.abc import Sequence
from html import escape

from benchmarks.speed.growth import Series
from benchmarks.speed.growth_results import Grown

_WIDTH, _LEFT, _RIGHT, _TALL, _HEAD, _FOOT = 900, 70, 250, 300, 34, 40
_COLORS = ("#1f6f8b", "#8a2d3b", "#5b8c3a", "#b9770e", "#6c4a9e", "#2b2b2b", "#c0508a")
_DASHES = ("", "6 3", "2 3")  # once the colours are used up


def svg(grown: Grown) -> str:
    """The whole chart. Along the grey lines twice the size takes twice as long."""
    labels = list(dict.fromkeys(one.label for one in grown.series))
    height = 78 + len(labels) * (_HEAD + _TALL + _FOOT)
    where = f"{grown.machine['cores']} cores, {grown.machine['memory']}; torch "
    where += f"{grown.versions['torch']}; {grown.date}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" font-family="Helvetica, Arial, sans-serif">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        _text(16, 28, "How the time grows: seconds by size, logarithmic", 17),
        _text(16, 47, where, 11),
        _text(16, 64, "Grey: in proportion to the size. Numbers: the exponent in the end.", 11),
    ]
    for number, label in enumerate(labels):
        of_label = [one for one in grown.series if one.label == label]
        parts += _panel(label, of_label, 78 + number * (_HEAD + _TALL + _FOOT))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(label: str, found: Sequence[Series], top: float) -> list[str]:
    sizes = [math.log10(x) for one in found for x, _ in one.points]
    times = [math.log10(y) for one in found for _, y in one.points]
    left, right = min(sizes), max(max(sizes), min(sizes) + 1e-9)
    low, high = math.floor(min(times)), math.floor(max(times)) + 1
    above, below = top + _HEAD, top + _HEAD + _TALL
    room = _WIDTH - _LEFT - _RIGHT

    def x(size: float) -> float:
        return _LEFT + (size - left) / (right - left) * room

    def y(time: float) -> float:
        return below - (time - low) / (high - low) * _TALL

    parts = [_text(16, top + 20, f"by {label}", 13)]
    for power in range(low, high + 1):
        parts.append(_path([(_LEFT, y(power)), (_LEFT + room, y(power))], "#e3e5e8"))
        parts.append(_text(_LEFT - 8, y(power) + 4, _unit(power), 11, anchor="end"))
    for size in sorted(set(sizes)):
        parts.append(_text(x(size), below + 18, f"{10**size:,.0f}", 10, anchor="middle"))
    rise = min(right - left, high - low)
    proportion = [(x(right - rise), y(low)), (x(right), y(low + rise))]
    parts.append(_path(proportion, "#b5b8bd", width=3))
    for number, one in enumerate(found):
        color = _COLORS[number % len(_COLORS)]
        dash = _DASHES[number // len(_COLORS) % len(_DASHES)]
        line = [(x(math.log10(s)), y(math.log10(t))) for s, t in one.points]
        at = above + 8 + number * 18
        end = _LEFT + room + 16
        parts += [
            _path(line, color, width=1.8, dash=dash),
            _path([(end, at), (end + 24, at)], color, width=1.8, dash=dash),
            _text(end + 30, at + 4, f"{one.name}  {one.exponent:.2f}", 11),
        ]
    return parts


def _unit(power: int) -> str:
    number, unit = (10**power, "s") if power >= 0 else (10 ** (power + 3), "ms")
    if power < -3:
        number, unit = 10 ** (power + 6), "µs"
    return f"{number:g} {unit}"


def _path(
    points: Sequence[tuple[float, float]], stroke: str, width: float = 1, dash: str = ""
) -> str:
    at = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<polyline points="{at}" fill="none" stroke="{stroke}" stroke-width="{width}"{dashes}/>'


def _text(x: float, y: float, words: str, size: int, *, anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="#222" '
        f'text-anchor="{anchor}">{escape(words)}</text>'
    )
