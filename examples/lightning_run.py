"""Train with Lightning, be killed at any moment, run it again: it ends with the same bits.

    python examples/lightning_run.py [directory [seconds to wait after each step]]

Dropout draws from torch's random state and the batches are shuffled: both go on where they were.
"""

import sys
import tempfile
import time
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from holdtrue import Keep
from holdtrue.integrations.lightning import HoldtrueCallback


class Classifier(LightningModule):
    def __init__(self, wait: float) -> None:
        super().__init__()
        self.wait = wait
        self.net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 3))

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        time.sleep(self.wait)
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 60)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def main(directory: Path, wait: float = 0.0) -> None:
    seed_everything(0, verbose=False)
    inputs = torch.randn(240, 8)
    data = TensorDataset(inputs, inputs[:, :3].argmax(1))
    keeping = HoldtrueCallback(
        directory / "run", every_n_steps=3, keep=Keep(last=3, best=1, by="val_loss")
    )
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        callbacks=[keeping],
        default_root_dir=directory,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(
        Classifier(wait),
        StatefulDataLoader(data, batch_size=12, shuffle=True),
        DataLoader(data, batch_size=60),
    )
    print(f"step {trainer.global_step}, val_loss {trainer.callback_metrics['val_loss']:.6f}")


if __name__ == "__main__":
    where = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    main(where, float(sys.argv[2]) if len(sys.argv) > 2 else 0.0)
