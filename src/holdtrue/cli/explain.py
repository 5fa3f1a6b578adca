"""holdtrue explain: the page of a code, or the pages that fit another tool's message."""

import sys

import click
from rich.markdown import Markdown

from holdtrue.cli.render import stdout
from holdtrue.doctor.explain import codes, page


@click.command(name="explain", short_help="What a finding means.")
@click.argument("what", required=False)
def command(what: str | None) -> None:
    """The page of a finding's code; without one, all codes."""
    if what is None:
        for code in codes():
            found = page(code)
            print(f"{code:<28} {found.title if found else ''}")
        return
    found = page(what)
    if found is None:
        click.echo(f"holdtrue: no page fits {what[:80]!r}", err=True)
        sys.exit(2)
    stdout().print(Markdown(found.text))
