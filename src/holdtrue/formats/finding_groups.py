"""Findings with one cause as one finding: a broken file can repeat itself a million times."""

from collections.abc import Iterable

from msgspec.structs import replace

from holdtrue.findings import Finding

MOST = 10_000  # findings that one reader keeps before they are grouped
_PLACES = 1000  # named of one cause


def keep(findings: list[Finding], found: Finding) -> None:
    """Append, as long as there are not too many already."""
    if len(findings) < MOST:
        findings.append(found)


def group(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """One finding for each cause, in order of first occurrence, with all its places."""
    causes: dict[tuple[str, str, str], list[Finding]] = {}
    for found in findings:
        causes.setdefault((found.code, found.severity, found.what), []).append(found)
    return tuple(
        replace(same[0], places=tuple(f.where for f in same[:_PLACES]))
        if len(same) > 1
        else same[0]
        for same in causes.values()
    )
