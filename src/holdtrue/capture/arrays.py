"""NumPy arrays to tensor records, as `capture/tensors` does for tensors."""

from typing import Any

import numpy as np

from holdtrue.capture.tensors import Source, TensorSet, free_key
from holdtrue.records.dtypes import DTYPES, contiguous_stride
from holdtrue.records.manifest import TensorRecord


def add_array(into: TensorSet, array: np.ndarray[Any, Any], name: str) -> str:
    """Record a NumPy array (no object dtype) and return its key."""
    memory = ("numpy", id(array))
    if memory in into.known:
        return into.known[memory]
    key = free_key(into, name)
    into.known[memory] = key
    into.held.append(array)
    native = array.dtype.str  # of a structured one, its width; the value node has the fields
    torch_name = next((d.name for d in DTYPES.values() if d.numpy == native), None)
    row = DTYPES[torch_name] if torch_name else None
    code, shape = (row.code, array.shape + row.trailing) if row else ("U8", (array.nbytes,))
    into.records[key] = TensorRecord(
        dtype=torch_name or "uint8",
        shape=array.shape,
        numpy=native,
        stride=_fortran(array),
    )

    def read() -> memoryview:
        return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data

    into.sources[key] = Source(code, shape, array.nbytes, read=read)
    return key


def _fortran(array: np.ndarray[Any, Any]) -> tuple[int, ...] | None:
    if array.flags.c_contiguous or not array.flags.f_contiguous:
        return None
    return tuple(reversed(contiguous_stride(tuple(reversed(array.shape)))))
