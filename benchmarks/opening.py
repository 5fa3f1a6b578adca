"""How long it takes, and how much memory, to say what a large file holds.

`python -m benchmarks.opening [GIB] [ROUNDS]` writes one GPT-like state dict with AdamW state as a
torch zip, a legacy torch file and a safetensors file, then runs in turn, each in a process of its
own: `holdtrue inspect`, and what people use today. Prints medians of wall time and peak memory.
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HOLDTRUE = str(Path(sys.executable).with_name("holdtrue"))
LOADERS = {
    "torch.load": "import sys, torch; torch.load(sys.argv[1], weights_only=True)",
    "torch.load(mmap=True)": (
        "import sys, torch; torch.load(sys.argv[1], weights_only=True, mmap=True)"
    ),
    "safetensors.safe_open": (
        "import sys\nfrom safetensors import safe_open\n"
        "f = safe_open(sys.argv[1], 'pt')\n[f.get_slice(k).get_shape() for k in f.keys()]"
    ),
}


# Run in a process of its own: a child starts out with its parent's peak memory.
MAKE = """
import sys, torch
from safetensors.torch import save_file
folder, gib, width = sys.argv[1], float(sys.argv[2]), 1024
tensors = {
    f"h.{layer}.{name}.{kind}": torch.full((rows * width, width), 0.5)
    for layer in range(max(1, round(gib * 2**30 / 4 / (3 * 12 * width * width))))
    for name, rows in (("attn.qkv", 3), ("attn.out", 1), ("mlp.up", 4), ("mlp.down", 4))
    for kind in ("weight", "exp_avg", "exp_avg_sq")
}
torch.save(tensors, f"{folder}/zip.pt")
torch.save(tensors, f"{folder}/legacy.pt", _use_new_zipfile_serialization=False)
save_file(tensors, f"{folder}/model.safetensors")
print(len(tensors), "tensors, torch", torch.__version__)
"""


def measure(command: list[str]) -> tuple[float, float]:
    """Wall seconds and peak MiB of one process."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command} ended with {process.returncode}")
    return seconds, resource_mib(usage)


def resource_mib(usage: resource.struct_rusage) -> float:
    return usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main(gib: float = 2.0, rounds: int = 5) -> None:
    with tempfile.TemporaryDirectory(prefix="holdtrue-bench-") as name:
        folder = Path(name)
        files = {
            "torch zip": folder / "zip.pt",
            "torch legacy": folder / "legacy.pt",
            "safetensors": folder / "model.safetensors",
        }
        make = [sys.executable, "-c", MAKE, str(folder), str(gib)]
        made = subprocess.run(make, check=True, capture_output=True, text=True).stdout.strip()
        commands: dict[tuple[str, str], list[str]] = {}
        for kind, path in files.items():
            commands[kind, "holdtrue inspect"] = [HOLDTRUE, "inspect", str(path)]
            for loader, program in LOADERS.items():
                if ("safetensors" in loader) == (kind == "safetensors") and not (
                    kind == "torch legacy" and "mmap" in loader
                ):
                    commands[kind, loader] = [sys.executable, "-c", program, str(path)]
        figures: dict[tuple[str, str], list[tuple[float, float]]] = {key: [] for key in commands}
        for _ in range(rounds):
            for key, command in commands.items():
                figures[key].append(measure(command))
        size = files["torch zip"].stat().st_size / 2**30
        print(f"{size:.2f} GiB, {made}, {rounds} rounds in turn\n")
        print("| file | tool | median s | min–max s | peak MiB |\n|---|---|---|---|---|")
        for (kind, tool), runs in figures.items():
            times = [seconds for seconds, _ in runs]
            peak = max(mib for _, mib in runs)
            spread = f"{min(times):.2f}–{max(times):.2f}"
            print(f"| {kind} | {tool} | {statistics.median(times):.2f} | {spread} | {peak:.0f} |")


if __name__ == "__main__":
    main(*(kind(text) for kind, text in zip((float, int), sys.argv[1:], strict=False)))
