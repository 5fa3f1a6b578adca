"""Which process something on a disk belongs to, and whether that one is known to be gone.

A number alone does not tell: another process has it later, containers count their own, and a disk
is shared by machines. Each says beside it which boot of a kernel, which namespace of numbers, and
when it began, where the system tells.
"""

import os
import re
import socket
from functools import lru_cache
from pathlib import Path

import xxhash
from msgspec import Struct

_MARK = re.compile(r"(\w{1,40})-(\d{1,10})(?:-([0-9a-f]{8})-(\d{1,20})-(\d{1,20}))?", re.ASCII)
_MOST = (1 << 31) - 1  # no system counts its processes further


class Process(Struct, frozen=True, kw_only=True):
    """A process; "" for what its system does not tell."""

    pid: int
    host: str
    boot: str = ""  # digest of the kernel's boot id
    namespace: str = ""  # in which `pid` is a number: each container has its own
    began: str = ""  # in the kernel's ticks; tells a process from a later one of the same number


def this_process() -> Process:
    boot, namespace, began = _told(os.getpid())
    return Process(
        pid=os.getpid(), host=socket.gethostname(), boot=boot, namespace=namespace, began=began
    )


def mark() -> str:
    """This process, as names of files end with it: without a dot, and short."""
    me = this_process()
    whole = f"-{me.boot}-{me.namespace}-{me.began}" if me.boot and me.namespace and me.began else ""
    return f"{_plain(me.host)}-{me.pid}{whole}"


def marked(text: str) -> Process | None:
    """The process of a mark; None where the text is none."""
    found = _MARK.fullmatch(text)
    if found is None:
        return None
    host, pid, boot, namespace, began = found.groups("")
    return Process(pid=int(pid), host=host, boot=boot, namespace=namespace, began=began)


def lives(process: Process) -> bool | None:
    """Whether a process is there; None where that cannot be told from here.

    An earlier boot of this machine has taken its processes along. Machines are told apart by their
    names, so two of one name must not share a disk; see decision 29.
    """
    me = this_process()
    same_boot = process.boot == me.boot if process.boot and me.boot else None
    if not same_boot and _plain(process.host) != _plain(me.host):
        return None
    if same_boot is False:
        return False
    if process.namespace and me.namespace and process.namespace != me.namespace:
        return None
    if not process_lives(process.pid):
        return False
    began = _began(process.pid)
    return not (began and process.began and began != process.began)


def is_gone(process: Process) -> bool:
    """True when it is known to be no more."""
    return lives(process) is False


def shares_kernel(process: Process) -> bool:
    """Whether it runs, or ran, on the kernel that this process runs on, in a container or not: one
    that could hold no lock that this process holds."""
    me = this_process()
    return bool(me.boot) and process.boot == me.boot


def process_lives(pid: int) -> bool:
    """True while there is a process of this number, whoever owns it."""
    if not 0 < pid <= _MOST:  # os.kill would mean a group by it, or overflow
        return False
    if pid == os.getpid():
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # not ours to signal, so it lives
        return True
    return True


@lru_cache(maxsize=1)
def _told(pid: int) -> tuple[str, str, str]:
    """Boot, namespace and beginning of this process, asked for once in each: a child has others."""
    try:
        raw = Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
        boot = xxhash.xxh3_64_hexdigest(raw)[:8] if raw else ""
    except OSError:
        boot = ""
    try:
        namespace = re.sub(r"\D", "", str(Path("/proc/self/ns/pid").readlink()))
    except (OSError, NotImplementedError):  # not every system has such links
        namespace = ""
    return boot, namespace, _began(pid)


def _began(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError, ValueError):
        return ""


def _plain(host: str) -> str:
    return "".join(c if c.isascii() and c.isalnum() else "_" for c in host)[:40] or "_"
