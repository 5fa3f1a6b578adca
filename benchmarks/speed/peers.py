"""torch.save, safetensors and torch's distributed checkpoints: what most people have already."""

import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from benchmarks.speed import files
from benchmarks.speed.contenders import Contender, Load
from benchmarks.speed.states import State

DCP = "DCP"
DCP_ASYNC = "DCP async_save"
CLONE = "clone, then torch.save and fsync in a thread"


def torch_save(state: State, folder: Path) -> None:
    torch.save(state.state_dicts(), folder / "state.pt")


def torch_load(state: State, folder: Path) -> None:
    state.load_state_dicts(torch.load(folder / "state.pt", weights_only=True))


def torch_load_mapped(state: State, folder: Path) -> None:
    """Copied into the tensors that are there: `Optimizer.load_state_dict` would keep the mapped
    ones, and read them from disk later, during training."""
    found = torch.load(folder / "state.pt", weights_only=True, mmap=True)
    copy_nested(found, state.state_dicts())


def copy_nested(found: Any, live: Any) -> None:
    """Every tensor of one tree into the tensor in the same place of the other."""
    if isinstance(found, torch.Tensor):
        live.detach().copy_(found)
    elif isinstance(found, dict):
        for key, value in found.items():
            copy_nested(value, live[key])


def copy_flat(found: Any, state: State) -> None:
    """Every tensor of a flat mapping into the live one of its name. `found` may be lazy."""
    with torch.no_grad():
        for name, tensor in state.flat().items():
            tensor.copy_(found[name])


def safetensors_save(state: State, folder: Path) -> None:
    save_file(state.flat(), folder / "state.safetensors")


def safetensors_open(state: State, folder: Path) -> None:
    with safe_open(folder / "state.safetensors", framework="pt") as file, torch.no_grad():
        for name, tensor in state.flat().items():
            tensor.copy_(file.get_tensor(name))


def safetensors_load(state: State, folder: Path) -> None:
    copy_flat(load_file(folder / "state.safetensors"), state)


def dcp_save(state: State, folder: Path) -> None:
    writer = dcp.FileSystemWriter(folder / "dcp", thread_count=2)
    dcp.save(state.state_dicts(), storage_writer=writer, no_dist=True)


def dcp_load(state: State, folder: Path) -> None:
    found = state.state_dicts()
    dcp.load(found, checkpoint_id=folder / "dcp", no_dist=True)  # into the live tensors
    state.load_state_dicts(found)


class DcpAsync:
    """`async_save` as it comes: the copy in the caller's thread, the writing in another."""

    def __init__(self, state: State, folder: Path) -> None:
        self._state, self._folder = state, folder
        self._future: Future[Any] | None = None

    def save(self, step: int) -> None:
        files.empty(self._folder)
        writer = dcp.FileSystemWriter(self._folder / f"step-{step}", thread_count=2)
        self._future = dcp.async_save(
            self._state.state_dicts(), storage_writer=writer, no_dist=True
        )

    def done(self) -> bool:
        return self._future is None or self._future.done()

    def wait(self) -> None:
        if self._future is not None:
            self._future.result()

    def close(self) -> None:
        self.wait()


class CloneAndThread:
    """What many write themselves."""

    def __init__(self, state: State, folder: Path) -> None:
        self._state, self._folder = state, folder
        self._thread: threading.Thread | None = None

    def save(self, step: int) -> None:
        copied = _cloned(self._state.state_dicts())
        self._thread = threading.Thread(target=self._write, args=(copied, step))
        self._thread.start()

    def _write(self, copied: Any, step: int) -> None:
        torch.save(copied, self._folder / f"step-{step}.pt")
        files.sync_all(self._folder)
        (self._folder / f"step-{step - 1}.pt").unlink(missing_ok=True)

    def done(self) -> bool:
        return self._thread is None or not self._thread.is_alive()

    def wait(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def close(self) -> None:
        self.wait()


def _cloned(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {k: _cloned(v) for k, v in value.items()}
    return value


TORCH = Contender(
    name="torch.save",
    version="torch",
    save=torch_save,
    loads=(
        Load("torch.load, load_state_dict", torch_load),
        Load("torch.load(mmap=True), copy_", torch_load_mapped),
    ),
    behind={CLONE: CloneAndThread},
    digest="CRC-32, not looked at by torch.load",
)
SAFETENSORS = Contender(
    name="safetensors save_file",
    version="safetensors",
    save=safetensors_save,
    loads=(
        Load("safetensors safe_open, copy_", safetensors_open),
        Load("safetensors load_file, copy_", safetensors_load),
    ),
    optimizer="its tensors only",
)
DISTRIBUTED = Contender(
    name=DCP,
    version="torch",
    save=dcp_save,
    loads=(Load("DCP load", dcp_load),),
    behind={DCP_ASYNC: DcpAsync},
    syncs=True,
    digest="none",
)
