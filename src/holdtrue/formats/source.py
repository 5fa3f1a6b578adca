"""Getting at a file that someone else named: looked at before it is opened, errors as findings."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import BinaryIO

from holdtrue.errors import OpenError, fail
from holdtrue.findings import Confidence, Finding

_SPECIAL = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}
_UNWAITING = getattr(os, "O_NONBLOCK", 0)  # POSIX only
_BINARY = getattr(os, "O_BINARY", 0)  # Windows only
_NEIGHBOURS = 10_000  # names of a folder that are looked through for one that is meant


def refuse(path: str, code: str, what: str, why: str = "", fix: str = "", *,
           command: str = "", confidence: Confidence = "certain") -> OpenError:  # fmt: skip
    """The OpenError for a path that is not a checkpoint, with its one finding."""
    return fail(
        OpenError,
        path,
        Finding(
            code=code,
            severity="error",
            where=path,
            what=what,
            why=why,
            fix=fix,
            command=command,
            confidence=confidence,
        ),
    )


def inspect_path(path: str) -> os.stat_result:
    """The status of a file or directory. Anything else, or nothing there, raises OpenError."""
    try:
        status = os.stat(path)  # noqa: PTH116, Path.stat would not take a hostile name as it is
    except ValueError:
        raise refuse(
            path, "path-missing", "the path holds a zero character",
            "no file system has such names; the path was cut together from something else",
            fix="give a path as the file system knows it",
        ) from None  # fmt: skip
    except OSError as error:
        raise unreachable(path, error) from None
    kind = _SPECIAL.get(stat.S_IFMT(status.st_mode))
    if kind is not None:
        raise refuse(
            path,
            "special-file",
            f"the path is {kind}, not a file",
            "reading it could wait for ever or act on a machine; it was not opened",
            "give the path of a regular file; write a pipe's contents to a file first",
        )
    return status


def open_source(path: str) -> BinaryIO:
    """A regular file, open for reading. Raises OpenError."""
    if stat.S_ISDIR(inspect_path(path).st_mode):
        raise refuse(
            path, "directory-unknown", "a file is expected, this is a directory",
            fix="give the file's own path",
        )  # fmt: skip
    try:
        # Non-blocking, so that a pipe put there since it was looked at cannot hang the process.
        number = os.open(path, os.O_RDONLY | _UNWAITING | _BINARY)
        return os.fdopen(number, "rb")
    except OSError as error:
        raise unreachable(path, error) from None


def read_bytes(path: str, start: int = 0, nbytes: int = -1) -> bytes:
    """Some or all bytes of a regular file; fewer where it ends. Raises OpenError."""
    with open_source(path) as file:
        try:
            file.seek(start)
            return file.read(nbytes)
        except OSError as error:
            raise unreachable(path, error) from None


def is_plain_name(name: str) -> bool:
    """True for a file name that stays in its folder, on every system."""
    return (
        bool(name)
        and name not in (".", "..")
        and not any(c in "/\\:" or ord(c) < 32 for c in name)
        and len(name) < 256
    )


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
    """Where a path is read: what the system refuses in the block is a refusal of the path.

    The calls between opening and reading, `stat` and `seek`, fail on a disk or share that is
    failing. A pipe that broke is where the progress is told, and passes.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise unreachable(path, error) from error


def unreachable(path: str, error: OSError) -> OpenError:
    """The refusal of a path that the system would not open or read."""
    if error.errno in (errno.EACCES, errno.EPERM):
        return refuse(
            path,
            "permission-denied",
            "it may not be read",
            error.strerror or "",
            "give yourself read permission (chmod -R u+rX), or run as the file's owner",
        )
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return _missing(path)
    return refuse(
        path, "path-unreadable", "the path cannot be read", error.strerror or type(error).__name__,
        "check the path, and that the disk or network share is there",
    )  # fmt: skip


def _missing(path: str) -> OpenError:
    if not path:
        return refuse(
            "''", "path-missing", "the path is empty",
            "a variable that was never set gives such a path", "give the path of a checkpoint",
        )  # fmt: skip
    if Path(path).is_symlink():
        return refuse(
            path, "path-missing", "the link leads nowhere",
            f"it points at {str(Path(path).readlink())!r}, which is not there",
            "fetch the target, or make the link anew",
        )  # fmt: skip
    folder = Path(path).parent
    try:
        names = [
            entry.name for entry, _ in zip(os.scandir(folder), range(_NEIGHBOURS), strict=False)
        ]
    except OSError:
        return refuse(
            path, "path-missing", "there is no such file",
            f"the folder {str(folder)!r} is not there or cannot be listed", "check the path",
        )  # fmt: skip
    near = get_close_matches(Path(path).name, names, n=3, cutoff=0.6)
    if near:
        listed = " or ".join(str(folder / name) for name in near)
        return refuse(
            path, "path-missing", "there is no such file",
            "the folder holds a name that is close to it", f"did you mean {listed}?",
        )  # fmt: skip
    held = ", ".join(sorted(names)[:5]) or "nothing"
    return refuse(
        path, "path-missing", "there is no such file", f"the folder {str(folder)!r} holds {held}",
        "check the path",
    )  # fmt: skip
