"""Train with Ignite, be killed at any moment, run it again: it ends with the same bits.

    python examples/ignite_run.py [directory [seconds to wait after each step]]

Ignite begins a resumed epoch with the loader's first batch, unless the loader knows its place: so
it is one of torchdata's, and a part of the checkpoint.
"""

import sys
import tempfile
import time
from pathlib import Path

import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint
from ignite.utils import manual_seed
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from holdtrue import Keep
from holdtrue.integrations.ignite import HoldtrueSaver


def main(directory: Path, wait: float = 0.0) -> None:
    manual_seed(0)
    inputs = torch.randn(240, 8)
    data = TensorDataset(inputs, inputs[:, :3].argmax(1))
    loader = StatefulDataLoader(data, batch_size=12, shuffle=True)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 60)

    def step(engine: Engine, batch: tuple[Tensor, Tensor]) -> float:
        time.sleep(wait)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
        loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
        optimizer.step()
        scheduler.step()
        return loss.item()

    trainer = Engine(step)
    saver = HoldtrueSaver(
        directory / "run",
        trainer,
        keep=Keep(last=3),
        model=model,
        optimizer=optimizer,
        scheduler=scheduler,
        loader=loader,
    )
    handler = Checkpoint(saver.parts, saver, n_saved=None)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(every=4), handler)

    first = saver.resume()
    trainer.run(loader, max_epochs=3)
    print(f"from step {first} to {trainer.state.iteration}, loss {trainer.state.output:.6f}")


if __name__ == "__main__":
    where = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    main(where, float(sys.argv[2]) if len(sys.argv) > 2 else 0.0)
