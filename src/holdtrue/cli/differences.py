"""What differs between two checkpoints, in words and as JSON."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from holdtrue.cli.render import show_json, show_report, stdout
from holdtrue.cli.subtrees import gather
from holdtrue.doctor.diff import Difference, TensorChange, diff
from holdtrue.doctor.diff import Progress as Tell
from holdtrue.doctor.difference_text import described, renamed, summary, worst_first
from holdtrue.errors import HoldtrueError

_ROWS = 24  # of each kind, without --all


def show_difference(a: str, b: str, *, everything: bool, json: bool) -> int:
    """What differs, on stdout; returns the exit status."""
    try:
        with _progress() as tell:
            found = diff(a, b, progress=tell)
    except HoldtrueError as error:
        # Status 1 says that they differ, which nobody knows now.
        show_report(error.report, json=json)
        return 2
    if json:
        show_json(_as_json(found))
    else:
        _show(found, 10**9 if everything else _ROWS)
    return 0 if found.equal else 1


@contextmanager
def _progress() -> Iterator[Tell | None]:
    """A bar on a terminal's stderr; nothing where nobody looks."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (TextColumn("comparing"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _show(found: Difference, most: int) -> None:
    console = stdout()
    console.print(
        Text.assemble((found.a, "bold"), f" ({found.formats[0]}) → ", (found.b, "bold"),
                      f" ({found.formats[1]})")
    )  # fmt: skip
    if found.mapping is not None:
        console.print(Text(f"names compared by the prefix {found.mapping}", style="dim"))
    if found.changed:
        console.print()
        console.print(_changes(found.changed, most))
    lines = [("removed", f"{row.name}  {described(row.tensor)}") for row in found.removed]
    lines += [("added", f"{row.name}  {described(row.tensor)}") for row in found.added]
    lines += [("renamed", renamed(row.a, row.b).removeprefix("renamed  ")) for row in found.renamed]
    for value in found.values:
        sides = " → ".join(side for side in (value.a, value.b) if side is not None)
        more = f"  ({value.count:,} values)" if value.count > 1 else ""
        lines.append((value.kind, f"{value.path or '(the top)'}  {sides}{more}"))
    if lines:
        console.print()
    for line in lines[:most]:
        console.print(Text.assemble((f"{line[0]:<8} ", _STYLES[line[0]]), line[1]))
    if len(lines) > most:
        console.print(Text(f"… and {len(lines) - most:,} more; --all shows them", style="dim"))
    if found.notes:
        console.print()
    for note in found.notes:
        console.print(Text(f"note     {note}", style="dim"))
    console.print()
    console.print(Text(summary(found)))


_STYLES = {"removed": "red", "added": "green", "renamed": "cyan", "changed": "yellow"}


def _changes(changed: tuple[TensorChange, ...], most: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for heading in ("changed", "", "differing"):
        table.add_column(heading)
    for heading in ("max", "mean", "max rel", "cosine", "NaN"):
        table.add_column(heading, justify="right")
    ordered = worst_first(changed)
    by_name = {row.name: row for row in ordered}
    for name, names in gather(by_name, most).items():
        rows = [by_name[each] for each in names]
        what = _kind(rows[0]) if len(rows) == 1 else _gathered(rows)
        table.add_row(Text(name or "(the top)"), Text(what), *_figures(rows))
    return table


def _kind(row: TensorChange) -> str:
    return described(row.a) if row.a == row.b else f"{described(row.a)} → {described(row.b)}"


def _gathered(rows: list[TensorChange]) -> str:
    kinds = sorted({word for row in rows for word in row.what})
    return f"{len(rows):,} tensors, {', '.join(kinds)}"


def _figures(rows: list[TensorChange]) -> list[str]:
    """The worst of each figure; the mean is over all elements of the rows together."""
    known = [row.numbers for row in rows if row.numbers is not None]
    if not known:
        return [", ".join(rows[0].what), "", "", "", "", ""]
    elements = sum(n.elements for n in known)
    means = [(n.mean_abs, n.elements) for n in known if n.mean_abs is not None]
    weight = sum(count for _, count in means)
    nan = [sum(n.nan_a for n in known), sum(n.nan_b for n in known)]
    return [
        f"{sum(n.differing for n in known):,} of {elements:,}",
        _number([n.max_abs for n in known if n.max_abs is not None]),
        _number([sum(m * count for m, count in means) / weight] if weight else []),
        _number([n.max_rel for n in known if n.max_rel is not None]),
        f"{min(c):.6f}" if (c := [n.cosine for n in known if n.cosine is not None]) else "–",
        f"{nan[0]:,} → {nan[1]:,}" if any(nan) else "",
    ]


def _number(values: list[float]) -> str:
    return f"{max(values):.3g}" if values else "–"


def _as_json(found: Difference) -> dict[str, Any]:
    return {"equal": found.equal, **_finite(msgspec.to_builtins(found))}


def _finite(value: Any) -> Any:
    """JSON has no infinity; as text it survives every reader."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return str(value) if isinstance(value, float) and abs(value) == float("inf") else value
