"""Lightning's own checkpoints, written and read by holdtrue instead of pickle."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from holdtrue.integrations import package_missing

try:
    import lightning
    from lightning.pytorch.plugins.io import CheckpointIO
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "lightning":
        raise
    raise package_missing("lightning", "lightning") from None

from holdtrue.checkpoint import Checkpoint
from holdtrue.checkpoint import open as open_checkpoint
from holdtrue.saving import save
from holdtrue.storage.commit import remove

# Lightning's name → the part's. The rest is one part: its names are whatever hooks choose.
_PARTS = {"state_dict": "model", "optimizer_states": "optimizers", "lr_schedulers": "schedulers"}
_REST = "lightning"
_VERSION = "pytorch-lightning_version"


class HoldtrueIO(CheckpointIO):
    """`Trainer(plugins=[HoldtrueIO()])`: what Lightning and its ModelCheckpoint save are holdtrue
    checkpoints, published whole or not at all, and every `ckpt_path` is read without unpickling,
    of whatever format.

    `trust` names classes whose objects may be built again, as in `holdtrue.open`.
    """

    def __init__(self, *, trust: Iterable[type | str] = ()) -> None:
        self.trust = tuple(trust)

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | os.PathLike[str],
        storage_options: Any | None = None,
    ) -> None:
        if storage_options is not None:
            raise TypeError("HoldtrueIO has no storage options: it writes to a local path")
        parts: dict[str, Any] = {
            part: checkpoint[name] for name, part in _PARTS.items() if name in checkpoint
        }
        parts[_REST] = {name: value for name, value in checkpoint.items() if name not in _PARTS}
        save(path, overwrite=True, step=checkpoint.get("global_step"), **parts)

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Any | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Everything is read to the CPU, as data: no option makes it run what is in the file."""
        checkpoint = open_checkpoint(path, trust=self.trust)
        if _REST in checkpoint and checkpoint.manifest is not None:
            return _as_lightning(checkpoint)
        content = {name: checkpoint[name] for name in checkpoint.parts}
        if "state_dict" not in content and "model" in content:
            # Weights alone, or a run of HoldtrueCallback: enough to validate, test and predict.
            training = content.get("training")
            rest = training.get("lightning") if isinstance(training, dict) else None
            content = {_VERSION: lightning.__version__, "state_dict": content["model"]}
            content.update(rest if isinstance(rest, dict) else {})
        return content

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        place = Path(path)
        if place.is_dir() and not place.is_symlink():
            remove(place)
        else:  # left by another CheckpointIO, or a link of ModelCheckpoint(save_last="link")
            place.unlink(missing_ok=True)


def _as_lightning(checkpoint: Checkpoint) -> dict[str, Any]:
    parts = {name: checkpoint[part] for name, part in _PARTS.items() if part in checkpoint}
    return {**checkpoint[_REST], **parts}
