"""How large the architecture record is, and how long it takes to make one and to compare two.

`python -m benchmarks.architecture_record` builds models without memory (on the meta device), of
plain torch and of transformers with their published sizes, and prints one row for each: modules,
bytes of the record as JSON, milliseconds of the first capture in the process, the median of ten
more, and the median of ten comparisons of two records.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import msgspec
import torch
from torch import nn

from holdtrue.capture.architecture import capture_architecture
from holdtrue.doctor.architecture import compare_architectures

ROUNDS = 10


class Block(nn.Module):
    """A user's own block: code of its own, a plain attribute that differs everywhere."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(64)
        self.up, self.down = nn.Linear(64, 256), nn.Linear(256, 64)
        self.act = nn.GELU()
        self.scale = 1.0 / (number + 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.scale * self.down(self.act(self.up(self.norm(x))))


def _alike() -> nn.Module:
    return nn.Sequential(*(Block(0) for _ in range(200)))


def _all_different() -> nn.Module:
    """Every module another shape: nothing can be told once for several."""
    sizes = range(10, 1010)
    return nn.ModuleList([nn.Conv2d(n, n + 1, 3, padding=n % 5) for n in sizes])


def _own_blocks() -> nn.Module:
    return nn.Sequential(*(Block(i) for i in range(200)))


def _transformers() -> dict[str, Callable[[], nn.Module]]:
    import transformers as tf

    return {
        "transformers BERT base": lambda: tf.BertModel(tf.BertConfig()),
        "transformers GPT-2 medium": lambda: tf.GPT2LMHeadModel(
            tf.GPT2Config(n_layer=24, n_embd=1024, n_head=16)
        ),
        "transformers Llama, 32 layers": lambda: tf.LlamaForCausalLM(tf.LlamaConfig()),
        "transformers Llama, 2 layers": lambda: tf.LlamaForCausalLM(
            tf.LlamaConfig(num_hidden_layers=2, hidden_size=64, intermediate_size=128)
        ),
        "transformers ViT base": lambda: tf.ViTModel(tf.ViTConfig()),
        "transformers Whisper small": lambda: tf.WhisperModel(
            tf.WhisperConfig(encoder_layers=12, decoder_layers=12, d_model=768)
        ),
    }


def _milliseconds(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    made = work()
    return (time.perf_counter() - began) * 1e3, made


def measure(name: str, make: Callable[[], nn.Module]) -> str:
    with torch.device("meta"):
        model = make()
    first, captured = _milliseconds(lambda: capture_architecture(model))
    record = captured.record
    again = [_milliseconds(lambda: capture_architecture(model))[0] for _ in range(ROUNDS)]
    other = capture_architecture(model).record
    compared = [
        _milliseconds(lambda: compare_architectures(record, other))[0] for _ in range(ROUNDS)
    ]
    size = len(msgspec.json.encode(record))
    return (
        f"| {name} | {len(record.modules):,} | {size / 1024:,.1f} | {first:,.1f} | "
        f"{statistics.median(again):,.1f} | {statistics.median(compared):,.1f} |"
    )


def main() -> None:
    models = {
        "1,001 modules, alike": _alike,
        "1,001 modules, blocks with a number of their own": _own_blocks,
        "1,001 modules, every one another": _all_different,
        **_transformers(),
    }
    print("| model | modules | record, KiB | first, ms | capture, ms | compare, ms |")
    print("|---|---|---|---|---|---|")
    for name, make in models.items():
        print(measure(name, make), flush=True)


if __name__ == "__main__":
    main()
