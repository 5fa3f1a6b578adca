"""torch_checkpointing, moonclip and tensorizer: packages that have to be installed first."""

import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from benchmarks.speed import files
from benchmarks.speed.contenders import Contender, Load
from benchmarks.speed.peers import copy_flat, copy_nested
from benchmarks.speed.states import State

TENSORIZER = "tensorizer"
MOONCLIP = "moonclip"
TORCH_CHECKPOINTING = "torch_checkpointing"


def tensorizer_save(state: State, folder: Path) -> None:
    from tensorizer import TensorSerializer

    serializer = TensorSerializer(str(folder / "state.tensors"))
    serializer.write_state_dict(state.flat())
    serializer.close()


def tensorizer_load(state: State, folder: Path, *, verify: bool = False) -> None:
    from tensorizer import TensorDeserializer

    path = str(folder / "state.tensors")
    with TensorDeserializer(path, device="cpu", verify_hash=verify) as found:
        copy_flat(found, state)


def tensorizer_load_verified(state: State, folder: Path) -> None:
    tensorizer_load(state, folder, verify=True)


def moonclip_save(state: State, folder: Path) -> None:
    manager = _moonclip(folder, behind=False)
    manager.save(step=1, **state.parts)
    manager.flush()


def moonclip_load(state: State, folder: Path) -> None:
    _moonclip(folder, behind=False).load_latest(**state.parts)


def _moonclip(folder: Path, *, behind: bool) -> Any:
    from moonclip import CheckpointManager

    return CheckpointManager(
        str(folder / "moonclip"), async_save=behind, world_size=1, rank=0, max_total_snapshots=1
    )


class MoonclipBehind:
    """One store, so that it may write only what differs from the save before."""

    def __init__(self, state: State, folder: Path) -> None:
        self._state, self._manager = state, _moonclip(folder, behind=True)
        self._thread: threading.Thread | None = None

    def save(self, step: int) -> None:
        self._manager.save(step=step, **self._state.parts)
        # It cannot be asked whether a save is on disk, only be waited for.
        self._thread = threading.Thread(target=self._manager.flush)
        self._thread.start()

    def done(self) -> bool:
        return self._thread is None or not self._thread.is_alive()

    def wait(self) -> None:
        if self._thread is not None:
            self._thread.join()
        self._manager.flush()

    def close(self) -> None:
        self.wait()


def torch_checkpointing_save(state: State, folder: Path) -> None:
    manager = _torch_checkpointing(behind=False)
    try:
        manager.save(str(folder / "state"), state.state_dicts())
    finally:
        manager.close()


def torch_checkpointing_load(state: State, folder: Path) -> None:
    manager = _torch_checkpointing(behind=False)
    try:
        live = state.state_dicts()
        found = manager.load(str(folder / "state"), into=live)
        copy_nested(dict(found), live)
    finally:
        manager.close()


def _torch_checkpointing(*, behind: bool) -> Any:
    from torch_checkpointing import CheckpointManager
    from torch_checkpointing.storage.filesystem import LocalFileSystemStorageConfig

    make = CheckpointManager.Config
    config = make.with_async_save() if behind else make.with_sync_save()
    # As it comes it writes with O_DIRECT from unaligned memory, which ext4 refuses (EINVAL).
    config.storage_config = LocalFileSystemStorageConfig(use_direct_io=False)
    return CheckpointManager(config)


class TorchCheckpointingBehind:
    """Copied into shared memory in a thread, written by another process. A step of training has to
    wait until the copy is made, by its manual; `save` does that waiting here."""

    def __init__(self, state: State, folder: Path) -> None:
        self._state, self._folder = state, folder
        self._manager = _torch_checkpointing(behind=True)
        self._future: Future[Any] | None = None

    def save(self, step: int) -> None:
        files.empty(self._folder)
        self._future = self._manager.save(
            str(self._folder / f"step-{step}"), self._state.state_dicts()
        )
        with self._manager.lock():
            pass

    def done(self) -> bool:
        return self._future is None or self._future.done()

    def wait(self) -> None:
        if self._future is not None:
            self._future.result()

    def close(self) -> None:
        self._manager.close()


OTHERS = (
    Contender(
        name=TORCH_CHECKPOINTING,
        version="torch_checkpointing",
        save=torch_checkpointing_save,
        loads=(Load("torch_checkpointing load", torch_checkpointing_load),),
        behind={"torch_checkpointing, async": TorchCheckpointingBehind},
        digest="none; use_direct_io=False",
    ),
    Contender(
        name=MOONCLIP,
        version="moonclip",
        save=moonclip_save,
        loads=(Load("moonclip load_latest", moonclip_load, "xxh3-128"),),
        behind={"moonclip, async": MoonclipBehind},
        syncs=True,
        digest="xxh3-128 a tensor; compressed with zstd",
    ),
    Contender(
        name=TENSORIZER,
        version="tensorizer",
        save=tensorizer_save,
        loads=(
            Load("tensorizer, copy_", tensorizer_load),
            Load("tensorizer(verify_hash=True), copy_", tensorizer_load_verified, "SHA-256"),
        ),
        optimizer="its tensors only",
        digest="CRC-32 and SHA-256 a tensor",
    ),
)
