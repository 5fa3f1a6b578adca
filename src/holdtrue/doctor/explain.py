"""The pages that explain findings: one a code, shipped in the wheel.

A page is Markdown: `# code`, one line that says what it is, then sections. Its example reproduces
the finding; a test runs it. Its section "Messages" lists what other tools say for the same cause.
"""

import re
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Any

from msgspec import Struct
from msgspec.json import schema

from holdtrue.findings import Report

_PAGES = files("holdtrue.doctor") / "pages"
_HEADING = re.compile(r"^## (.+)$", re.MULTILINE)
_MESSAGE = re.compile(r"^- `(.+)`$", re.MULTILINE)


class Page(Struct, frozen=True):
    code: str
    title: str  # one line
    text: str  # all of it, Markdown

    @property
    def sections(self) -> dict[str, str]:
        """The text of each section by its heading."""
        pieces = _HEADING.split(self.text)
        return {name: text.strip() for name, text in zip(pieces[1::2], pieces[2::2], strict=True)}

    @property
    def messages(self) -> tuple[str, ...]:
        """What other tools say for the same cause; `<name>` stands for what varies."""
        return tuple(_MESSAGE.findall(self.sections.get("Messages", "")))


@cache
def codes() -> tuple[str, ...]:
    """Every code that has a page, in alphabetical order."""
    names = (entry.name for entry in _PAGES.iterdir())
    return tuple(sorted(name.removesuffix(".md") for name in names if name.endswith(".md")))


@cache
def page(code: str) -> Page | None:
    """The page of a code; None where there is none."""
    if code not in codes():
        return None
    text = (_PAGES / f"{code}.md").read_text("utf-8")
    lines = text.splitlines()
    return Page(code=code, title=next(line for line in lines[1:] if line), text=text)


def pages() -> tuple[Page, ...]:
    """All pages, in alphabetical order of their codes."""
    return tuple(found for code in codes() if (found := page(code)) is not None)


def near_codes(code: str) -> list[str]:
    """Codes that are written almost like this one."""
    return get_close_matches(code, codes(), n=3, cutoff=0.6)


def report_schema() -> dict[str, Any]:
    """The JSON schema of a report as `--json` prints it; the wheel has it as a file."""
    made = schema(Report)
    body = made["$defs"]["Report"]
    body["properties"] = {
        "ok": {"type": "boolean", "description": "True when no finding is an error."},
        **body["properties"],
    }
    body["required"] = ["ok", *body["required"]]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}
