"""Torch tensors from lazy ones of any format, sharing memory where the saved ones did."""

from typing import Any

import torch
from msgspec import Struct, field

from holdtrue.formats.proven import Proven, read_proven_storage
from holdtrue.formats.view import LazyTensor
from holdtrue.records.dtypes import DTYPES, extent
from holdtrue.records.inert import NamedReference
from holdtrue.records.trust import Trust
from holdtrue.restore.fresh import Fresh, build_array, build_tensor, dress, unusable


class Storages(Struct):
    """Reads each storage once, so that views of one storage are views of one memory again."""

    where: str
    agreed: Trust = field(default_factory=Trust)
    names: dict[int, str] = field(default_factory=dict)  # id of a lazy tensor → its path
    proven: Proven = field(default_factory=Proven)
    read: dict[str, torch.UntypedStorage] = field(default_factory=dict)

    def __call__(self, lazy: LazyTensor) -> Any:
        name = self.names.get(id(lazy), self.where)
        if lazy.numpy is not None:
            return build_array(lazy, self.proven, name)
        alone = Fresh({}, self.agreed, self.proven, foreign=True)
        if not self._is_view(lazy):
            return dress(build_tensor(lazy, alone, name), lazy)
        piece = lazy.pieces[0]
        dtype = getattr(torch, lazy.dtype, None)
        if not isinstance(dtype, torch.dtype):
            return dress(build_tensor(lazy, alone, name), lazy)  # says what is lacking
        if piece.storage.key not in self.read:
            data = bytearray(read_proven_storage(piece.storage, self.proven, name).data)
            whole = (
                torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, device="cpu")
            )
            self.read[piece.storage.key] = whole.untyped_storage()
        storage = self.read[piece.storage.key]
        end = (piece.offset + extent(piece.shape, piece.stride)) * dtype.itemsize
        if piece.offset < 0 or min(piece.stride, default=0) < 0 or end > storage.nbytes():
            raise unusable(
                self.where, f"a tensor needs {end:,} bytes of {storage.nbytes():,}", foreign=True
            )
        tensor = torch.empty(0, dtype=dtype, device="cpu").set_(
            storage, piece.offset, piece.shape, piece.stride
        )
        return dress(tensor, lazy)

    def _is_view(self, lazy: LazyTensor) -> bool:
        plain = lazy.layout == "strided" and lazy.class_name is None and not lazy.lazy_bits
        return (
            plain
            and len(lazy.pieces) == 1
            and lazy.pieces[0].shape == lazy.shape
            and (lazy.dtype in DTYPES)
        )


_LAYOUTS = frozenset({"strided", "sparse_coo", "sparse_csr", "sparse_csc", "sparse_bsr",
                      "sparse_bsc", "jagged"})  # fmt: skip


def torch_value(inert: Any) -> Any:
    """torch's own plain values from what a file names; everything else stays as it is."""
    if isinstance(inert, NamedReference):
        name = inert.name.removeprefix("torch.")
        known = inert.name.startswith("torch.") and (name in DTYPES or name in _LAYOUTS)
        return getattr(torch, name, inert) if known else inert
    try:
        if inert.class_name == "torch.Size":
            return torch.Size(*inert.args)
        if inert.class_name == "torch.device":
            return torch.device(*inert.args)
    except (TypeError, RuntimeError, ValueError):  # not what torch itself would have written
        return inert
    return inert
