"""A module that says itself what is to be kept of it.

    python examples/custom_getstate.py [directory]

`__getstate__` and `__setstate__` are Python's own way to say which attributes matter. Parameters
and buffers are kept anyway; what the module adds, here a vocabulary and how often it was used,
travels with them. The cache is left out, and made anew.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import holdtrue


class WordVectors(nn.Module):
    def __init__(self, words: list[str]) -> None:
        super().__init__()
        self.vectors = nn.Embedding(len(words), 4)
        self.index = {word: i for i, word in enumerate(words)}
        self.lookups = 0
        self.cache: dict[str, Tensor] = {}

    def forward(self, word: str) -> Tensor:
        self.lookups += 1
        if word not in self.cache:
            self.cache[word] = self.vectors(torch.tensor(self.index[word]))
        return self.cache[word]

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["cache"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.cache = {}


def main(directory: Path) -> None:
    torch.manual_seed(0)
    model = WordVectors(["sun", "moon", "star"])
    expected = [model("moon"), model("star")]
    holdtrue.save(directory / "words", model=model)

    # The vocabulary comes from the checkpoint; only its size has to be known.
    fresh = WordVectors(["?", "??", "???"])
    holdtrue.open(directory / "words").restore(model=fresh)

    assert fresh.index == {"sun": 0, "moon": 1, "star": 2}
    assert fresh.lookups == 2
    assert all(
        torch.equal(a, b) for a, b in zip(expected, [fresh("moon"), fresh("star")], strict=True)
    )
    print(f"vocabulary {list(fresh.index)}, {fresh.lookups} lookups so far")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()))
