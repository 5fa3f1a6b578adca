"""A forked child whose system calls strace records, or makes fail, from a certain moment on.

The child is forked from a process that has imported everything already, so that a point costs
what strace costs. It waits until strace has taken hold of it, then acts. `inject` counts the calls
of one name: the child works in one thread, so the n-th is the same call every time.
"""

import contextlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct

CHANGING = (
    "open,openat,creat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,unlink,unlinkat,rmdir,"
    "symlink,symlinkat,write,writev,pwrite64,pwritev,fsync,fdatasync,fallocate,ftruncate,truncate,"
    "fcntl,flock,chmod,fchmod,fadvise64"
)
READING = (
    "read,pread64,lseek,stat,lstat,fstat,newfstatat,statx,access,faccessat,faccessat2,getdents64,"
    "statfs,fstatfs,readlink,close"
)
_NAME = re.compile(r"(\d+)\s+(\w+)\(")
_SECONDS = 60  # after which a child hangs
Act = Callable[[Path], dict[str, Any]]


class Point(Struct, frozen=True):
    """The `number`-th call of that name."""

    call: str
    number: int
    line: str = ""  # as strace wrote it down

    def __str__(self) -> str:
        return f"{self.call} {self.number}: {self.line}"


class Ended(Struct, frozen=True):
    told: dict[str, Any] | None  # None: it was killed before it could tell
    signal: int  # 0: none
    code: int
    output: str
    log: str


def needs_strace() -> None:
    """Skip the test where the system calls of a process cannot be watched."""
    if sys.platform != "linux" or not hasattr(os, "fork"):
        pytest.skip("system calls are watched with strace, on Linux")
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    tried = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, check=False)
    if tried.returncode:
        pytest.skip(f"strace may not trace here: {tried.stderr.decode()[:100]}")


def run_child(act: Act, root: Path, scratch: Path, *options: str) -> Ended:
    """Fork; let strace, with these options, take hold; then `act(root)` in the child."""
    go, gone = os.pipe()
    answer, answers = os.pipe()
    output, log = scratch / "output", scratch / "log"
    pid = os.fork()
    if pid == 0:
        os.close(gone)
        os.close(answer)
        _child(act, root, go, answers, output)
    os.close(go)
    os.close(answers)
    strace = None
    try:
        os.read(answer, 1)  # it is ready: what it opens for itself is not among the calls
        if options:
            strace = subprocess.Popen(
                ["strace", "-f", "-y", "-o", str(log), *options, "-p", str(pid)],
                stderr=subprocess.PIPE,
                text=True,
            )
            assert strace.stderr is not None
            first = strace.stderr.readline()
            assert "attached" in first, first
        os.write(gone, b"x")
        with os.fdopen(answer, "rb") as told:
            said = told.read()
        _, status = os.waitpid(pid, 0)
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    finally:
        os.close(gone)
        if strace is not None:
            assert strace.stderr is not None
            strace.stderr.close()
            strace.wait()
    code = os.waitstatus_to_exitcode(status)
    return Ended(
        json.loads(said) if said else None,
        -min(code, 0),
        max(code, 0),
        output.read_text(errors="replace") if output.exists() else "",
        log.read_text(errors="replace") if options and log.exists() else "",
    )


def _child(act: Act, root: Path, go: int, answers: int, output: Path) -> None:
    code = 70
    try:
        signal.alarm(_SECONDS)
        fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        os.close(fd)
        sys.stdout = os.fdopen(1, "w", closefd=False)
        sys.stderr = os.fdopen(2, "w", closefd=False)
        os.write(answers, b" ")
        select.select([go], [], [])  # and no read: that would be the first one of those counted
        told = act(root)
        os.write(answers, json.dumps(told).encode())
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def points(log: str, root: Path) -> Iterator[Point]:
    """The recorded calls that touch something below `root`, numbered as strace counts them."""
    counts: Counter[tuple[str, str]] = Counter()  # each thread's calls are counted apart
    seen: set[tuple[str, int]] = set()
    for line in log.splitlines():
        found = _NAME.match(line)
        if found is None:
            continue
        thread, call = found.groups()
        counts[thread, call] += 1
        number = counts[thread, call]
        if str(root) in line and (call, number) not in seen:
            seen.add((call, number))
            yield Point(call, number, line.partition(" ")[2].strip()[:160])


def of_calls(names: str) -> tuple[str, ...]:
    """Options that record these calls; the names that this machine does not have are left out."""
    return ("-e", "trace=" + ",".join("?" + name for name in names.split(",")))


def killing(point: Point) -> tuple[str, ...]:
    return _injecting(point, "signal=KILL")


def failing(point: Point, error: str) -> tuple[str, ...]:
    return _injecting(point, f"error={error}")


def refusing_from(point: Point, error: str) -> tuple[str, ...]:
    """From that call on, each of that name, on each thread by its own count."""
    return _injecting(point, f"error={error}", "+")


def _injecting(point: Point, what: str, on: str = "") -> tuple[str, ...]:
    return (
        "-e", f"trace={point.call}", "-e", f"inject={point.call}:{what}:when={point.number}{on}",
    )  # fmt: skip
