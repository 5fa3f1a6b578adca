"""Saves, reads, converts and compares a state that is larger than the memory it may take.

Started as a program: how the memory is held down, its MiB, the MiB of the state, a folder. It
loads torch once and forks for every operation; the limit is on what the child takes on top of what
it inherited. The state lies in a mapped file, as what is larger than memory must. Prints as JSON
what each operation said, and the most memory of its own it had.
"""

import json
import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import holdtrue
from holdtrue.doctor.convert import convert
from holdtrue.doctor.diff import diff

MIB = 1 << 20
WIDTH = 1024
LAYERS = 8


class Layer(nn.Module):
    """One matrix, in memory, on meta, or mapped: `weight` is taken as it is."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)


def mapped(path: Path, rows: int, *, turned: bool = False) -> nn.Sequential:
    """A model whose parameters are a file; `turned`: none of them lies in the order of its rows."""
    flat = torch.from_file(str(path), shared=True, size=LAYERS * rows * WIDTH, dtype=torch.float32)
    shape = (LAYERS, WIDTH, rows) if turned else (LAYERS, rows, WIDTH)
    parts = flat.view(shape)
    return nn.Sequential(*(Layer(part.t() if turned else part) for part in parts))


def in_part(rows: int, *wanted: int) -> nn.Sequential:
    """A model on meta, but for the layers that are wanted."""
    devices = ["cpu" if i in wanted else "meta" for i in range(LAYERS)]
    return nn.Sequential(*(Layer(torch.empty(rows, WIDTH, device=d)) for d in devices))


def fill(path: Path, nbytes: int) -> None:
    """No two MiB of the file are the same."""
    block = np.random.default_rng(0).standard_normal(MIB // 4, dtype=np.float32)
    with path.open("wb") as file:
        for i in range(nbytes // MIB):
            block[0] = i
            file.write(block.tobytes())


def equal(layer: nn.Module, source: nn.Module) -> bool:
    """Compared piece by piece: the comparison is not what is measured."""
    pairs = zip(layer.weight.split(256), source.weight.split(256), strict=True)  # type: ignore[operator]
    return all(torch.equal(a, b) for a, b in pairs)


def operations(folder: Path, rows: int) -> dict[str, Callable[[], Any]]:
    """What is tried, in this order: later ones read what earlier ones wrote."""
    state, kept = folder / "state", folder / "kept"

    def save(name: str, *, turned: bool = False) -> str:
        return str(holdtrue.save(folder / name, model=mapped(state, rows, turned=turned)).files)

    def run() -> str:
        with holdtrue.Run(folder / "run", model=mapped(state, rows), verify="after") as run:
            run.save(1, wait=True)
            run.save(2, wait=True)
            return str(run.steps())

    def restore(*wanted: int, verify: Any = "first") -> str:
        model, source = in_part(rows, *wanted), mapped(state, rows)
        only = [f"{i}.*" for i in wanted]
        report = holdtrue.open(kept).restore(model=model, only=only, verify=verify)
        right = report.ok and all(equal(model[i], source[i]) for i in wanted)
        return "right" if right else str(report)

    def materialise() -> str:
        """Nothing of the model is there yet; one layer is wanted of it."""
        model = in_part(rows)
        report = holdtrue.open(kept).restore(model=model, only="3.*")
        right = report.ok and equal(model[3], mapped(state, rows)[3])
        left = all(p.is_meta for i, layer in enumerate(model) for p in layer.parameters() if i != 3)
        return "right" if right and left else str(report)

    def converted(name: str, to: str) -> str:
        return "right" if convert(kept, folder / name, to=to).report.ok else "wrong"  # type: ignore[arg-type]

    def compared(a: str, b: str) -> str:
        found = diff(folder / a, folder / b)
        return f"{found.equal_tensors} equal, {len(found.changed)} changed"

    def whole(name: str) -> str:
        return str(holdtrue.verify(folder / name).ok)

    return {
        "saving": lambda: save("kept"),
        "saving what is not in order": lambda: save("turned", turned=True),
        "saving into a run": run,
        "verifying": lambda: whole("kept"),
        "converting to safetensors": lambda: converted("a.safetensors", "safetensors"),
        "converting to torch": lambda: converted("a.pt", "torch"),
        "verifying a torch file": lambda: whole("a.pt"),
        "comparing with itself in another format": lambda: compared("kept", "a.pt"),
        "comparing with another": lambda: compared("kept", "turned"),
        "restoring one layer": lambda: restore(5),
        "restoring one layer, verified on the way": lambda: restore(2, verify="while"),
        "restoring one layer of a model on meta": materialise,
    }


def anonymous() -> int:
    with Path("/proc/self/status").open() as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


def hold_down(how: str, nbytes: int) -> None:
    """From here on the process cannot take more than `nbytes` on top of what it has."""
    if how == "cgroup":
        return join(Path(os.environ["HOLDTRUE_TEST_CGROUP"]))
    with Path("/proc/self/status").open() as status:
        now = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (now + nbytes, now + nbytes))
    return None


def join(group: Path) -> None:
    (group / "cgroup.procs").write_text(str(os.getpid()))


def child(work: Callable[[], Any], how: str, nbytes: int, out: int) -> None:
    """One operation, in a process that is held down; says how it went, and its peak."""
    before, peak = anonymous(), 0
    over = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.005):
            peak = max(peak, anonymous() - before)

    threading.stack_size(1 * MIB)  # 8 MiB for each count, and are never touched
    hold_down(how, nbytes)
    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    try:
        said = work()
    except BaseException as error:
        said = f"{type(error).__name__}: {error}"
    over.set()
    watcher.join()
    seconds = round(time.perf_counter() - began, 1)
    os.write(out, json.dumps({"said": said, "peak": peak, "seconds": seconds}).encode())


def main(how: str, limit: int, size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    rows = size * MIB // 4 // WIDTH // LAYERS
    fill(folder / "state", size * MIB)
    # What is imported at the first use is imported once, here.
    warm = folder / "warm"
    warm.mkdir()
    fill(warm / "state", LAYERS * MIB)
    for work in operations(warm, MIB // 4 // WIDTH).values():
        work()
    for name, work in operations(folder, rows).items():
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            child(work, how, limit * MIB, writer)
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            told = pipe.read()
        _, status = os.waitpid(pid, 0)
        told = json.loads(told) if told else {"said": f"killed: {status}", "peak": -1}
        print(json.dumps({"what": name, **told}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
