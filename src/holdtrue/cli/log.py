"""holdtrue log: the checkpoints of a run."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from holdtrue.runs.history import Entry

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
    from holdtrue.cli.render import show_json, stdout
    from holdtrue.cli.rows import row, table
    from holdtrue.runs.history import read_history
    from holdtrue.storage.locating import require_steps

    place = Path(run)
    if follow:
        _follow(place, every_byte)
        return
    entries = read_history(require_steps(place), every_byte=every_byte)
    if json:
        show_json([row(entry) for entry in entries])
    else:
        stdout().print(table(entries))
    sys.exit(int(any(entry.damaged for entry in entries)))


def _follow(run: Path, every_byte: bool) -> None:
    """Until it is interrupted. On a terminal the table is drawn anew, elsewhere rows are added."""
    from rich.live import Live

    from holdtrue.cli.render import stdout
    from holdtrue.cli.rows import line, table
    from holdtrue.runs.history import read_history
    from holdtrue.storage.locating import steps

    console = stdout()
    entries: list[Entry] = []
    try:
        if console.is_terminal:
            with Live(console=console, auto_refresh=False) as live:
                known: dict[int, Path] | None = None
                while True:
                    # A published checkpoint is not rewritten in place: its files, with --verify
                    # all their bytes, are read once. The ages are told anew at each look.
                    found = steps(run)
                    if found != known:
                        entries = read_history(found, every_byte=every_byte, known=entries)
                        known = found
                    live.update(table(entries), refresh=True)
                    time.sleep(_POLL)
        shown: set[int] = set()
        while True:
            found = steps(run)
            if found.keys() - shown:
                entries = read_history(found, every_byte=every_byte, known=entries)
                for entry in entries:
                    if entry.step not in shown:
                        console.print(line(entry))
                        sys.stdout.flush()
                shown |= found.keys()
            time.sleep(_POLL)
    except KeyboardInterrupt:
        return
