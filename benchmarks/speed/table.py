"""What was measured, as tables: on the terminal, and in Markdown for the page."""

from collections.abc import Iterable

from msgspec import Struct
from rich.console import Console
from rich.table import Table

from benchmarks.speed import behind, fresh, memory, phases, raw, startup
from benchmarks.speed.contenders import Contender
from benchmarks.speed.measured import Measured, paired, quartiles
from benchmarks.speed.rounds import COLD, DURABLE, SAVE, STALL, WARM
from benchmarks.speed.targets import Outcome

_HEAD = ("who", "median", "middle half", "rounds", "over the limit")


class Tabled(Struct, frozen=True):
    """One table; cells are text."""

    title: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]
    notes: tuple[str, ...] = ()


def tables(measured: Measured) -> list[Tabled]:
    """All tables but that of the targets."""
    head = ("who", "optimizer kept", "fsync", "digest written", "digest looked at on a load")
    found = [Tabled("What everyone does", head, measured.does)]
    for state in measured.values:
        if state == startup.STATE:
            continue
        found += [
            _table(measured, state, "save, durable", DURABLE, raw.WRITES),
            _table(measured, state, "save, as it comes", SAVE, ()),
            _table(measured, state, "load into what is there, warm", WARM, (raw.WARM,)),
            _table(measured, state, "load into what is there, cold", COLD, raw.READS),
            _stalls(measured, state),
            _table(measured, state, fresh.FRESH, fresh.FRESH, (raw.FRESH,)),
            _table(measured, state, "memcpy, hash, first touch", "memcpy", ()),
            _table(measured, state, "hash", "hash", ()),
            _table(measured, state, "first touch", "first touch", ()),
        ]
        for measure in (
            behind.LOST,
            behind.STALL,
            memory.SAVE,
            memory.LOAD,
            memory.BEHIND,
            memory.GROWTH,
        ):
            found.append(_table(measured, state, measure, measure, ()))
        found += [_table(measured, state, measure, measure, ()) for measure in phases.MEASURES]
    found.append(_table(measured, startup.STATE, startup.START, startup.START, ()))
    found.append(_failed(measured))
    return [one for one in found if one.rows]


def target_table(outcomes: Iterable[Outcome]) -> Tabled:
    rows = []
    for one in outcomes:
        target = one.target
        limit = f"{'≥' if target.least else '≤'} {_plain(one.limit)} {target.unit}"
        if one.value is None:
            rows.append((target.name, one.state, limit, "–", one.why_not))
            continue
        beside = f" ({one.value.beside})" if one.value.beside else ""
        number = f"{_plain(one.value.number)} {target.unit}{beside}"
        rows.append((target.name, one.state, limit, number, "reached" if one.reached else "MISSED"))
    return Tabled("What was aimed at", ("target", "state", "limit", "measured", ""), rows)


def show(found: list[Tabled], console: Console) -> None:
    for one in found:
        table = Table(title=one.title, title_justify="left", title_style="bold", box=None)
        for index, name in enumerate(one.head):
            table.add_column(name, justify="left" if index == 0 else "right", overflow="fold")
        for row in one.rows:
            table.add_row(*row)
        console.print(table)
        for note in one.notes:
            console.print(f"  {note}", style="dim")
        console.print()


def markdown(found: list[Tabled]) -> str:
    parts = []
    for one in found:
        lines = [f"### {one.title}", "", _line(one.head), _line(["---"] * len(one.head))]
        lines += [_line(row) for row in one.rows]
        parts.append("\n".join([*lines, *(f"\n{note}" for note in one.notes)]))
    return "\n\n".join(parts)


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def does(taking_part: Iterable[Contender]) -> list[tuple[str, ...]]:
    """What each of them does for its time: nobody is quicker by doing less unsaid."""
    rows = []
    for one in taking_part:
        checks = [f"{load.name}: {load.verifies}" for load in one.loads if load.verifies]
        synced = "itself" if one.syncs else "added for “durable”"
        rows.append((one.name, one.optimizer, synced, one.digest, "; ".join(checks) or "nothing"))
    return rows


def _table(
    measured: Measured, state: str, title: str, measure: str, limits: Iterable[str]
) -> Tabled:
    """Fastest first; ratios to the fastest of the raw limits, round by round."""
    limit = measured.fastest(state, measure, limits)
    names = measured.contenders(state, measure)
    rows = []
    for name in sorted(names, key=lambda n: measured.median(state, measure, n) or 0):
        series = measured.series(state, measure, name)
        low, high = quartiles(series)
        ratio = paired(series, measured.series(state, measure, limit)) if limit else None
        rows.append(
            (
                name,
                _number(measured.median(state, measure, name) or 0, measure),
                f"{_number(low, measure)} – {_number(high, measure)}",
                str(len(series)),
                "" if ratio is None else f"{ratio:.2f} x",
            )
        )
    few = measured.few.get(state, {})
    notes = tuple(f"{name}: {why}" for name, why in few.items() if name in names)
    head = _HEAD if limit else _HEAD[:-1]
    rows = [row[: len(head)] for row in rows]
    return Tabled(f"{state}: {title}", head, rows, notes)


def _stalls(measured: Measured, state: str) -> Tabled:
    """Of the second save; beside a copy of the state by two threads."""
    limit = measured.series(state, "memcpy", "raw memcpy, 2 threads")
    rows = []
    names = measured.contenders(state, STALL)
    for name in sorted(names, key=lambda n: measured.median(state, STALL, n) or 0):
        series = measured.series(state, STALL, name)
        low, high = quartiles(series)
        ratio = paired(series, limit)
        rows.append(
            (
                name,
                _number(measured.median(state, STALL, name) or 0, STALL),
                f"{_number(low, STALL)} – {_number(high, STALL)}",
                str(len(series)),
                "" if ratio is None else f"{ratio:.2f} x",
            )
        )
    return Tabled(
        f"{state}: stall of a save behind, the second one", (*_HEAD[:-1], "over memcpy"), rows
    )


def _failed(measured: Measured) -> Tabled:
    rows = [
        (name, state, error) for state, of in measured.failed.items() for name, error in of.items()
    ]
    rows += [(name, "", f"not there yet: {why}") for name, why in measured.absent.items()]
    return Tabled("What failed, or is not there", ("who", "state", "why"), rows)


def _number(value: float, measure: str) -> str:
    if "MiB" in measure:
        return f"{value:.0f} MiB"
    if "GiB" in measure:
        return f"{value:.2f}"
    return f"{value * 1000:.1f} ms" if value < 0.1 else f"{value:.2f} s"


def _plain(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.0f}"
