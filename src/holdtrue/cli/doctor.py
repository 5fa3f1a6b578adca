"""holdtrue doctor: what is wrong with a checkpoint, why, and how to mend it."""

import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from holdtrue.findings import Report

_NOT_MADE = {"model-unavailable", "optimizer-unavailable"}


@click.command(name="doctor", short_help="What is wrong with a checkpoint.")
@click.argument("path")
@click.option("--model", metavar="PKG.MOD:NAME", help="Makes the model it is meant for.")
@click.option("--optimizer", metavar="PKG.MOD:NAME", help="Makes the optimizer from the model.")
@click.option("--deep", is_flag=True, help="Read the values of all tensors too.")
@click.option("--json", is_flag=True, help="The report as JSON.")
def command(path: str, model: str | None, optimizer: str | None, deep: bool, json: bool) -> None:
    """Say what is wrong with a checkpoint of any format, or with loading it, and how to mend it.

    With --model, import what makes the model (package.module:name, or file.py:name), and say
    whether the file fits it, and what call makes it fit.

    With --optimizer as well, say whether training can go on: the function gets the model, and
    returns the optimizer, or the optimizer and its scheduler.

    Exit status 0: nothing above a note; 1: findings; 2: the path could not be reached, or the model
    not be made.
    """
    from holdtrue.cli.imported import imported
    from holdtrue.cli.render import show_report
    from holdtrue.diagnosis.diagnose import diagnose

    targets: dict[str, Any] = {"model": imported(model)} if model else {}
    if optimizer:
        targets["optimizer"] = imported(optimizer, "--optimizer")
    found = _read_all(path, targets) if deep else diagnose(path, **targets)
    show_report(found, json=json)
    if any(f.code in _NOT_MADE for f in found.findings):
        sys.exit(2)
    sys.exit(int(any(f.severity != "note" for f in found.findings)))


def _read_all(path: str, targets: dict[str, Any]) -> "Report":
    from holdtrue.cli.progress import progress_bar  # not imported where all is told at once
    from holdtrue.diagnosis.diagnose import diagnose

    with progress_bar("reading") as progress:
        return diagnose(path, deep=True, progress=progress, **targets)
