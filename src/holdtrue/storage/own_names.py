"""Names beside checkpoints that are holdtrue's own, and what is raised where others took them."""

import errno
from pathlib import Path

STAGING = ".staging"  # the directory of what is not whole yet
LOCK = ".lock"  # says which process writes a run


class ObstacleError(OSError):
    """Something that is not ours stands at a name that is; it is neither followed nor changed."""

    def __init__(self, place: Path, code: str, what: str) -> None:
        super().__init__(errno.EEXIST, what, str(place))
        self.code = code  # of the finding
