"""Tensors that are maps of the file they are stored in: nothing is read until it is used.

The maps are private. What is written to such a tensor goes to memory of its own, and never into the
file. As with every map, what someone else writes into the file in place may show in pages that were
not written to, and a file that is cut short ends the process with SIGBUS.
"""

import mmap
from pathlib import Path

import torch
from torch import Tensor

from holdtrue.capture.raw import dtype_named
from holdtrue.errors import DamageError, fail
from holdtrue.findings import Finding
from holdtrue.formats.pieces import is_contiguous
from holdtrue.formats.view import LazyTensor, Storage
from holdtrue.records.dtypes import DTYPES, contiguous_stride, product


class Maps:
    """The files of one checkpoint, each mapped once, when something of it is first asked for."""

    def __init__(self) -> None:
        self._maps: dict[str, mmap.mmap] = {}
        self.addresses: set[int] = set()  # of the tensors made

    def tensor(self, lazy: LazyTensor) -> Tensor | None:
        """None for what does not lie in the file as it would lie in memory: that has to be read."""
        dtype = dtype_named(lazy.dtype)
        if dtype is None or not lies_as_in_memory(lazy):
            return None
        storage, count = lazy.pieces[0].storage, product(lazy.shape)
        if storage.offset % DTYPES[lazy.dtype].itemsize:
            return None
        flat = torch.frombuffer(self._map(storage), dtype=dtype, count=count, offset=storage.offset)
        self.addresses.add(flat.data_ptr())
        return flat.view(lazy.shape)

    def _map(self, storage: Storage) -> mmap.mmap:
        file = storage.file
        try:
            if file not in self._maps:
                with Path(file).open("rb") as opened:
                    self._maps[file] = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:  # removed, or emptied, since it was opened
            raise fail(DamageError, file, _unmapped(storage, str(error))) from None
        if len(self._maps[file]) < storage.offset + storage.nbytes:
            raise fail(DamageError, file, _unmapped(storage, "the file is shorter than that now"))
        return self._maps[file]


def lies_as_in_memory(lazy: LazyTensor) -> bool:
    """Whether its bytes in the file are those of a contiguous tensor, with a digest that proves
    them."""
    row = DTYPES.get(lazy.dtype)
    if row is None or not row.itemsize or len(lazy.pieces) != 1 or lazy.numpy is not None:
        return False
    if lazy.layout != "strided" or lazy.class_name is not None or lazy.lazy_bits:
        return False
    piece, count = lazy.pieces[0], product(lazy.shape)
    storage = piece.storage
    return bool(
        count
        and min(lazy.shape, default=1) > 0
        and not lazy.dtype.startswith(("qint", "quint"))
        and storage.codec == "raw"
        and not storage.big_endian
        and storage.digest is not None
        and piece.shape == lazy.shape
        and not piece.offset
        and is_contiguous(piece)
        and lazy.overlap is None
        and lazy.stride == contiguous_stride(lazy.shape)
        and storage.nbytes == count * row.itemsize
    )


def _unmapped(storage: Storage, why: str) -> Finding:
    return Finding(
        code="file-truncated",
        severity="error",
        where=f"{storage.file}: {storage.key}",
        what="the bytes of a tensor are no longer there",
        why=why,
        fix="open the checkpoint again; if it was removed or cut short, use another one",
    )
