"""Who may save into a run: one process at a time. Readers never ask."""

import logging
import os
import threading
from collections import Counter
from pathlib import Path

from holdtrue.errors import SaveError, fail
from holdtrue.findings import Finding
from holdtrue.storage.locking import Held, Lock, Owner
from holdtrue.storage.own_names import LOCK

_log = logging.getLogger("holdtrue")

# Several `Run`s of one process may share a directory, as in a notebook: they share one lock.
_locks: dict[tuple[int, Path], Lock] = {}
_holders: Counter[tuple[int, Path]] = Counter()
_guard = threading.RLock()  # a run that is collected meanwhile gives back on this thread


def take(run: Path) -> None:
    """Become, or stay, the run's writer. Raises SaveError where another process is, or OSError."""
    key = (os.getpid(), run)
    with _guard:
        if key in _locks and not _locks[key].in_place:
            _locks.pop(key).release()
        if key not in _locks:
            try:
                lock = _locks[key] = Lock(run)
            except Held as held:
                raise fail(SaveError, str(run), _held(run, held.owner)) from None
            if lock.taken_from is not None:
                gone = lock.taken_from
                _log.warning(
                    "%s: process %d held this run since %r and is gone; the run is taken over",
                    run, gone.pid, gone.since,
                )  # fmt: skip
            if not lock.flocked:
                _log.warning(
                    "%s: no flock here; the lock is a file that names its owner, and one left by "
                    "another machine has to be removed by hand: %s",
                    run, run / LOCK,
                )  # fmt: skip
        _holders[key] += 1


def _leave_to_parent() -> None:
    """In a forked child, such as a loader's worker: the locks are its parent's, and end with it."""
    global _guard
    _guard = threading.RLock()  # another thread of the parent may have held it
    for lock in _locks.values():
        lock.forget()
    _locks.clear()
    _holders.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


def still_held(run: Path) -> bool:
    """Whether the lock of this process is the one that stands in the run's directory."""
    lock = _locks.get((os.getpid(), run))
    return lock is not None and lock.in_place


def is_alone(run: Path) -> bool:
    """Whether this process holds the run by the kernel's lock, which no other can hold then."""
    lock = _locks.get((os.getpid(), run))
    return lock is not None and lock.flocked


def give_back(run: Path) -> None:
    """The opposite of `take`; the last one of this process frees the run."""
    key = (os.getpid(), run)
    with _guard:
        if key in _locks:
            _holders[key] -= 1
            if _holders[key] <= 0:
                del _holders[key]
                _locks.pop(key).release()


def _held(run: Path, owner: Owner | None) -> Finding:
    who = (
        f"process {owner.pid} on {owner.host}, since {owner.since}"
        if owner
        else "a process that left no name"
    )
    return Finding(
        code="run-held",
        severity="error",
        where=str(run),
        what=f"another process saves into this run: {who}",
        why="two trainings in one run would take turns at being the latest, and prune each other's "
        "checkpoints; reading is free",
        fix="let it end, or give this training a run of its own; if that process is on another "
        f"machine and gone, remove {run / LOCK}",
    )
