"""What it was measured on: processor, memory, disk, versions."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = (
    "holdtrue",
    "torch",
    "numpy",
    "xxhash",
    "safetensors",
    "torch_checkpointing",
    "moonclip",
    "tensorizer",
)


def describe(folder: Path) -> dict[str, str]:
    """The machine, and the file system that `folder` is on."""
    return {
        "processor": _field("/proc/cpuinfo", "model name") or platform.processor() or "not told",
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": _memory(),
        "file system": _file_system(folder),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _field(path: str, name: str) -> str:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def _memory() -> str:
    kib = _field("/proc/meminfo", "MemTotal").split()
    return f"{int(kib[0]) / 2**20:.0f} GiB" if kib else "not told"


def _file_system(folder: Path) -> str:
    """Kind and size, by the longest mount point that holds the folder. No device names: they say
    nothing of speed."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return "not told"
    place = folder.resolve()
    fitting = [m for m in mounts if place.is_relative_to(m[1])]
    if not fitting:
        return "not told"
    kind = max(fitting, key=lambda m: len(m[1]))[2]
    whole = os.statvfs(place)
    return f"{kind}, {whole.f_blocks * whole.f_frsize / 2**30:.0f} GiB"
