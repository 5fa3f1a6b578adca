"""Where frameworks train: a run, or a checkpoint, behind the hooks that they offer.

Each module imports its framework, so import the one you need: `holdtrue.integrations.lightning`.
"""

from typing import Any

from holdtrue.capture.rng import sources
from holdtrue.errors import HoldtrueError, fail
from holdtrue.findings import Finding


def package_missing(package: str, extra: str) -> HoldtrueError:
    """The error for an integration whose framework is not installed."""
    where = f"holdtrue.integrations.{extra}"
    return fail(
        HoldtrueError,
        where,
        Finding(
            code="package-missing",
            severity="error",
            where=where,
            what=f"this needs {package}, which is not installed",
            why="an integration is made of the framework's own classes",
            fix="it brings the versions that holdtrue was tested with",
            command=f"pip install 'holdtrue[{extra}]'",
        ),
    )


def several_processes(subject: str, count: int, fix: str, command: str = "") -> HoldtrueError:
    """The error where a run would keep only what one of several processes has."""
    return fail(
        HoldtrueError,
        subject,
        Finding(
            code="several-processes",
            severity="error",
            where=f"world size {count}",
            what=f"{count} processes train together; this keeps the state of one",
            why="random states and loaders differ between them, and sharded weights are on none of "
            "them whole",
            fix=fix,
            command=command,
        ),
    )


def random_states() -> dict[str, Any]:
    """The global random states as they are now. Frameworks draw between a resume and a step."""
    return {name: source.get() for name, source in sources().items()}


def set_random_states(states: dict[str, Any]) -> None:
    for name, source in sources().items():
        if name in states:
            source.set(states[name])
