"""Where frameworks train: a run, or a checkpoint, behind the hooks that they offer.

Each module imports its framework, so import the one you need: `holdtrue.integrations.lightning`.
"""

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
