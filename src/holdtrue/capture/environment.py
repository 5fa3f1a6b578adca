"""What this process runs on, as far as loading or resuming may depend on it."""

import functools
import platform
import socket
import sys
from importlib.metadata import Distribution, distributions, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from msgspec.structs import replace

from holdtrue.capture.git import git_state
from holdtrue.capture.secrets import mask_command
from holdtrue.limits import limits
from holdtrue.records.environment import Build, Environment

_MOST_ARGUMENTS, _LONGEST = 200, 1000  # of a command line; characters of one argument


def environment() -> Environment:
    """The record of this process. What cannot change is found out once."""
    return replace(
        running(),
        distributions=_distributions(),
        command=_command(),
        hostname=socket.gethostname() if limits().hostname else None,
        git=git_state(),
    )


def running() -> Environment:
    """No more than decides which bits come out: what a restore compares, each time."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    return Environment(
        holdtrue=_version(),
        python=platform.python_version(),
        torch=str(torch.__version__),
        numpy=np.__version__,
        platform=f"{sys.platform}-{platform.machine()}",
        system=_system(),
        threads=torch.get_num_threads(),
        interop_threads=torch.get_num_interop_threads(),
        accelerators=tuple(torch.cuda.get_device_name(i) for i in devices),
        build=_build(),
        flags=flags(),
    )


def flags() -> dict[str, bool | str]:
    """The switches of torch that decide which bits come out."""
    return {
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn_deterministic": bool(torch.backends.cudnn.deterministic),
        "cudnn_benchmark": bool(torch.backends.cudnn.benchmark),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "cudnn_tf32": bool(torch.backends.cudnn.allow_tf32),
        "default_dtype": str(torch.get_default_dtype()).removeprefix("torch."),
    }


@functools.cache
def _build() -> Build:
    cudnn: Any = torch.backends.cudnn
    return Build(
        git=torch.version.git_version,
        debug=bool(torch.version.debug),
        cuda=torch.version.cuda,
        hip=torch.version.hip,
        cudnn=cudnn.version() if torch.cuda.is_available() else None,
        capability=torch.backends.cpu.get_cpu_capability(),
    )


@functools.cache
def _version() -> str:
    return version("holdtrue")


@functools.cache
def _system() -> str:
    return platform.platform()


@functools.cache
def _owners() -> dict[str, list[Distribution]]:
    """Top-level module → the distributions that brought it.

    `importlib.metadata.packages_distributions` says the same, in five times the time.
    """
    found: dict[str, list[Distribution]] = {}
    for distribution in distributions():
        listed = distribution.read_text("top_level.txt")
        if listed is None:
            files = (distribution.read_text("RECORD") or "").splitlines()
            tops = {line.partition("/")[0].partition(",")[0].partition(".")[0] for line in files}
        else:
            tops = set(listed.split())
        for top in tops:
            found.setdefault(top, []).append(distribution)
    return found


_versions: dict[str, tuple[tuple[str, str], ...]] = {}  # top-level module → (name, version)


def _distributions() -> dict[str, str]:
    """The versions of the distributions that the imported modules belong to."""
    # Whoever imports or removes a module changes the number, or the last name.
    return dict(_of_modules(len(sys.modules), next(reversed(sys.modules))))


@functools.lru_cache(maxsize=1)
def _of_modules(number: int, last: str) -> dict[str, str]:
    tops = {name.partition(".")[0] for name in list(sys.modules)}
    for top in tops - _versions.keys():
        _versions[top] = tuple((d.name, d.version) for d in _owners().get(top, ()))
    return dict(sorted(pair for top in tops for pair in _versions[top]))


def _command() -> tuple[str, ...]:
    """The command line: the program by its name, the home directory as ~."""
    arguments = [str(a)[:_LONGEST] for a in sys.argv[:_MOST_ARGUMENTS]]
    if not arguments:
        return ()
    home = str(Path.home())
    rest = [a.replace(home, "~") if len(home) > 1 else a for a in arguments[1:]]
    return mask_command([Path(arguments[0]).name, *rest])
