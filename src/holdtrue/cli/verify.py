"""holdtrue verify: every byte against its digest."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from holdtrue.findings import Report


@click.command(name="verify", short_help="Read every byte and compare it with its digest.")
@click.argument("path")
@click.option("--model", metavar="PKG.MOD:NAME", help="Makes the model: runs the saved probe too.")
@click.option(
    "--sealed-by", metavar="KEY", help="Public key, PEM: its owner has to have sealed it."
)
@click.option("--json", is_flag=True, help="The report as JSON.")
def command(path: str, model: str | None, sealed_by: str | None, json: bool) -> None:
    """Read every byte of a checkpoint, or of every checkpoint of a run, and compare it.

    With --sealed-by, a seal (see `holdtrue seal`) has to be there, and every file has to be as it
    was sealed. With --model, import what makes the model, restore into it, and run the probe that
    was saved.

    Exit status 0: all is as it was written; 1: something is not; 2: it could not be read.
    """
    from holdtrue.cli.imported import imported
    from holdtrue.cli.progress import ProgressBar
    from holdtrue.cli.render import show_json
    from holdtrue.errors import HoldtrueError
    from holdtrue.findings import report_to_builtins
    from holdtrue.storage.locating import steps
    from holdtrue.verification import verify

    factory = imported(model) if model else None
    places = [str(p) for p in steps(Path(path)).values()] or [path]
    reports: list[Report] = []
    worst = 0
    for place in places:
        try:
            bar = ProgressBar("verifying", after=0.5)
            found = verify(place, model=factory, sealed_by=sealed_by, progress=bar)
            worst = max(worst, 0 if found.ok else 1)
        except HoldtrueError as error:
            found = error.report
            worst = max(worst, error.exit_code)
        reports.append(found)
        if not json:
            _show(found)
    if json:
        values = [report_to_builtins(r) for r in reports]
        show_json(values[0] if len(values) == 1 else values)
    sys.exit(worst)


def _show(report: "Report") -> None:
    from holdtrue.cli.render import show_report, stdout

    if report.findings or report.not_checked:
        show_report(report, json=False)
    else:
        stdout().print(f"{report.subject}: every byte is as it was written")
