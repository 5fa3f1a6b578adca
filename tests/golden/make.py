"""Writes the golden checkpoints of the current format version. Run once for each version, by hand:

    python tests/golden/make.py

What it writes is committed, never written again, and read by every later version.
"""

import hashlib
import json
import random
import shutil
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath
from uuid import UUID

import numpy as np
import torch
from torch import nn

import holdtrue
from holdtrue.capture.raw import raw_bytes
from holdtrue.records.manifest import VERSION

HERE = Path(__file__).parent
DTYPES = [
    *("float64", "float32", "float16", "bfloat16", "complex32", "complex64", "complex128"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
    *("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"),
]


def values() -> dict:
    """Values of every kind; what they are is read again from here by the test."""
    shared = [1, 2]
    return {
        "plain": [None, True, "text", 1, -1, 0.5, -0.0, 2**70, float("inf"), 1 + 2j, b"bytes"],
        "containers": [(1,), {1, 2}, frozenset({"a"}), deque([1, 2], 3), {1: "a", (2, 3): "b"}],
        "dicts": [OrderedDict(b=1, a=2), Counter("aab"), defaultdict(list, {"x": [1]})],
        "times": [
            date(2026, 1, 2),
            datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC),
            time(1, 2, 3),
            timedelta(days=1, microseconds=5),
        ],
        "numbers": [Decimal("1.10"), Fraction(1, 3), range(1, 9, 2), slice(None, 3), ...],
        "names": [PurePosixPath("/a/b"), UUID(int=7), "\ud800"],
        "torch": [torch.float16, torch.Size([2, 3]), torch.device("cuda", 1), torch.strided],
        "numpy": [np.float32(0.1), np.datetime64("2026-01-02"), np.dtype("<i2")],
        "arrays": [np.arange(6).reshape(2, 3), np.array([b"ab", b"c"])],
        "shared": [shared, shared],
    }


def tensors() -> dict[str, torch.Tensor]:
    """One tensor of each dtype that has random bits, and the layouts."""
    generator = torch.Generator().manual_seed(3)
    found: dict[str, torch.Tensor] = {}
    for name in DTYPES:
        dtype = getattr(torch, name)
        bits = torch.randint(0, 256, (6 * dtype.itemsize,), generator=generator, dtype=torch.uint8)
        found[name] = bits.view(dtype).reshape(2, 3)
    found["bool"] = torch.tensor([True, False])
    found["scalar"] = torch.tensor(3.0)
    found["empty"] = torch.empty(0, 4)
    found["transposed"] = torch.arange(6.0).reshape(2, 3).T
    found["repeated"] = torch.arange(3.0).expand(2, 3)
    found["coo"] = torch.eye(3).to_sparse()
    found["csr"] = torch.eye(3).to_sparse_csr()
    found["quantized"] = torch.quantize_per_tensor(torch.arange(4.0), 0.5, 1, torch.qint8)
    return found


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.full((4,), 2.0), persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.embed(tokens).mean(1) * self.scale))


def training() -> dict:
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    for _ in range(3):
        loss = model(torch.randint(0, 5, (4, 3))).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    return {"model": model, "optimizer": optimizer, "scheduler": scheduler}


def main() -> None:
    folder = HERE / f"v{VERSION}"
    if folder.exists() and "--again" not in sys.argv:
        raise SystemExit(f"{folder} is there already; golden files are never written again")
    shutil.rmtree(folder, ignore_errors=True)
    held = tensors()
    holdtrue.save(folder / "values", values=values(), tensors=held)
    parts = training()
    holdtrue.save(folder / "training", step=3, metrics={"loss": 0.25}, **parts)
    digests = {
        f"tensors/{name}": hashlib.sha256(raw_bytes(tensor)).hexdigest()
        for name, tensor in held.items()
        if tensor.layout is torch.strided
    }
    model = parts["model"]
    for name, tensor in {**dict(model.named_buffers()), **model.state_dict()}.items():
        digests[f"model/{name}"] = hashlib.sha256(raw_bytes(tensor)).hexdigest()
    moments = parts["optimizer"].state[model.embed.weight]
    for name, tensor in moments.items():
        digests[f"optimizer/model/embed.weight/{name}"] = hashlib.sha256(
            raw_bytes(tensor)
        ).hexdigest()
    (folder / "sha256.json").write_text(json.dumps(digests, indent=1) + "\n")


if __name__ == "__main__":
    main()
