"""holdtrue explain: the page of a code, or the pages that fit another tool's message."""

import re
import sys
from importlib.resources import files
from io import UnsupportedOperation
from select import select

import click
from rich.markdown import Markdown
from rich.table import Table
from rich.text import Text

from holdtrue.cli.render import show_json, stdout
from holdtrue.doctor.explain import Page, near_codes, page, pages
from holdtrue.doctor.messages import Reading, read_message

_CODE = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*\Z")
_KEPT = 1 << 20  # bytes of what is piped in: its end, where a traceback stands
_SILENCE = 0.5  # seconds in which a program that pipes something in has begun to


@click.command(name="explain", short_help="What a finding, or an error message, means.")
@click.argument("what", required=False)
@click.option("--json", is_flag=True, help="As JSON.")
@click.option("--schema", is_flag=True, help="The JSON schema of a report.")
def command(what: str | None, json: bool, schema: bool) -> None:
    """The page of a finding's code: what happened, how it comes about, how to mend it.

    WHAT may also be the error message of another tool, in quotes; "-" reads a message or a whole
    traceback from stdin. Without WHAT, what is piped in at once is explained; else all codes are
    listed.
    """
    if schema:
        print((files("holdtrue") / "report.schema.json").read_text("utf-8"), end="")
        return
    if what == "-":
        what = _piped()
    elif what is None and _something_is_piped():
        what = _piped().strip() or None
    if what is None:
        _list(json=json)
    elif (found := page(what)) is not None:
        _show_page(found, json=json)
    else:
        _show_message(what, json=json)


def _something_is_piped() -> bool:
    """Whether stdin has something to read, or an end. A pipe that stays open and silent, as a
    service or a runner leaves it, is not waited for: "-" does that."""
    if sys.stdin is None or sys.stdin.isatty():
        return False
    try:
        readable, _, _ = select([sys.stdin], [], [], _SILENCE)
    except UnsupportedOperation:  # no stream of the system's: it cannot keep anyone waiting
        return True
    except (OSError, ValueError):  # closed, or nothing that can be waited for
        return False
    return bool(readable)


def _piped() -> str:
    """The end of what is piped in. Bytes that are no text are no reason to fail."""
    kept = b""
    while chunk := sys.stdin.buffer.read(_KEPT):
        kept = (kept + chunk)[-_KEPT:]
    return kept.decode("utf-8", "replace")


def _list(*, json: bool) -> None:
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


def _show_page(found: Page, *, json: bool) -> None:
    if json:
        sections = dict(found.sections)
        show_json({"code": found.code, "title": found.title, "sections": sections})
        return
    console = stdout()
    if console.is_terminal:
        console.print(Markdown(found.text), soft_wrap=False)
    else:
        print(found.text, end="")


def _show_message(what: str, *, json: bool) -> None:
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
        _show_page(first, json=False)
    elif reading.fits:
        console.print(Text("\nholdtrue explain CODE says more", style="dim"))
