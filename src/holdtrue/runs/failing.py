"""Which failed save ends a training."""

from typing import Literal

from holdtrue.errors import HoldtrueError

FAILURES = (HoldtrueError, OSError, MemoryError)  # of a save; all else is wrong with the program
# What a disk or a machine refuses for a time. All else is for the caller to mend.
_PASSING = frozenset(
    {"disk-full", "write-failed", "read-failed", "read-back-differs", "path-unreadable"}
)


def ends_training(
    error: BaseException, on_error: Literal["raise", "warn"], *, kept_one: bool
) -> bool:
    """Whether a failure is raised: where that was asked for; and until a first save has succeeded,
    where waiting mends nothing. A training that can never be kept says so while someone looks.
    """
    if on_error == "raise" or not isinstance(error, FAILURES):
        return True
    if kept_one or not isinstance(error, HoldtrueError):
        return False
    return not any(finding.code in _PASSING for finding in error.report.errors)
