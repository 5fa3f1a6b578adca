"""Tensors that are maps of the file they are stored in: nothing is read until it is used.

The maps are private. What is written to such a tensor goes to memory of its own, and never into the
file. A file that is cut short while it is mapped ends the process with SIGBUS, as with every map.
"""

import mmap
from pathlib import Path

import torch
from torch import Tensor

from holdtrue.capture.raw import dtype_named
from holdtrue.formats.pieces import is_contiguous
from holdtrue.formats.view import LazyTensor
from holdtrue.records.dtypes import DTYPES, contiguous_stride, product


class Maps:
    """The files of one checkpoint, each mapped once, when something of it is first asked for."""

    def __init__(self) -> None:
        self._maps: dict[str, mmap.mmap] = {}
        self.addresses: set[int] = set()  # of the tensors made

    def tensor(self, lazy: LazyTensor) -> Tensor | None:
        """None for what does not lie in the file as it would lie in memory: that has to be read."""
        dtype, row = dtype_named(lazy.dtype), DTYPES.get(lazy.dtype)
        if dtype is None or row is None or not row.itemsize or len(lazy.pieces) != 1:
            return None
        if lazy.layout != "strided" or lazy.class_name is not None or lazy.lazy_bits:
            return None
        piece, count = lazy.pieces[0], product(lazy.shape)
        storage = piece.storage
        plain = (
            count
            and storage.codec == "raw"
            and not storage.big_endian
            and storage.digest is not None  # else nothing proves what is mapped
            and piece.shape == lazy.shape
            and not piece.offset
            and is_contiguous(piece)
            and lazy.overlap is None
            and lazy.stride == contiguous_stride(lazy.shape)
            and storage.nbytes == count * row.itemsize
            and storage.offset % row.itemsize == 0
        )
        if not plain or lazy.numpy is not None:
            return None
        flat = torch.frombuffer(
            self._map(storage.file), dtype=dtype, count=count, offset=storage.offset
        )
        self.addresses.add(flat.data_ptr())
        return flat.view(lazy.shape)

    def _map(self, file: str) -> mmap.mmap:
        if file not in self._maps:
            with Path(file).open("rb") as opened:
                self._maps[file] = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
        return self._maps[file]
