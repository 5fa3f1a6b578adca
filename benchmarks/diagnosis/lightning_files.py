"""Checkpoints that the real Lightning writes. Importing this needs lightning."""

import logging
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.diagnosis.broken import At
from benchmarks.diagnosis.models import sequential

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Lit(lightning.LightningModule):
    def __init__(self, net: nn.Module, attribute: str, lr: float = 1e-2) -> None:
        super().__init__()
        self.save_hyperparameters("lr")
        self.attribute = attribute
        self.add_module(attribute, net)

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        x, y = batch
        return nn.functional.cross_entropy(getattr(self, self.attribute)(x), y)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.hparams["lr"])
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2)]


def fitted(at: At, *, weights_only: bool = False, attribute: str = "") -> tuple[Path, nn.Module]:
    """The checkpoint of two epochs of a real fit, and the plain model as it was then."""
    net = sequential(at.rng.randint(4, 9))
    data = TensorDataset(torch.randn(16, 1, 9, 9), torch.randint(0, 3, (16,)))
    keep = ModelCheckpoint(
        dirpath=at.folder, filename=at.word(), save_weights_only=weights_only, save_top_k=-1
    )
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[keep], default_root_dir=at.folder,
    )  # fmt: skip
    trainer.fit(Lit(net, attribute or at.word()), DataLoader(data, batch_size=4))
    return Path(keep.best_model_path or keep.last_model_path), net
