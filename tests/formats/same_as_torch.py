"""Comparing what a reader gives with what torch.load gives: values, types, bytes and sharing."""

import dataclasses
from collections import Counter, OrderedDict, defaultdict, deque
from typing import Any

import numpy as np
import torch
from told import told

from holdtrue.formats.tensor_bytes import read_tensor
from holdtrue.formats.view import LazyTensor
from holdtrue.records.inert import InertKey, NamedReference, Record

PLAIN = (
    dict, list, tuple, set, frozenset, deque, str, bytes, bytearray, int, float, complex, range,
    slice, np.generic, type(None),
)  # fmt: skip


@dataclasses.dataclass
class Compared:
    """What one comparison covered."""

    tensors: Counter[str] = dataclasses.field(default_factory=Counter)  # by dtype
    arrays: int = 0
    values: int = 0
    storages: dict[str, int] = dataclasses.field(default_factory=dict)  # our key → address


def torch_bytes(tensor: torch.Tensor) -> bytes:
    """Bytes in C order."""
    plain = tensor.detach().cpu().resolve_conj().resolve_neg()
    flat = plain.contiguous()
    if not flat.numel():
        return b""
    return flat.reshape(-1).view(torch.uint8).numpy().tobytes()


def same_tensor(ours: LazyTensor, theirs: torch.Tensor, seen: Compared, where: str) -> None:
    assert isinstance(ours, LazyTensor), where
    assert ours.dtype == str(theirs.dtype).removeprefix("torch."), where
    assert ours.requires_grad == theirs.requires_grad, where
    assert ours.parameter == isinstance(theirs, torch.nn.Parameter), where
    seen.tensors[ours.dtype] += 1
    if theirs.layout != torch.strided:
        assert ours.layout == str(theirs.layout).removeprefix("torch."), where
        assert ours.shape == tuple(theirs.shape), where
        for name, part in ours.components.items():
            if theirs.layout == torch.sparse_coo:
                inner = theirs._indices() if name == "indices" else theirs._values()
            else:
                inner = getattr(theirs, name)()
            same_tensor(part, inner, seen, f"{where}.{name}")
        return
    if theirs.is_nested:
        assert ours.layout == "nested", where
        same_tensor(ours.components["values"], theirs.values(), seen, where)
        same_tensor(ours.components["sizes"], theirs._nested_tensor_size(), seen, where)
        return
    assert ours.shape == tuple(theirs.shape), where
    assert ours.stride == theirs.stride(), where
    assert ours.device == str(theirs.device), where
    if theirs.device.type == "meta":
        assert ours.layout == "meta", where
        return
    if theirs.is_quantized:
        assert ours.layout == "quantized", where
        assert ours.quantizer is not None
        assert ours.quantizer.scheme == str(theirs.qscheme()).removeprefix("torch."), where
        if theirs.qscheme() == torch.per_tensor_affine:
            assert ours.quantizer.scale == theirs.q_scale(), where
            assert ours.quantizer.zero_point == theirs.q_zero_point(), where
        else:
            scales, points = theirs.q_per_channel_scales(), theirs.q_per_channel_zero_points()
            same_tensor(ours.components["scales"], scales, seen, where)
            same_tensor(ours.components["zero_points"], points, seen, where)
        numbers = torch_bytes(theirs.int_repr())
        if "packed" in ours.components:
            assert read_tensor(ours.components["packed"]).tobytes() == numbers, where
        else:
            assert read_tensor(ours).tobytes() == numbers, where
        return
    assert read_tensor(ours).tobytes() == torch_bytes(theirs), where
    if theirs.numel():
        address = theirs.untyped_storage().data_ptr()
        piece = ours.pieces[0]
        assert piece.offset == theirs.storage_offset(), where
        assert seen.storages.setdefault(piece.storage.key, address) == address, where


def same(ours: Any, theirs: Any, seen: Compared, where: str = "") -> None:
    """Assert that a tree says what the loaded object is."""
    seen.values += 1
    if isinstance(theirs, torch.Tensor):
        same_tensor(ours, theirs, seen, where)
    elif isinstance(theirs, (torch.UntypedStorage, torch.TypedStorage)):
        assert ours.class_name.endswith("Storage"), where
        assert read_tensor(ours).tobytes() == bytes(theirs.untyped().tolist()), where
    elif isinstance(theirs, np.ndarray):
        seen.arrays += 1
        if theirs.dtype.hasobject or theirs.dtype.names:
            assert ours.class_name == "numpy.ndarray", where
            return
        assert ours.numpy == theirs.dtype.newbyteorder("<").str, where
        assert ours.shape == theirs.shape, where
        little = np.ascontiguousarray(theirs).astype(theirs.dtype.newbyteorder("<"))
        assert read_tensor(ours).tobytes() == little.tobytes(), where
    elif isinstance(theirs, torch.Size):
        assert told(ours) == told(Record(class_name="torch.Size", args=(tuple(theirs),))), where
    elif isinstance(theirs, (torch.dtype, torch.layout)):
        assert ours == NamedReference(str(theirs)), where
    elif isinstance(theirs, torch.device):
        assert ours.class_name == "torch.device", where
    elif isinstance(theirs, PLAIN):
        same_plain(ours, theirs, seen, where)
    else:
        assert isinstance(ours, Record), (where, ours)
        name = f"{type(theirs).__module__}.{type(theirs).__qualname__}"
        assert ours.class_name.rpartition(".")[2] in (name.rpartition(".")[2], "_reconstruct"), (
            where
        )


def same_plain(ours: Any, theirs: Any, seen: Compared, where: str) -> None:
    assert type(ours) is type(theirs), (where, type(ours), type(theirs))
    if isinstance(theirs, dict):
        assert [plain_key(key) for key in ours] == [plain_key(key) for key in theirs], where
        for (key, mine), other in zip(ours.items(), theirs.values(), strict=True):
            same(mine, other, seen, f"{where}/{key}")
        if isinstance(theirs, OrderedDict):
            assert set(vars(ours)) == set(vars(theirs)), where
            for name in vars(theirs):
                same(vars(ours)[name], vars(theirs)[name], seen, f"{where}.{name}")
        if isinstance(theirs, defaultdict):
            assert ours.default_factory == theirs.default_factory, where
    elif isinstance(theirs, (list, tuple, deque)):
        assert len(ours) == len(theirs), where
        for index, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
            same(mine, other, seen, f"{where}/{index}")
    elif isinstance(theirs, (float, complex, np.generic)):
        assert repr(ours) == repr(theirs), where
    else:
        assert ours == theirs, where


def plain_key(key: Any) -> Any:
    return "inert" if isinstance(key, InertKey) or not isinstance(key, (str, int, tuple)) else key
