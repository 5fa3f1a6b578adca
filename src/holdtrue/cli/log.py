"""holdtrue log: the checkpoints of a run."""

import sys
import time
from pathlib import Path
from typing import Any

import click
from rich.live import Live
from rich.table import Table

from holdtrue.cli.render import age, show_json, size, stdout
from holdtrue.runs.history import Entry, ranked_by, read_history
from holdtrue.storage.locating import require_steps, steps

_POLL = 0.5  # seconds between two looks at a run that is followed


@click.command(name="log", short_help="The checkpoints of a run, with their metrics.")
@click.argument("run")
@click.option("--follow", "-f", is_flag=True, help="Go on, and show new ones as they come.")
@click.option("--verify", "every_byte", is_flag=True, help="Read and compare every byte.")
@click.option("--json", is_flag=True, help="One JSON list, a member a checkpoint.")
def command(run: str, follow: bool, every_byte: bool, json: bool) -> None:
    """The checkpoints of a run, oldest first: step, age, metrics (best marked ★), size, what the
    save cost and linked, what was verified, commit, and what changed since the one before.

    Exit status 0: each could be read; 1: one is damaged; 2: this is no run, or not readable.
    """
    place = Path(run)
    if follow:
        _follow(place, every_byte)
        return
    entries = read_history(require_steps(place), every_byte=every_byte)
    if json:
        show_json([_row(entry) for entry in entries])
    else:
        stdout().print(_table(entries))
    sys.exit(int(any(entry.damaged for entry in entries)))


def _follow(run: Path, every_byte: bool) -> None:
    """Until it is interrupted. On a terminal the table is drawn anew, elsewhere rows are added."""
    console = stdout()
    try:
        if console.is_terminal:
            with Live(console=console, auto_refresh=False) as live:
                known: dict[int, Path] | None = None
                entries: list[Entry] = []
                while True:
                    # A published checkpoint is not rewritten in place: its files, with --verify
                    # all their bytes, are read once. The ages are told anew at each look.
                    found = steps(run)
                    if found != known:
                        known, entries = found, read_history(found, every_byte=every_byte)
                    live.update(_table(entries), refresh=True)
                    time.sleep(_POLL)
        shown: set[int] = set()
        while True:
            found = steps(run)
            if found.keys() - shown:
                entries = read_history(found, every_byte=every_byte)
                for entry in entries:
                    if entry.step not in shown:
                        console.print(_line(entry))
                        sys.stdout.flush()
                shown |= found.keys()
            time.sleep(_POLL)
    except KeyboardInterrupt:
        return


def _line(entry: Entry) -> str:
    """One checkpoint in one line of text, for what is not a terminal."""
    if entry.manifest is None:
        return f"step {entry.step}  damaged: {entry.damaged}"
    metrics = " ".join(f"{name}={_number(value)}" for name, value in entry.metrics.items())
    best = "  ★ best" if entry.best else ""
    return f"step {entry.step}  {entry.manifest.created}  {metrics}  {size(entry.nbytes)}{best}"


def _table(entries: list[Entry]) -> Table:
    names = list(dict.fromkeys(name for entry in entries for name in entry.metrics))
    table = Table(box=None, pad_edge=False, header_style="bold")
    headings = (
        "step",
        "age",
        *names,
        "size",
        "linked",
        "stall",
        "durable",
        "verified",
        "commit",
        "",
    )
    for heading in headings:
        table.add_column(heading, justify="right" if heading not in ("", "commit") else "left")
    by = ranked_by(entries)
    for entry in entries:
        if entry.manifest is None:
            blank = ("" for _ in range(len(headings) - 2))
            table.add_row(str(entry.step), *blank, f"damaged: {entry.damaged}")
            continue
        remarks = [f"★ best {by}"] if entry.best else []
        metrics = entry.metrics
        table.add_row(
            str(entry.step),
            age(entry.manifest.created),
            *(_number(metrics.get(name)) for name in names),
            size(entry.nbytes),
            *_cost(entry),
            entry.checked,
            _commit(entry),
            ", ".join([*remarks, *entry.changes]),
        )
    return table


def _cost(entry: Entry) -> tuple[str, str, str]:
    """Files linked of all, seconds the training waited, seconds until durable."""
    cost = entry.manifest.cost if entry.manifest else None
    if entry.manifest is None or cost is None:
        return "", "", ""
    return (
        f"{cost.linked}/{len(entry.manifest.files)}",
        f"{cost.stall:.3f} s",
        f"{cost.seconds:.2f} s",
    )


def _commit(entry: Entry) -> str:
    git = entry.manifest.environment.git if entry.manifest else None
    return f"{git.commit[:8]}{'+' if git.dirty else ''}" if git else ""


def _row(entry: Entry) -> dict[str, Any]:
    if entry.manifest is None:
        return {"step": entry.step, "path": str(entry.path), "damaged": entry.damaged}
    cost = entry.manifest.cost
    git = entry.manifest.environment.git
    return {
        "step": entry.step,
        "path": str(entry.path),
        "created": entry.manifest.created,
        "metrics": {name: _plain(value) for name, value in entry.metrics.items()},
        "bytes": entry.nbytes,
        "best": entry.best,
        "verified": entry.checked,
        "cost": None if cost is None else {n: getattr(cost, n) for n in cost.__struct_fields__},
        "commit": git.commit if git else None,
        "changes": list(entry.changes),
    }


def _plain(value: Any) -> Any:
    # JSON has no NaN and no infinity; as text they survive every reader.
    finite = isinstance(value, int | float) and value == value and abs(value) != float("inf")
    return value if finite else str(value)


def _number(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
