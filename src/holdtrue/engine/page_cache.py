"""Whether what is read once will still be in memory when it is read again."""

from pathlib import Path

from holdtrue.limits import MIB

_LITTLE = 64 * MIB  # so much is always there, or was asked for anyway
_SHARE = 0.7  # of what is available: other programs go on, and the target grows


def fits_page_cache(nbytes: int) -> bool:
    """Whether the page cache has room for so many bytes; True where nobody can tell."""
    if nbytes <= _LITTLE:
        return True
    available = [n for n in (_of_machine(), _of_group()) if n is not None]
    return nbytes <= _SHARE * min(available, default=nbytes / _SHARE)


def _of_machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        found = next(line for line in lines if line.startswith("MemAvailable:"))
        return int(found.split()[1]) * 1024
    except (OSError, ValueError, StopIteration):
        return None


def _of_group() -> int | None:
    """What the control group may still take, its own page cache not counted: that gives way."""
    try:
        lines = Path("/proc/self/cgroup").read_text("ascii").splitlines()
        name = next(line for line in lines if line.startswith("0::"))[3:]
        place = Path("/sys/fs/cgroup") / name.strip("/")
        most = (place / "memory.max").read_text("ascii").strip()
        used = dict(
            line.split() for line in (place / "memory.stat").read_text("ascii").splitlines()
        )
        return None if most == "max" else int(most) - int(used["anon"])
    except (OSError, ValueError, KeyError, StopIteration):
        return None
