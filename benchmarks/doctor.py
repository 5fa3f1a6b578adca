"""How long it takes to be told what is wrong with a large file.

`python -m benchmarks.doctor [GIB] [ROUNDS]` writes a GPT-like state dict with AdamW state as a
torch zip and as safetensors, then runs in turn, each in a process of its own: `holdtrue doctor`,
what loads the file, and picklescan where it is installed. Prints medians of wall time and peak
memory.
"""

import statistics
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from benchmarks.opening import HOLDTRUE, LOADERS, MAKE, measure

_FILES = {"torch zip": "zip.pt", "safetensors": "model.safetensors"}
_LOADER = {"torch zip": "torch.load(mmap=True)", "safetensors": "safetensors.safe_open"}


def commands(folder: Path) -> dict[tuple[str, str], list[str]]:
    """What is measured, by the file's kind and the tool's name."""
    found: dict[tuple[str, str], list[str]] = {}
    for kind, name in _FILES.items():
        path, loader = str(folder / name), _LOADER[kind]
        found[kind, "holdtrue doctor"] = [HOLDTRUE, "doctor", path]
        found[kind, loader] = [sys.executable, "-c", LOADERS[loader], path]
        if kind == "torch zip" and find_spec("picklescan") is not None:
            found[kind, "picklescan"] = [sys.executable, "-m", "picklescan", "-p", path]
    return found


def main(gib: float = 2.0, rounds: int = 5) -> None:
    with tempfile.TemporaryDirectory(prefix="holdtrue-bench-") as name:
        make = [sys.executable, "-c", MAKE, name, str(gib)]
        made = subprocess.run(make, check=True, capture_output=True, text=True).stdout.strip()
        print(f"{gib:g} GiB, {made}, Python {sys.version.split()[0]}; medians of {rounds} rounds")
        taken: dict[tuple[str, str], list[tuple[float, float]]] = {}
        asked = commands(Path(name))
        for command in asked.values():  # once before: files in the cache, modules compiled
            measure(command)
        for _ in range(rounds):
            for key, command in asked.items():
                taken.setdefault(key, []).append(measure(command))
    for (kind, tool), figures in taken.items():
        seconds, mib = (statistics.median(column) for column in zip(*figures, strict=True))
        print(f"{kind:<12} {tool:<22} {seconds:7.2f} s {mib:8.0f} MiB")


if __name__ == "__main__":
    main(*(float(a) for a in sys.argv[1:2]), *(int(a) for a in sys.argv[2:3]))
