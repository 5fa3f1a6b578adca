"""Shared by all tests: one thread of arithmetic, no network, and the figures that tests report."""

import os
from collections import Counter
from collections.abc import Callable

import pytest

# Tests run side by side on few cores; and results must not depend on the number of threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

_FIGURE = "figure: "


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Count what was tried: `figure("optimizers")`; the totals stand at the end of the run."""

    def count(what: str, number: int = 1) -> None:
        record_property(_FIGURE + what, number)

    return count


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    totals: Counter[str] = Counter()
    for report in terminalreporter.stats.get("passed", []):
        for name, number in getattr(report, "user_properties", ()):
            if name.startswith(_FIGURE):
                totals[name.removeprefix(_FIGURE)] += number
    if totals:
        terminalreporter.section("what was tried")
        for name, number in sorted(totals.items()):
            terminalreporter.line(f"{number:>8,}  {name}")
