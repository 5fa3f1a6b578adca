"""Findings and reports: what is wrong or different, as data.

A finding answers, in this order: what, where, why, fix. Rendering here is plain text, so that an
exception can show its report anywhere; colour belongs to the command line.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from msgspec import Struct, to_builtins

Severity = Literal["error", "warning", "note"]
Confidence = Literal["certain", "likely", "hint"]

_ORDER: dict[str, int] = {"error": 0, "warning": 1, "note": 2}
_EXAMPLES = 5  # places named in text when one cause has many


class Finding(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that is wrong or different.

    `saved` and `expected` hold the two values that differ, already as short text. `places` lists
    every place when one cause has several; `where` is then the first of them. `command` mends it
    as it stands: a line for the shell, beginning with the program's name, or a line of Python in
    which the targets have the caller's names (`model`, `optimizer`) and holdtrue is imported.
    """

    code: str
    severity: Severity
    where: str
    what: str
    why: str = ""
    fix: str = ""
    command: str = ""
    confidence: Confidence = "certain"
    saved: str | None = None
    expected: str | None = None
    places: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """How many places have this one cause."""
        return max(1, len(self.places))


class Report(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The findings of one check, and what was not checked."""

    subject: str
    findings: tuple[Finding, ...] = ()
    not_checked: tuple[str, ...] = ()
    about: str = ""  # what the subject is: its format, its content, its size

    @property
    def heading(self) -> str:
        """One line: the subject, and what it is."""
        return f"{self.subject} · {self.about}" if self.about else self.subject

    @property
    def ok(self) -> bool:
        """True when nothing of severity error was found."""
        return not any(f.severity == "error" for f in self.findings)

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.severity == "error")

    def __str__(self) -> str:
        return render_report(self)


def report(
    subject: str, findings: Iterable[Finding], not_checked: Iterable[str] = (), about: str = ""
) -> Report:
    """A report with its findings in a fixed order: severity, code, place."""
    ordered = tuple(sorted(findings, key=lambda f: (_ORDER[f.severity], f.code, f.where)))
    return Report(subject=subject, findings=ordered, not_checked=tuple(not_checked), about=about)


def grouped(
    code: str, severity: Severity, what: str, places: Sequence[str], **more: Any
) -> Finding:
    """One finding for one cause in several places."""
    return Finding(
        code=code,
        severity=severity,
        where=places[0],
        what=what,
        places=several(places),
        **more,
    )


def several(places: Iterable[str]) -> tuple[str, ...]:
    """For `Finding.places`: none where there is but one, which `where` names already."""
    named = tuple(places)
    return named if len(named) > 1 else ()


def render_finding(finding: Finding) -> str:
    """A finding as plain text, several lines, without a trailing newline."""
    lines = [f"{finding.severity}[{finding.code}]: {finding.what}"]
    places = finding.places or (finding.where,)
    shown = places[:_EXAMPLES]
    lines += _field("where", "\n".join(shown))
    if len(places) > len(shown):
        lines += _field("", f"… and {len(places) - len(shown)} more")
    if finding.saved is not None or finding.expected is not None:
        lines += _field("saved", finding.saved or "–")
        lines += _field("here", finding.expected or "–")
    if finding.why:
        lines += _field("why", finding.why)
    if finding.command:
        lines += _field("fix", finding.command)
    if finding.fix:
        lines += _field("" if finding.command else "fix", finding.fix)
    if finding.confidence != "certain":
        lines += _field("sure?", finding.confidence)
    return "\n".join(lines)


def render_report(report: Report) -> str:
    """The whole report as plain text: subject, findings, a closing count."""
    blocks = [report.heading, *(render_finding(f) for f in report.findings), summary(report)]
    return "\n\n".join(block for block in blocks if block)


def summary(report: Report) -> str:
    """One line: how many of each severity, and what was not checked."""
    counts = {s: sum(f.severity == s for f in report.findings) for s in _ORDER}
    parts = [f"{n} {s}{'s' if n != 1 else ''}" for s, n in counts.items() if n]
    line = ", ".join(parts) or "nothing found"
    if report.not_checked:
        line += " · not checked: " + ", ".join(report.not_checked)
    return line


def report_to_builtins(report: Report) -> dict[str, Any]:
    """The report as plain JSON values, with `ok` spelled out."""
    return {"ok": report.ok, **to_builtins(report)}


def _field(label: str, text: str) -> list[str]:
    first, *rest = text.split("\n") if text else [""]
    return [f"  {label:<6} {first}", *(f"  {'':<6} {line}" for line in rest)]
