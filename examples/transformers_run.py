"""Train with transformers' Trainer, be killed at any moment, run it again: the same bits.

    python examples/transformers_run.py [directory [seconds to wait after each step]]

The Trainer writes no checkpoint of its own: those are pickles. It finds its place among the batches
from the seed and the step alone.
"""

import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from holdtrue import Keep
from holdtrue.integrations.transformers import HoldtrueCallback


class Waiting(TrainerCallback):
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_step_begin(self, *args: object, **live: object) -> None:
        time.sleep(self.seconds)


def main(directory: Path, wait: float = 0.0) -> None:
    set_seed(0)
    tokens = torch.randint(0, 50, (80, 12))
    data = [{"input_ids": row, "labels": row} for row in tokens]
    size = GPT2Config(vocab_size=50, n_positions=12, n_embd=16, n_layer=2, n_head=2)
    size.bos_token_id = size.eos_token_id = None
    model = GPT2LMHeadModel(size)
    keeping = HoldtrueCallback(directory / "run", every=4, keep=Keep(last=3))
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=str(directory / "trainer"),
            num_train_epochs=3,
            per_device_train_batch_size=4,
            save_strategy="no",
            logging_steps=10,
            eval_strategy="epoch",
            learning_rate=1e-2,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=data,
        eval_dataset=data[:8],
        callbacks=[keeping, Waiting(wait)],
    )
    result = trainer.train(resume_from_checkpoint=keeping.resume_point())
    print(f"step {result.global_step}")


if __name__ == "__main__":
    where = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    main(where, float(sys.argv[2]) if len(sys.argv) > 2 else 0.0)
