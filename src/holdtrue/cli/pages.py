"""The pages of the codes, and what a message means, on stdout."""

import re
import sys

import click
from rich.markdown import Markdown
from rich.table import Table
from rich.text import Text

from holdtrue.cli.render import show_json, stdout
from holdtrue.doctor.explain import Page, near_codes, page, pages
from holdtrue.doctor.messages import Reading, read_message

_CODE = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*\Z")


def list_pages(*, json: bool) -> None:
    if json:
        show_json([{"code": one.code, "title": one.title} for one in pages()])
        return
    console = stdout()
    if not console.is_terminal:
        for one in pages():
            print(f"{one.code:<28} {one.title}")
        return
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for one in pages():
        table.add_row(Text(one.code, style="bold"), one.title)
    console.print(table)
    console.print(Text("\nholdtrue explain CODE", style="dim"))


def show_page(found: Page, *, json: bool) -> None:
    if json:
        sections = dict(found.sections)
        show_json({"code": found.code, "title": found.title, "sections": sections})
        return
    console = stdout()
    if console.is_terminal:
        console.print(Markdown(found.text), soft_wrap=False)
    else:
        print(found.text, end="")


def show_message(what: str, *, json: bool) -> None:
    reading = read_message(what)
    sure = any(fit.sure for fit in reading.fits)
    near = near_codes(what) if not sure and _CODE.match(what) else []
    if json:
        show_json(
            {
                "message": reading.message,
                "facts": list(reading.facts),
                "pages": [
                    {"code": f.code, "title": f.title, "fit": "sure" if f.sure else "perhaps"}
                    for f in reading.fits
                ],
                "near": near,
            }
        )
    elif near:
        click.echo(f"holdtrue: no code is {what!r}; did you mean {' or '.join(near)}?", err=True)
    elif not reading.fits and not reading.facts:
        click.echo(f"holdtrue: no page fits {reading.message[:80]!r}", err=True)
    else:
        _show_reading(reading, sure=sure)
    if near or not (reading.fits or reading.facts):
        sys.exit(2)


def _show_reading(reading: Reading, *, sure: bool) -> None:
    console = stdout()
    console.print(Text(reading.message, style="bold"))
    for fact in reading.facts:
        console.print(Text(f"  {fact}"))
    console.print()
    for fit in reading.fits:
        line = Text("perhaps " if not fit.sure else "")
        line.append(fit.code, style="bold").append(f"  {fit.title}")
        console.print(line)
    first = page(reading.fits[0].code) if reading.fits and sure else None
    if first is not None:
        console.print()
        show_page(first, json=False)
    elif reading.fits:
        console.print(Text("\nholdtrue explain CODE says more", style="dim"))
