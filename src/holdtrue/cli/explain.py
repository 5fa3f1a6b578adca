"""holdtrue explain: the page of a code, or the pages that fit another tool's message."""

import sys
from io import UnsupportedOperation
from select import select

import click

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
        from importlib.resources import files

        print((files("holdtrue") / "report.schema.json").read_text("utf-8"), end="")
        return
    from holdtrue.cli.pages import list_pages, show_message, show_page
    from holdtrue.doctor.explain import page

    if what == "-":
        what = _piped()
    elif what is None and _something_is_piped():
        what = _piped().strip() or None
    if what is None:
        list_pages(json=json)
    elif (found := page(what)) is not None:
        show_page(found, json=json)
    else:
        show_message(what, json=json)


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
