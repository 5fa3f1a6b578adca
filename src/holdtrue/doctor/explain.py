"""The pages that explain findings: one a code, shipped in the wheel.

A page is Markdown: `# code`, one line that says what it is, then sections. Its example reproduces
the finding; a test runs it.
"""

from importlib.resources import files

from msgspec import Struct

_PAGES = files("holdtrue.doctor") / "pages"


class Page(Struct, frozen=True):
    code: str
    title: str  # one line
    text: str  # all of it, Markdown


def codes() -> tuple[str, ...]:
    """Every code that has a page, in alphabetical order."""
    names = (entry.name for entry in _PAGES.iterdir())
    return tuple(sorted(name.removesuffix(".md") for name in names if name.endswith(".md")))


def page(code: str) -> Page | None:
    """The page of a code; None where there is none."""
    if code not in codes():
        return None
    text = (_PAGES / f"{code}.md").read_text("utf-8")
    lines = text.splitlines()
    return Page(code=code, title=next(line for line in lines[1:] if line), text=text)
