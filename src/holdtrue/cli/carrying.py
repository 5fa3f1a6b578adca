"""What `convert` and `salvage` have in common: their options, and how their result looks."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from holdtrue.doctor.kinds import KINDS, title

if TYPE_CHECKING:
    from holdtrue.doctor.convert import Converted

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _in_bytes(ctx: click.Context, param: click.Parameter, value: int | None) -> int | None:
    return None if value is None else value << 20


def carrying_options(command: _Command) -> _Command:
    """The options of both commands."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


_OPTIONS = (
    click.option("--to", type=click.Choice(KINDS), help="The format; else the name of DST tells."),
    click.option("--part", help="Which state dict: its path, or the last name of it."),
    click.option(
        "--shard-size",
        "shard_bytes",
        type=click.IntRange(1),
        callback=_in_bytes,
        metavar="MIB",
        help="Of one shard, at most; with --to shards.",
    ),
    click.option("--overwrite", is_flag=True, help="Replace DST if it exists."),
    click.option("--json", is_flag=True, help="What was done, and the report, as JSON."),
)


def show(made: "Converted", json: bool) -> None:
    """What was written and what was not, on stdout."""
    from rich.text import Text

    from holdtrue.cli.render import counted, show_json, size, stdout, styled_finding
    from holdtrue.findings import report_to_builtins, summary

    if json:
        show_json(
            {
                "path": str(made.path),
                "kind": made.kind,
                "tensors": made.tensors,
                "nbytes": made.nbytes,
                **report_to_builtins(made.report),
            }
        )
        return
    console = stdout()
    facts = f" · {title(made.kind)} · {counted(made.tensors, 'tensor')}, {size(made.nbytes)}"
    console.print(Text.assemble((str(made.path), "bold"), facts))
    for finding in made.report.findings:
        console.print()
        console.print(styled_finding(finding))
    if made.report.findings:
        console.print()
        console.print(Text(summary(made.report)))
