"""The directory in which checkpoints are until they are whole, and what killed saves leave there.

It stands beside what is saved. Names in it end with the process that made them, so that those of
one that is gone can be told from those of one that is at work. Nothing is reached through it where
it is a link: a directory that someone sent must not lead us outside of it.
"""

import contextlib
import os
import re
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import xxhash

from holdtrue.storage.own_names import STAGING, ObstacleError
from holdtrue.storage.processes import Process, is_gone, lives, mark, marked, shares_kernel

_TRIES = 1000  # each is lost only to another save that ended in the same instant
_LONGEST = 120  # bytes of a name that go into a staging name, which file systems end at 255
_OF_A_RUN = re.compile(r"(removed-)*step-[0-9]{9,}\.")


def staged_name(name: str) -> str:
    """What `name` is called in the area, by this process and at this time only."""
    return f"{stem(name)}.{mark()}.{uuid4().hex[:8]}"


def replaced_name(name: str) -> str:
    """What the old `name` is called in the area while a new one takes its place."""
    return f"{stem(name)}.replaced.{uuid4().hex[:8]}"


def stem(name: str) -> str:
    """A name as staging names begin with it: a long one is cut, and a digest tells it apart."""
    raw = os.fsencode(name)
    if len(raw) <= _LONGEST:
        return name
    return os.fsdecode(raw[:_LONGEST]) + "~" + xxhash.xxh3_64_hexdigest(raw)


def within(area: Path, act: Callable[[], object]) -> None:
    """Do something that needs `area`, which another save may remove at any moment. Raises
    ObstacleError where something else stands there."""
    for attempt in range(_TRIES):
        try:
            with contextlib.suppress(FileExistsError):  # Path's exist_ok asks again, too late
                area.mkdir()
            kind = area.lstat().st_mode
            if not stat.S_ISDIR(kind):
                what = "a link" if stat.S_ISLNK(kind) else "no directory"
                raise ObstacleError(
                    area, "not-a-directory", f"{what} stands where saves keep what is not whole yet"
                )
            act()
        except FileNotFoundError:
            if attempt == _TRIES - 1 or not area.parent.is_dir():
                raise
        else:
            return


def leave(area: Path) -> None:
    # Only when empty: another process may be saving beside us.
    with contextlib.suppress(OSError):
        area.rmdir()


def erase(place: Path) -> None:
    """Remove what is there, as far as the system lets; of a link, the link."""
    with contextlib.suppress(OSError):
        if stat.S_ISDIR(place.lstat().st_mode):
            shutil.rmtree(place, ignore_errors=True)
        else:
            place.unlink()


def retire(place: Path) -> bool:
    """Remove something of an area; True when it is gone.

    It is renamed first. Of two that want it, a save that publishes it and a process that believes
    that save to be dead, one has it whole and the other is told; and what is removed by half, when
    this is killed, has the name of what is to be removed.
    """
    doomed = place.with_name(staged_name(f"removed-{place.name}"))
    try:
        place.rename(doomed)
    except OSError:
        return not os.path.lexists(place)
    erase(doomed)
    return not os.path.lexists(doomed)


def leftovers(parent: Path) -> list[str]:
    """What saves that ended early left in `parent`; that of processes that live is not."""
    with contextlib.suppress(OSError):
        found = ((name, _owner(name)) for name in _names(parent / STAGING))
        return [name for name, owner in found if owner is None or not lives(owner)]
    return []


def clear_leftovers(parent: Path, *, alone: bool = False) -> list[str]:
    """Remove what killed saves of this machine left in `parent`; returns the names removed.

    What belongs to a process that lives, or may live, in another container or on another machine,
    stays; so does the old copy that an interrupted replacement put aside. `alone` says that this
    process holds the kernel's lock of the run: then no other of the same kernel is at work on its
    steps, in whatever container it was. Raises OSError where it may not be looked into.
    """
    area = parent / STAGING
    removed = []
    for name in _names(area):
        owner = _owner(name)
        if owner is None:
            continue
        locked_out = alone and _OF_A_RUN.match(name) and shares_kernel(owner)
        if (is_gone(owner) or (locked_out and lives(owner) is None)) and retire(area / name):
            removed.append(name)
    if removed or os.path.lexists(area):
        leave(area)
    return removed


def put_aside(target: Path) -> list[Path]:
    """Old copies of `target` left by a replacement that was killed between its two renames."""
    area = target.absolute().parent / STAGING
    ours = re.compile(re.escape(stem(target.name)) + r"\.replaced\.[0-9a-f]{8}")
    with contextlib.suppress(OSError):
        return [area / name for name in _names(area) if ours.fullmatch(name)]
    return []


def _names(area: Path) -> list[str]:
    """What is in an area, in order; nothing where it is none."""
    try:
        return sorted(os.listdir(area)) if stat.S_ISDIR(area.lstat().st_mode) else []
    except (FileNotFoundError, NotADirectoryError):
        return []


def _owner(staged: str) -> Process | None:
    """The process in a staging directory's name: "name.process.random"."""
    parts = staged.rsplit(".", 2)
    return marked(parts[1]) if len(parts) == 3 else None
