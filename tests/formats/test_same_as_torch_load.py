"""Whatever torch.load can load is read equal to it, bit for bit: a wide generated corpus."""

import pickle
import random
from collections import Counter, OrderedDict, defaultdict, deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from same_as_torch import Compared, same

from holdtrue.formats import plain_pickle, torch_legacy, torch_zip
from holdtrue.formats.view import View

PROTOCOLS = (2, 3, 4, 5)
FORMATS = ("zip", "legacy", "plain")


def every_dtype() -> dict[str, torch.Tensor]:
    """A tensor of random bytes for each dtype that torch can save."""
    chance = torch.Generator().manual_seed(3)
    found = {}
    for name, dtype in sorted(vars(torch).items()):
        if not isinstance(dtype, torch.dtype) or str(dtype) != f"torch.{name}":
            continue
        raw = torch.randint(0, 256, (12 * 16,), dtype=torch.uint8, generator=chance)
        if dtype == torch.bool:
            found[name] = raw > 127
        elif name.startswith(("q", "bits")) or name.strip("u").removeprefix("int") in "1234567":
            continue  # made in their own cases; int1 to int7 cannot be saved by any torch
        else:
            found[name] = raw.view(dtype)[:12]
    return found


def bits_dtypes() -> dict[str, torch.Tensor]:
    names = ("bits8", "bits16", "bits1x8", "bits2x4", "bits4x2")
    raw = torch.arange(32, dtype=torch.uint8)
    return {name: raw.view(getattr(torch, name)) for name in names}


def strides() -> dict[str, torch.Tensor]:
    base = torch.arange(120, dtype=torch.float32).reshape(2, 3, 4, 5)
    return {
        "contiguous": base,
        "transposed": base.transpose(1, 3),
        "channels_last": base.contiguous(memory_format=torch.channels_last),
        "sliced": base[:, 1:, ::2, 3],
        "expanded": torch.ones(1, 3).expand(4, 3),
        "scalar": torch.tensor(3.5),
        "scalar_of_row": base[1, 2, 3, 4],
        "empty": torch.empty(0, 3),
        "offset": base.flatten()[7:19],
        "diagonal": torch.arange(16.0).reshape(4, 4).diagonal(),
        "wide": torch.empty_strided((2, 2), (50, 7)).fill_(2.0),
    }


def shared() -> dict[str, Any]:
    base = torch.randn(6, 6)
    weight = torch.nn.Parameter(torch.randn(3, 3))
    one = torch.ones(2)
    return {
        "whole": base, "row": base[2], "column": base[:, 4], "flat": base.view(-1)[5:20],
        "tied_a": weight, "tied_b": weight, "same_object": [one, one, (one,)],
        "detached": weight.detach(),
    }  # fmt: skip


def lazily_conjugated() -> dict[str, torch.Tensor]:
    return {
        "conj": torch.randn(4, dtype=torch.complex64).conj(),
        "neg": torch.randn(4, dtype=torch.complex64).conj().imag,
        "conj_strided": torch.randn(3, 4, dtype=torch.complex128).t().conj(),
    }  # fmt: skip


def sparse() -> dict[str, torch.Tensor]:
    dense = torch.tensor([[0, 1.0, 0, 2], [0, 0, 3, 0], [4, 0, 0, 0], [0, 0, 0, 5]])
    return {
        "coo": dense.to_sparse(), "coalesced": dense.to_sparse().coalesce(),
        "uncoalesced": torch.sparse_coo_tensor([[0, 0], [1, 1]], [1.0, 2.0], (2, 2)),
        "csr": dense.to_sparse_csr(), "csc": dense.to_sparse_csc(),
        "bsr": dense.to_sparse_bsr((2, 2)), "bsc": dense.to_sparse_bsc((2, 2)),
        "hybrid": torch.sparse_coo_tensor([[0, 2]], torch.randn(2, 3), (4, 3)),
    }  # fmt: skip


def quantised() -> dict[str, torch.Tensor]:
    x = torch.randn(4, 6)
    scales, points = torch.rand(4).double() + 0.1, torch.zeros(4, dtype=torch.long)
    return {
        "quint8": torch.quantize_per_tensor(x, 0.1, 10, torch.quint8),
        "qint8": torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
        "qint32": torch.quantize_per_tensor(x, 0.1, 0, torch.qint32),
        "channels": torch.quantize_per_channel(x, scales, points, 0, torch.qint8),
        "quint4x2": torch.quantize_per_channel(
            x[:, :5], scales.float(), points.float(), 0, torch.quint4x2
        ),
        "quint2x4": torch.quantize_per_channel(
            x, scales.float(), points.float(), 0, torch.quint2x4
        ),
    }


def others() -> dict[str, Any]:
    return {
        "meta": torch.empty(3, 4, device="meta"),
        "nested": torch.nested.nested_tensor([torch.ones(2, 3), torch.zeros(4, 3)]),
        "parameter": torch.nn.Parameter(torch.ones(3), requires_grad=False),
        "wants_grad": torch.ones(3, requires_grad=True),
        "size": torch.ones(2, 3).size(), "dtype": torch.bfloat16, "layout": torch.strided,
        "device": torch.device("cuda:1"), "rng": torch.get_rng_state(),
    }  # fmt: skip


def plain_values() -> dict[str, Any]:
    numbers = np.arange(6, dtype=np.float32).reshape(2, 3)
    return {
        "ints": [0, 1, -1, 255, 256, 65535, 65536, 2**31, -(2**31) - 1, 2**63, -(2**200), 10**2000],
        "floats": [0.0, -0.0, 1e-320, float("inf"), float("-inf"), float("nan")],
        "text": ["", "é", "日本", "\ud800", "a\nb\\", "x" * 300, "x" * 70_000],
        "bytes": [b"", b"\x00\xff", bytes(range(256)) * 3, bytearray(b"abc")],
        "complex": 1 - 2j, "none": None, "bools": (True, False), "nested": ([], {}, (), [[[()]]]),
        "sets": [{1, 2}, frozenset({"a"}), set()], "range": range(1, 9, 2), "slice": slice(1, None),
        "ordered": OrderedDict([("b", 1), ("a", 2)]), "counter": Counter("hello"),
        "default": defaultdict(list, a=[1]), "deque": deque([1, 2, 3], maxlen=5),
        "keys": {1: "a", (1, 2): "b", None: "c", 2.5: "d", b"x": "e"},
        "arrays": [numbers, np.asfortranarray(numbers), numbers.astype(">f8"), numbers[:, ::2],
                   np.array("abc"), np.array(["ab", "c"]), np.array([b"ab"]), np.zeros((0, 2)),
                   np.array(["2020-01-02"], "datetime64[D]"), np.array([5], "timedelta64[25ns]"),
                   np.array([1 + 2j], ">c8"), np.array([True]), np.float16([1.5]),
                   np.array([object(), None]), np.zeros(2, [("a", "<i4"), ("b", "<f8")])],
        "scalars": [np.float64(0.1), np.int64(-3), np.bool_(True), np.float32(2), np.str_("x"),
                    np.complex64(1j), np.datetime64("2020-01-01", "s"), np.uint8(7)],
        "numpy_rng": np.random.RandomState(0).get_state(),
    }  # fmt: skip


def trained() -> dict[str, Any]:
    """A checkpoint as people make them: model, optimizer and scheduler after a few steps."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(4, 2)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=5)
    for _ in range(3):
        model(torch.randn(8, 1, 3, 3)).sum().backward()
        optimizer.step()
        scheduler.step()
    return {
        "state_dict": model.state_dict(), "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(), "epoch": 3,
    }  # fmt: skip


CASES = {
    "dtypes": every_dtype, "bits": bits_dtypes, "strides": strides, "shared": shared,
    "conjugated": lazily_conjugated, "sparse": sparse, "quantised": quantised, "others": others,
    "values": plain_values, "trained": trained,
    "tensor": lambda: torch.arange(4), "list": lambda: [torch.ones(2), 1],
    "storage": lambda: {"s": torch.arange(5, dtype=torch.int16).untyped_storage()},
}  # fmt: skip


def write(path: Path, value: Any, kind: str, protocol: int) -> None:
    if kind == "plain":
        path.write_bytes(pickle.dumps(value, protocol))
    else:
        new = kind == "zip"
        torch.save(value, path, pickle_protocol=protocol, _use_new_zipfile_serialization=new)


def load(path: Path, kind: str) -> Any:
    """With torch's own reader; the file is one that the test wrote."""
    if kind == "plain":
        return pickle.loads(path.read_bytes())
    return torch.load(path, weights_only=False)


def read(path: Path, kind: str) -> View:
    readers = {"zip": torch_zip, "legacy": torch_legacy, "plain": plain_pickle}
    return readers[kind].read(str(path))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("case", CASES)
def test_equal_to_torch(tmp_path: Path, figure, case: str, kind: str, protocol: int) -> None:
    value = CASES[case]()
    path = tmp_path / "file.pt"
    if isinstance(value, dict) and kind != "zip":
        value = savable(value, path, kind, protocol)
    write(path, value, kind, protocol)
    view = read(path, kind)
    seen = Compared()
    same(view.tree, load(path, kind), seen)
    assert [f for f in view.findings if f.severity == "error"] == []
    dangerous = [op.name for op in view.about["would_run"] if op.severity == "dangerous"]
    assert dangerous == []
    count(figure, kind, seen)


def count(figure, kind: str, seen: Compared) -> None:
    for dtype, number in seen.tensors.items():
        figure(f"equal to torch.load: {kind}, {dtype} tensors", number)
    figure(f"equal to torch.load: {kind}, NumPy arrays", seen.arrays)
    figure(f"equal to torch.load: {kind}, values", seen.values)


def savable(value: dict[str, Any], path: Path, kind: str, protocol: int) -> dict[str, Any]:
    """Without the entries that torch itself cannot save and load again in the older formats:
    dtypes on untyped storages, and nested tensors, whose sizes it reads before they are there."""
    kept = {}
    for name, part in value.items():
        if name == "nested" and kind == "legacy":
            continue
        try:
            write(path, {name: part}, kind, protocol)
            load(path, kind)
        except Exception:
            continue
        kept[name] = part
    if not kept:
        pytest.skip("torch cannot load any of it from this format")
    return kept


def test_random_trees(tmp_path: Path, figure) -> None:
    chance = random.Random(11)
    path = tmp_path / "file.pt"
    pool = [*strides().values(), *shared().values(), *every_dtype().values()]
    typed = torch.storage._dtype_to_storage_type_map()
    pool = [part for part in pool if isinstance(part, torch.Tensor) and part.dtype in typed]

    def grow(depth: int) -> Any:
        kind = chance.randrange(9 if depth else 4)
        if kind == 0:
            return chance.choice(pool)
        if kind == 1:
            return chance.choice([None, True, 1.5, "text", b"\x80", 2**80, -7, (), 1j])
        if kind in (2, 3):
            return chance.randrange(-(2**40), 2**40)
        size = chance.randrange(5)
        if kind in (4, 5):
            return {chance.choice([str, int, float])(i): grow(depth - 1) for i in range(size)}
        if kind == 6:
            return tuple(grow(depth - 1) for _ in range(size))
        return [grow(depth - 1) for _ in range(size)]

    for index in range(150):
        value, kind, protocol = grow(4), chance.choice(FORMATS[:2]), chance.choice(PROTOCOLS)
        write(path, value, kind, protocol)
        seen = Compared()
        same(read(path, kind).tree, load(path, kind), seen, f"tree {index}")
        count(figure, kind, seen)


def test_big_endian(tmp_path: Path) -> None:
    """What a big-endian machine writes: the same archive, its numbers the other way round."""
    import zipfile

    value = every_dtype()
    torch.save(value, tmp_path / "little.pt")
    target = tmp_path / "big.pt"
    units = {"complex32": 2, "complex64": 4, "complex128": 8}
    names = list(value)
    with zipfile.ZipFile(tmp_path / "little.pt") as source, zipfile.ZipFile(target, "w") as made:
        for name in source.namelist():
            data = source.read(name)
            if "/data/" in name:
                dtype = names[int(name.rpartition("/")[2])]
                width = units.get(dtype, value[dtype].element_size())
                data = np.frombuffer(data, f"V{width}").tobytes()
                data = b"".join(data[i : i + width][::-1] for i in range(0, len(data), width))
            elif name.endswith("/byteorder"):
                data = b"big"
            made.writestr(name, data)
    view = read(target, "zip")
    assert view.about["byteorder"] == "big"
    same(view.tree, value, Compared())
    # torch does not turn the dtypes round that it keeps on untyped storages; the file is right.
    loaded = torch.load(target, weights_only=False)
    typed = torch.storage._dtype_to_storage_type_map()
    names = [name for name in names if value[name].dtype in typed]
    same({n: view.tree[n] for n in names}, {n: loaded[n] for n in names}, Compared())
