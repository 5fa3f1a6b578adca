"""holdtrue doctor: what is wrong with a checkpoint, why, and how to mend it."""

import sys

import click

from holdtrue.cli.progress import progress_bar
from holdtrue.cli.render import show_report
from holdtrue.diagnosis import diagnose


@click.command(name="doctor", short_help="What is wrong with a checkpoint.")
@click.argument("path")
@click.option("--deep", is_flag=True, help="Read the values of all tensors too.")
@click.option("--json", is_flag=True, help="The report as JSON.")
def command(path: str, deep: bool, json: bool) -> None:
    """Say what is wrong with a checkpoint of any format, or with loading it, and how to mend it.

    Exit status 0: nothing above a note; 1: findings; 2: the path could not be reached.
    """
    with progress_bar("reading") as progress:
        found = diagnose(path, deep=deep, progress=progress)
    show_report(found, json=json)
    sys.exit(int(any(f.severity != "note" for f in found.findings)))
