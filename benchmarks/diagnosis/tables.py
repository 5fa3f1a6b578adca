"""The figures as tables: for the terminal, for people, and for programs."""

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.diagnosis.judging import Verdict
from benchmarks.diagnosis.peers import TOOLS


def by_family(verdicts: Sequence[Verdict], healthy: int, alarms: int) -> list[list[str]]:
    """Recall, place and fix of the doctor, by family; false alarms in the last row."""
    rows = [["family", "cases", "right code", "right place", "fix works"]]
    tried = [v for v in verdicts if not v.skipped]
    for family in sorted({v.family for v in tried}):
        rows.append([family, *_counts([v for v in tried if v.family == family])])
    rows.append(["**all**", *_counts(tried)])
    rows.append(["healthy files", str(healthy), f"{alarms} false alarms", "", ""])
    return rows


def _counts(verdicts: Sequence[Verdict]) -> list[str]:
    n = len(verdicts)
    counted = (
        sum(v.found for v in verdicts),
        sum(v.placed for v in verdicts),
        sum(v.mended for v in verdicts),
    )
    return [str(n), *(f"{c} ({c / n:.0%})" for c in counted)]


def side_by_side(verdicts: Sequence[Verdict]) -> list[list[str]]:
    """Who names the cause, who names the fix, and who says nothing: the same cases for all."""
    tried = [v for v in verdicts if not v.skipped and v.peers]
    names = ["holdtrue doctor", *TOOLS, "best of the others"]
    head = ["family", "cases", *(f"{name}: cause / fix" for name in names)]
    rows = [head]
    for family in [*sorted({v.family for v in tried}), "**all**"]:
        here = [v for v in tried if family in (v.family, "**all**")]
        cells = [f"{sum(v.found for v in here)} / {sum(v.mended for v in here)}"]
        for tool in TOOLS:
            cells.append(_cell([v.peers[tool] for v in here]))
        best = [_best(v.peers.values()) for v in here]
        rows.append([family, str(len(here)), *cells, _cell(best)])
    return rows


def silence(verdicts: Sequence[Verdict]) -> list[list[str]]:
    """How many of the cases each tool says nothing about."""
    tried = [v for v in verdicts if not v.skipped and v.peers]
    rows = [["tool", "says nothing", "of"]]
    rows.append(["holdtrue doctor", str(sum(not v.told for v in tried)), str(len(tried))])
    for tool in TOOLS:
        quiet = sum(bool(v.peers[tool].get("silent")) for v in tried)
        rows.append([tool, str(quiet), str(len(tried))])
    return rows


def _cell(answers: Sequence[dict[str, Any]]) -> str:
    absent = [a["absent"] for a in answers if "absent" in a]
    if absent:
        return absent[0]
    return f"{sum(a['cause'] for a in answers)} / {sum(a['fix'] for a in answers)}"


def _best(answers: Iterable[dict[str, Any]]) -> dict[str, Any]:
    given = [a for a in answers if "absent" not in a]
    return {key: any(a[key] for a in given) for key in ("cause", "fix")}


def markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *rest = rows
    lines = [_line(head), _line(["---"] * len(head)), *(_line(row) for row in rest)]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def misses(verdicts: Sequence[Verdict]) -> str:
    """Every case that is not right in all three, with what is missing."""
    lines = []
    for v in verdicts:
        if not v.right and not v.skipped:
            lacking = [
                n for n, ok in (("code", v.found), ("place", v.placed), ("fix", v.mended)) if not ok
            ]
            why = " ".join(v.why[:1])[:200].replace("|", "/").replace("\n", " ")
            lines.append(f"- `{v.family}/{v.name}`: {', '.join(lacking)}: {why}")
    return "\n".join(lines) or "None."
