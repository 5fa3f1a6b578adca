"""Why something could not be written, as findings."""

import errno
import os
import shutil
from pathlib import Path
from shlex import quote

from holdtrue.errors import SaveError, fail
from holdtrue.findings import Finding
from holdtrue.storage.own_names import STAGING, ObstacleError


def already_exists(target: Path, fix: str = "") -> Finding:
    """The finding for a name that is taken."""
    return Finding(
        code="already-exists",
        severity="error",
        where=str(target),
        what="there is something under this name already",
        why="what exists under a name never changes by itself, so that a reader can rely on it",
        fix=fix or "choose another path, or replace it: overwrite=True (--overwrite)",
    )


def not_written(target: Path, error: OSError, needed: int) -> SaveError:
    """The error for what the file system refused; `needed` is the size of all that was to come."""
    if isinstance(error, ObstacleError):
        return fail(SaveError, str(target), _in_the_way(error))
    if error.errno == errno.EROFS:
        return fail(SaveError, str(target), _read_only(target, error))
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        code, what = "disk-full", "the disk is full"
        fix = "free some space, then try again; what was to be saved is untouched"
    elif error.errno in (errno.EACCES, errno.EPERM):
        code, what = "permission-denied", "the directory may not be written to"
        fix = f"chmod u+rwx {target.absolute().parent}, or save somewhere else"
    elif error.errno == errno.ENOENT and not target.absolute().parent.is_dir():
        return fail(SaveError, str(target), _gone(target, error))
    elif error.errno == errno.ENOENT and STAGING in Path(error.filename or "").parts:
        return fail(SaveError, str(target), _emptied(error))
    elif isinstance(error, FileExistsError):
        return fail(SaveError, str(target), already_exists(target))
    elif error.errno == errno.ENOMEM:
        code, what = "write-failed", "there is not enough memory"
        fix = "free some memory, then try again; what was to be saved is untouched"
    elif error.errno == errno.ENOTDIR:
        code, what = "not-a-directory", "a file stands where a directory is needed"
        fix = "choose another path"
    else:
        code, what = "write-failed", "the disk would not take it"
        fix = "check the disk, then try again; what was to be saved is untouched"
    free = _free_bytes(target)
    return fail(
        SaveError,
        str(target),
        Finding(
            code=code,
            severity="error",
            where=error.filename or str(target),
            what=f"not saved: {what}",
            why=f"the system says: {error.strerror or error}; needed {needed:,} bytes"
            + (f", free {free:,}" if free is not None else "")
            + ". What was saved before is unchanged",
            fix=fix,
        ),
    )


def _in_the_way(error: ObstacleError) -> Finding:
    place = str(error.filename)
    return Finding(
        code=error.code,
        severity="error",
        where=place,
        what=f"not saved: {error.strerror}",
        why="the name is holdtrue's own, and this was not made by it; writing there, or through "
        "it, would change what may be someone's work, or lies outside of this directory",
        fix="look at what it is, then remove it or move it away",
        command=f"ls -ld {quote(place)}",
    )


def _emptied(error: OSError) -> Finding:
    return Finding(
        code="write-failed",
        severity="error",
        where=str(error.filename),
        what="not saved: files of it were removed or changed while it was written",
        why=f"until a checkpoint is whole it is kept in {STAGING}, and something else was at work "
        "in there, as clean-up scripts are; what was saved before is unchanged",
        fix=f"save again, and let nothing else remove what is in {STAGING}",
    )


def _gone(target: Path, error: OSError) -> Finding:
    home = target.absolute().parent
    return Finding(
        code="write-failed",
        severity="error",
        where=error.filename or str(target),
        what="not saved: the directory disappeared during the save",
        why=f"{home} was there when the save began, and somebody removed, renamed or unmounted it; "
        "what was saved in it before is gone from here too",
        fix="bring it back from where it is now, or save again: the directory is made anew",
        command=f"ls -ld {quote(str(home))} {quote(str(home.parent))}",
    )


def _read_only(target: Path, error: OSError) -> Finding:
    mount = next(p for p in target.absolute().parents if os.path.ismount(p) or p == p.parent)
    return Finding(
        code="permission-denied",
        severity="error",
        where=error.filename or str(target),
        what="not saved: the file system is mounted read-only",
        why=f"nothing can be written below {mount}: it was mounted so, as volumes of containers "
        "often are, or the system made it so after disk errors (dmesg tells). "
        "What was saved before is unchanged",
        fix="save somewhere else, or mount it for writing (as root; a container's volume outside)",
        command=f"mount -o remount,rw {quote(str(mount))}",
    )


def _free_bytes(target: Path) -> int | None:
    for place in (target, *target.absolute().parents):
        try:
            return shutil.disk_usage(place).free
        except OSError:
            continue
    return None
