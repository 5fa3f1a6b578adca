"""Exceptions. Each carries the report that explains it; none is raised with a bare message."""

from typing import ClassVar, TypeVar

from holdtrue.findings import Finding, Report, render_report, report


class HoldtrueError(Exception):
    """Something could not be done, and nothing was left half-done. `.report` says what and why."""

    exit_code: ClassVar[int] = 1

    def __init__(self, report: Report) -> None:
        super().__init__(report)
        self.report = report

    def __str__(self) -> str:
        return "\n" + render_report(self.report)


class OpenError(HoldtrueError):
    """The path cannot be read as a checkpoint at all."""

    exit_code = 2


class DamageError(HoldtrueError):
    """What is on disk is not what was written."""


class SaveError(HoldtrueError):
    """The state was not saved. What was on disk before is unchanged."""


class RestoreError(HoldtrueError):
    """The checkpoint does not fit the target. The target is unchanged."""


def torch_missing(what: str) -> HoldtrueError:
    """The error for what needs torch where there is none."""
    return fail(
        HoldtrueError,
        what,
        Finding(
            code="package-missing",
            severity="error",
            where=what,
            what="this needs torch, which is not installed",
            why="opening and verifying do without; saving and restoring handle live objects",
            fix="pip install 'holdtrue[torch]'",
        ),
    )


_E = TypeVar("_E", bound=HoldtrueError)


def fail(error: type[_E], subject: str, *findings: Finding) -> _E:
    """The exception to raise for these findings."""
    return error(report(subject, findings))
