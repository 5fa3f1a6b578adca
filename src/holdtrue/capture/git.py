"""The commit that a process runs, asked of git; a save never fails or waits for it."""

import os
import subprocess
import sys
import threading
from pathlib import Path

from holdtrue.capture.secrets import mask
from holdtrue.limits import limits
from holdtrue.records.environment import Git

_SECONDS = 3.0  # for one question; network file systems can be slow
# A repository's own configuration can name programs to run; none of them is wanted here.
_QUIET = ("-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "--no-optional-locks")

_known: dict[tuple[str, int], Git | None] = {}


def git_state() -> Git | None:
    """Commit, branch and changes of the code that runs; None outside a repository.

    Asked once: what was imported does not follow later edits.
    """
    place, most = _place(), limits().diff_bytes
    if (place, most) not in _known:
        _known[place, most] = read_state(place, most)
    return _known[place, most]


def read_state(place: str, most: int) -> Git | None:
    """The state of the working tree around `place`, with at most `most` bytes of its diff."""
    commit = _line(place, "rev-parse", "--verify", "HEAD")
    if not commit:
        return None
    branch = _line(place, "symbolic-ref", "--short", "-q", "HEAD")
    status = _ask(place, "status", "--porcelain", "--untracked-files=no", most=1)
    if not status:
        return Git(commit=commit, branch=branch or None)
    if not most:
        return Git(commit=commit, branch=branch or None, dirty=True)
    diff = _ask(
        place, "diff", "--no-ext-diff", "--no-textconv", "--no-color", "HEAD", most=most + 1
    )
    kept = mask(diff[:most].decode(errors="replace")) if diff else None
    cut = diff is not None and len(diff) > most
    return Git(commit=commit, branch=branch or None, dirty=True, diff=kept, cut=cut)


def _place() -> str:
    """The directory of the program, or the current one for what runs from a library."""
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    installed = main and ("site-packages" in main or main.startswith(sys.prefix))
    place = Path(main).parent if main and not installed else Path.cwd()
    return os.fspath(place.absolute())


def _line(place: str, *question: str) -> str:
    return (_ask(place, *question) or b"").decode(errors="replace").strip()


def _ask(place: str, *question: str, most: int = 4096) -> bytes | None:
    """What git answers, cut at `most` bytes; None where it does not."""
    try:
        process = subprocess.Popen(
            ["git", *_QUIET, *question],
            cwd=place,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, ValueError):  # no git here, or no such directory
        return None
    timer = threading.Timer(_SECONDS, process.kill)
    timer.start()
    try:
        with process:
            answer = process.stdout.read(most) if process.stdout else b""
            more = len(answer) == most
            if more:
                process.kill()  # it would wait for a reader of the rest
        return answer if more or process.returncode == 0 else None
    except OSError:
        return None
    finally:
        timer.cancel()
