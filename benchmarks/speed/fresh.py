"""A model that is not there yet: built, and given its saved weights, from the page cache.

Of the model alone, without its optimizer: that is what `build` and a mapped `load_file` give.
"""

import gc
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import holdtrue
from benchmarks.speed import files, raw
from benchmarks.speed.measured import Measured
from benchmarks.speed.ours import BUILD, MAPPED, ON_META
from benchmarks.speed.rounds import Say, said
from benchmarks.speed.states import Gpt, State

FRESH = "fresh load of the model, warm"
SAFETENSORS = "safetensors load_file, mapped, assign"
TORCH = "torch.load(mmap=True), assign"
COPIED = "safetensors load_file, copy_ into a new model"


def run(state: State, rounds: int, folder: Path, into: Measured, say: Say) -> None:
    model = state.model
    if not isinstance(model, Gpt):
        raise TypeError("only the GPT-like state is built anew")
    weights = model.state_dict()
    into.nbytes[f"{state.name}, model"] = sum(t.nbytes for t in weights.values())
    save_file(weights, folder / "model.safetensors")
    torch.save(weights, folder / "model.pt")
    holdtrue.save(folder / "checkpoint", model=model)
    with (folder / "raw").open("wb") as file:
        for tensor in weights.values():
            file.write(memoryview(tensor.detach().numpy()).cast("B"))
    ways = _ways(model, folder)
    if MAPPED in into.absent:
        ways.pop(MAPPED)
    for number in range(-1, rounds):  # one that does not count
        files.make_warm(folder)
        names = list(ways)
        at = number % len(names)
        for name in names[at:] + names[:at]:
            if name in into.failed.get(state.name, {}):
                continue
            gc.collect()
            try:
                began = time.perf_counter()
                made = ways[name]()
                took = time.perf_counter() - began
                _check(made, weights)
            except Exception as error:
                into.failed.setdefault(state.name, {})[name] = said(error)
                continue
            if number >= 0:
                into.add(state.name, FRESH, name, number, took)
        seconds = raw.first_touch(into.nbytes[f"{state.name}, model"], folder / "raw")
        if number >= 0:
            into.add(state.name, FRESH, raw.FRESH, number, seconds)
        say(f"fresh load: round {number + 1} of {rounds}")
    files.empty(folder)


def _ways(model: Gpt, folder: Path) -> dict[str, Callable[[], torch.nn.Module]]:
    shape = model.vocabulary, model.width, model.layers

    def empty() -> Gpt:
        with torch.device("meta"):
            return Gpt(*shape)

    def assigned(weights: dict[str, torch.Tensor]) -> Gpt:
        made = empty()
        made.load_state_dict(weights, assign=True)
        return made

    def copied() -> Gpt:
        made = empty().to_empty(device="cpu")
        made.load_state_dict(load_file(folder / "model.safetensors"))
        return made

    def opened() -> holdtrue.Checkpoint:
        return holdtrue.open(folder / "checkpoint", trust=["benchmarks"])

    def filled() -> Gpt:
        made = empty()
        opened().restore(model=made)
        return made

    return {
        ON_META: filled,
        BUILD: lambda: opened().build(),
        MAPPED: lambda: opened().build(mapped=True),
        SAFETENSORS: lambda: assigned(load_file(folder / "model.safetensors")),
        TORCH: lambda: assigned(torch.load(folder / "model.pt", weights_only=True, mmap=True)),
        COPIED: copied,
    }


def _check(made: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    found = made.state_dict()
    for name, tensor in weights.items():
        ends = found[name].view(-1)[[0, -1]], tensor.view(-1)[[0, -1]]
        if not torch.equal(*ends):
            raise RuntimeError(f"{name} is not what was saved")
