"""Prints how many MiB a save and its restores add to the process, as JSON; takes a folder.

A process of its own: what other tests have taken and given back stays in an allocator.
"""

import gc
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

import holdtrue

WIDTH, LAYERS = 2048, 10  # 16 MiB each; with the moments of Adam 480 MiB
SMALL = 3000  # of 10 KiB: 30 MiB more


class Peak:
    """The highest resident set since this was made, above what it was then."""

    def __init__(self) -> None:
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5", "ascii")  # the kernel's high mark starts anew
        self._before = _status("VmRSS")

    def mib(self) -> float:
        return (_status("VmHWM") - self._before) / 1024


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(field + ":")))


def training(width: int, layers: int, small: int) -> dict[str, Any]:
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))
    model.small = nn.ParameterList(torch.rand(2560) for _ in range(small))
    optimizer = torch.optim.Adam(model[0:layers].parameters())
    for parameter in model[0:layers].parameters():
        parameter.grad = torch.rand_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return {"model": model, "optimizer": optimizer}


def added(parts: dict[str, Any], place: Path) -> dict[str, float]:
    found = {}
    peak = Peak()
    holdtrue.save(place / "sync", **parts)
    found["save"] = peak.mib()
    for verify in ("first", "while"):
        with torch.no_grad():
            for parameter in parts["model"].parameters():
                parameter.zero_()
        peak = Peak()
        holdtrue.open(place / "sync").restore(**parts, verify=verify)
        found[f"restore {verify}"] = peak.mib()
        assert all(p.any() for p in parts["model"].parameters())
    shutil.rmtree(place / "sync")
    run = holdtrue.Run(place / "run", keep=holdtrue.Keep(last=1), **parts)
    peak = Peak()
    for step in range(1, 5):
        with torch.no_grad():
            for parameter in parts["model"].parameters():
                parameter.add_(1)
        run.save(step)
        run.flush()
        found[f"save behind {step}"] = peak.mib()
    run.close()
    shutil.rmtree(place / "run")
    return found


def main(place: Path) -> None:
    (place / "little").mkdir()
    added(training(64, 2, 10), place / "little")  # imports and first calls are not what is asked
    parts = training(WIDTH, LAYERS, SMALL)
    tensors = [*parts["model"].parameters()]
    tensors += [t for s in parts["optimizer"].state.values() for t in s.values()]
    found = added(parts, place)
    found["state"] = sum(t.nbytes for t in tensors) / (1 << 20)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
