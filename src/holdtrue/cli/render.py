"""How findings, sizes and ages look on a terminal."""

import json as jsonlib
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.text import Text

from holdtrue.doctor.amounts import counted as counted
from holdtrue.doctor.amounts import size as size
from holdtrue.doctor.explain import page
from holdtrue.findings import Finding, Report, render_finding, report_to_builtins, summary

_STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}


class _Output(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # rich would end the process, with status 1


def stdout() -> Console:
    """Without wrapping: what is piped on stays one line a row."""
    console = _Output(soft_wrap=True, highlight=False)
    if not console.is_terminal:
        console.width = 400
    return console


def show_report(report: Report, *, json: bool) -> None:
    """The report on stdout, as JSON or for people."""
    if json:
        show_json(report_to_builtins(report))
        return
    console = stdout()
    console.print(
        Text.assemble((report.subject, "bold"), report.heading.removeprefix(report.subject))
    )
    for finding in report.findings:
        console.print()
        console.print(styled_finding(finding))
    console.print()
    console.print(Text(summary(report)))
    explained = next((f.code for f in report.findings if page(f.code)), None)
    if explained is not None:
        console.print(Text(f"holdtrue explain {explained} says more", style="dim"))


def show_json(value: Any) -> None:
    print(jsonlib.dumps(value, indent=2, ensure_ascii=False))


def styled_finding(finding: Finding) -> Text:
    """The plain rendering with colour added, so that both always say the same."""
    text = Text(render_finding(finding))
    text.stylize(_STYLES[finding.severity], 0, len(f"{finding.severity}[{finding.code}]"))
    for label in ("where", "saved", "here", "why", "fix", "sure?"):
        text.highlight_regex(rf"(?m)^  {label} ", style="dim")
    return text


def age(created: str) -> str:
    """How long ago an ISO 8601 time was: 5 s, 3 min, 2 h, 4 d; the text itself if it is no time."""
    try:
        seconds = (datetime.now(UTC) - datetime.fromisoformat(created)).total_seconds()
    except (ValueError, TypeError):
        return created[:30]
    for step, unit in ((60, "s"), (60, "min"), (24, "h")):
        if seconds < step:
            return f"{seconds:.0f} {unit}"
        seconds /= step
    return f"{seconds:.0f} d"
