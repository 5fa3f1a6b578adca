"""Executes what a finding prints: a line for the shell, or a line of Python."""

import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from copy import deepcopy
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from click import ClickException
from click.exceptions import Exit

import holdtrue
from benchmarks.diagnosis.broken import Broken, Mended
from holdtrue.cli import cli

# Besides our own, what a printed line may call; anything else is not executed.
_PROGRAMS = frozenset({"gunzip", "unxz", "bunzip2", "zstd", "unzip", "tar", "mv", "cp"})


def works(command: str, broken: Broken, targets: Mapping[str, Any]) -> str:
    """Runs a command and checks its effect; empty if it mended the case, else why not."""
    assert isinstance(broken.mend, Mended)
    seen: dict[str, Any] = {**targets, "holdtrue": holdtrue, "torch": torch}
    before = Path.cwd()
    os.chdir(broken.path.parent)
    try:
        first = command.split()[0]
        if first == "holdtrue" or first in _PROGRAMS:
            _in_shell(command, seen)
        else:
            _in_python(command, seen)
        return "" if broken.mend.check(seen) else "it ran, and what it left is not right"
    except (SystemExit, Exit, ClickException) as error:
        return f"it ended with status {getattr(error, 'exit_code', error)}"
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    finally:
        os.chdir(before)


def copied(targets: Mapping[str, Any]) -> dict[str, Any]:
    """Targets of their own for each attempt; an optimizer keeps to the copied parameters."""
    try:
        return deepcopy(dict(targets))
    except RuntimeError:  # old weight_norm modules cannot be copied
        return dict(targets)


def _in_python(command: str, seen: dict[str, Any]) -> None:
    try:
        code = compile(command, "<fix>", "eval")
    except SyntaxError:
        exec(compile(command, "<fix>", "exec"), seen)
    else:
        seen["value"] = eval(code, seen)  # noqa: S307 - executing it is the point


def _in_shell(command: str, seen: dict[str, Any]) -> None:
    words = shlex.split(command, comments=True)
    seen["written"] = [w for w in words if not w.startswith("-")][-1]
    if words[0] != "holdtrue":
        if shutil.which(words[0]) is None:
            raise FileNotFoundError(f"{words[0]} is not on this machine")
        subprocess.run(words, check=True, capture_output=True, timeout=60)
        return
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        try:
            cli.main(words[1:], standalone_mode=False)
        except SystemExit as ended:
            if ended.code not in (0, 1, None):  # 1: it did its work and has something to say
                raise
