"""Models and state dicts that tests convert, and comparisons that let no bit pass."""

import collections
from pathlib import Path

import torch

import holdtrue

KINDS = ("holdtrue", "safetensors", "shards", "torch")
SUFFIX = {"holdtrue": "", "safetensors": ".safetensors", "shards": "", "torch": ".pt"}

DTYPES = [
    name
    for name in (
        "float64",
        "float32",
        "float16",
        "bfloat16",
        "float8_e4m3fn",
        "float8_e4m3fnuz",
        "float8_e5m2",
        "float8_e5m2fnuz",
        "float8_e8m0fnu",
        "complex32",
        "complex64",
        "complex128",
        "bool",
        "uint8",
        "int8",
        "uint16",
        "int16",
        "uint32",
        "int32",
        "uint64",
        "int64",
    )  # fmt: skip
    if hasattr(torch, name)
]
# What the safetensors package itself reads back as it was.
PLAIN = [n for n in DTYPES if n not in ("complex32", "complex128") and not n.endswith("fnuz")]


def numbers(name: str, *shape: int, seed: int = 0) -> torch.Tensor:
    """Random bits as a dtype: every NaN and infinity there is."""
    dtype = getattr(torch, name)
    generator = torch.Generator().manual_seed(seed)
    count = dtype.itemsize * int(torch.Size(shape).numel())
    raw = torch.randint(0, 2 if name == "bool" else 256, (count,), generator=generator)
    return raw.to(torch.uint8).view(dtype).reshape(shape)


def bits(tensor: torch.Tensor) -> bytes:
    """The elements in C order, as bytes."""
    plain = tensor.detach().contiguous()
    return bytes(plain.untyped_storage())[
        plain.storage_offset() * plain.itemsize :][: plain.numel() * plain.itemsize]  # fmt: skip


def assert_same(found: torch.Tensor, wanted: torch.Tensor, *, stride: bool = True) -> None:
    assert found.dtype == wanted.dtype
    assert found.shape == wanted.shape
    assert bits(found) == bits(wanted)
    if stride:
        assert found.stride() == wanted.stride()


def strided() -> dict[str, torch.Tensor]:
    """Every way that elements can lie in memory."""
    base = numbers("float32", 6, 8)
    return {
        "plain": base.clone(),
        "transposed": base.clone().t(),
        "channels_last": numbers("float32", 2, 3, 4, 5).to(memory_format=torch.channels_last),
        "channels_last_3d": numbers("float16", 2, 3, 4, 5, 2).to(
            memory_format=torch.channels_last_3d
        ),
        "permuted": numbers("int16", 2, 3, 4).permute(1, 2, 0),
        "expanded": numbers("float32", 1, 4).expand(3, 4),
        "expanded_transposed": numbers("float32", 4, 1, 2).expand(4, 3, 2).permute(2, 1, 0),
        "scalar": numbers("float64"),
        "empty": numbers("float32", 0, 3),
        "ones": numbers("float32", 1, 5, 1).transpose(0, 1),
        "not_first": torch.arange(64.0)[8:24].reshape(4, 4),
    }


def load_holdtrue(path: Path, part: str = "model") -> collections.OrderedDict:
    return holdtrue.open(path)[part]
