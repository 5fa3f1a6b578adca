"""What a process does to the machine, seen by Python's own audit hook.

Armed in a forked child just before a file is opened, and never disarmed: the child ends.
"""

import os
import sys
from pathlib import Path
from typing import Any

# Running, importing or reaching for what is outside. None of it is ever needed to read a file.
_NEVER = (
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "os.startfile",
    "subprocess.Popen", "pty.spawn", "socket.", "ctypes.", "pickle.find_class",
    "webbrowser.open", "urllib.Request", "ftplib.", "smtplib.", "http.client.", "imaplib.",
    "telnetlib.", "poplib.", "nntplib.", "builtins.input", "builtins.breakpoint", "os.kill",
    "sys.settrace", "sys.setprofile", "sqlite3.", "winreg.", "syslog.", "pdb.Pdb", "os.chdir",
    "code.__new__", "function.__new__",
)  # fmt: skip
_HARMLESS = {"socket.gethostname"}  # for the name of what a save that was killed leaves behind
# Changing the tree of files: only beneath the folders that are ours to write.
_WRITING = {
    "os.remove": 1, "os.rename": 2, "os.rmdir": 1, "os.mkdir": 1, "os.link": 2, "os.symlink": 2,
    "os.chmod": 1, "os.chown": 1, "os.truncate": 1, "os.utime": 1, "os.setxattr": 1,
    "os.removexattr": 1, "shutil.rmtree": 1, "shutil.move": 2, "shutil.copyfile": 2,
    "shutil.copymode": 2, "shutil.copystat": 2, "shutil.copytree": 2, "tempfile.mkstemp": 1,
    "tempfile.mkdtemp": 1,
}  # fmt: skip
# Those that act on a name itself: of a link on the link, wherever it leads.
_ON_NAMES = {"os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.symlink"}
_LISTING = {"os.listdir", "os.scandir", "glob.glob", "os.walk"}
_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_LIBRARIES = ("holdtrue", "torch", "numpy", "encodings")


class Watch:
    """`seen` is what happened that may not happen, each a line."""

    def __init__(self, reading: list[Path], writing: list[Path]) -> None:
        self._writing = tuple(os.path.realpath(p) for p in writing)
        libraries = [Path(p) for p in (sys.prefix, sys.base_prefix, *sys.path) if p]
        kernel = [Path(p) for p in ("/proc", "/sys", "/dev/null", "/dev/urandom")]
        self._libraries = tuple(os.path.realpath(p) for p in libraries)
        self._reading = tuple(os.path.realpath(p) for p in (*reading, *kernel))
        self._reading += self._libraries + self._writing
        self.seen: list[str] = []
        self._busy = False

    def arm(self) -> None:
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._busy:  # what looking at an event does is not an event
            return
        self._busy = True
        try:
            self._look(event, arguments)
        finally:
            self._busy = False

    def _look(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            self._opened(*arguments)
        elif event in _WRITING:
            for path in arguments[: _WRITING[event]]:
                if event in ("os.remove", "os.rmdir", "os.mkdir"):
                    path = _at(path, arguments[-1])
                if not _beneath(path, self._writing, itself=event in _ON_NAMES):
                    self.seen.append(f"{event} {path!r}")
        elif event in _LISTING:
            if arguments and not _beneath(arguments[0], self._reading):
                self.seen.append(f"{event} {arguments[0]!r}")
        elif event == "import":
            if str(arguments[0]).partition(".")[0] not in (*_LIBRARIES, *sys.stdlib_module_names):
                self.seen.append(f"import {arguments[0]}")
        elif event == "exec":
            self._ran(arguments[0])
        elif event == "os.kill" and arguments[1] == 0:
            pass  # whether the owner of what a killed save left still lives
        elif event.startswith(_NEVER) and event not in _HARMLESS:
            self.seen.append(f"{event} {arguments!r}"[:300])

    def _opened(self, path: Any, mode: Any, flags: Any) -> None:
        if isinstance(path, int):
            return
        writes = isinstance(flags, int) and flags & _WRITE_FLAGS
        allowed = self._writing if writes else self._reading
        if os.fspath(path) != "/dev/null" and not _beneath(path, allowed):
            self.seen.append(f"open {path!r} for {'writing' if writes else 'reading'}")

    def _ran(self, code: Any) -> None:
        """What is run is a library's own file that is being imported, and no text of a file's."""
        place = str(getattr(code, "co_filename", ""))
        own = _beneath(place, self._libraries) and not place.startswith("<")
        if not own and not place.startswith("<frozen"):
            self.seen.append(f"exec of {place!r}")


def _at(path: Any, folder: Any) -> Any:
    """A name as seen from the folder whose descriptor it was given with, if with one."""
    if not isinstance(folder, int) or folder < 0:
        return path
    return Path(f"/proc/self/fd/{folder}").readlink() / os.fsdecode(path)


def _beneath(path: Any, folders: tuple[str, ...], *, itself: bool = False) -> bool:
    try:
        place = Path(os.fsdecode(path))
        real = os.path.realpath(place.parent if itself else place)
        real = str(Path(real, place.name)) if itself else real
    except (TypeError, ValueError):  # a NUL in it: no such file
        return True
    return any(real == folder or real.startswith(folder + os.sep) for folder in folders)
