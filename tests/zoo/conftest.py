"""Prints what the zoo tried: one line an architecture, at the end of the session."""

from typing import Any

import pytest

ROWS = pytest.StashKey[dict[str, tuple[int, int, int]]]()


@pytest.fixture
def table(request: pytest.FixtureRequest) -> dict[str, tuple[int, int, int]]:
    """architecture → tensors, of these tied names, bytes."""
    return request.config.stash.setdefault(ROWS, {})


def pytest_terminal_summary(terminalreporter: Any) -> None:
    rows = terminalreporter.config.stash.get(ROWS, {})
    if not rows:
        return
    terminalreporter.write_sep("-", "architectures kept and restored bit for bit")
    for name, (tensors, tied, nbytes) in sorted(rows.items()):
        extra = f", {tied} tied" if tied else ""
        terminalreporter.write_line(f"{name:<40} {tensors:>4} tensors{extra}, {nbytes:,} bytes")
    total = sum(tensors for tensors, _, _ in rows.values())
    terminalreporter.write_line(f"{len(rows)} architectures, {total} tensors")
