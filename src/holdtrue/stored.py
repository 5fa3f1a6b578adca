"""Tensors in a file, described at once, read and verified when asked for."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from holdtrue.errors import OpenError, fail
from holdtrue.findings import Finding
from holdtrue.formats.arrays import numpy_dtype
from holdtrue.formats.proven import Proven, read_proven
from holdtrue.formats.tensor_bytes import Bytes, tensor_bytes
from holdtrue.formats.view import LazyTensor

if TYPE_CHECKING:
    import numpy as np
    import torch


class StoredTensor:
    """One tensor: `dtype`, `shape`, `stride`, `layout`, `device`, `requires_grad`, `nbytes`."""

    def __init__(
        self,
        lazy: LazyTensor,
        name: str,
        beside: Mapping[str, LazyTensor] | None = None,
        proven: Proven | None = None,
        foreign: bool = False,
        reading: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._proven, self._foreign, self._reading = proven or Proven(), foreign, reading
        self._lazy, self.name, self._beside = lazy, name, beside or {}
        self.dtype, self.shape, self.stride = lazy.dtype, lazy.shape, lazy.stride
        self.requires_grad, self.layout, self.device = lazy.requires_grad, lazy.layout, lazy.device
        self.parameter = lazy.parameter

    @property
    def nbytes(self) -> int:
        """Bytes of its elements; of sparse tensors and the like, those of their components."""
        return tensor_bytes(self._lazy)

    def __repr__(self) -> str:
        return f"<stored tensor {self.name}: {self.dtype} {list(self.shape)}>"

    def torch(self) -> "torch.Tensor":
        """A new CPU tensor. Raises DamageError when its bytes are not those that were written."""
        from holdtrue.restore.fresh import Fresh, build_tensor

        with self._reading():
            tensor: torch.Tensor = build_tensor(
                self._lazy,
                Fresh(self._beside, proven=self._proven, foreign=self._foreign),
                self.name,
            )
        return tensor

    def numpy(self) -> "np.ndarray[Any, Any]":
        """A new array, without torch; bfloat16 and float8 need the package ml_dtypes.

        Raises DamageError when its bytes are not those that were written.
        """
        if self._lazy.layout != "strided":
            raise fail(OpenError, self.name, _no_array(self.name, self._lazy))
        dtype = numpy_dtype(self._lazy, self.name)
        return self._read().view(dtype).reshape(self._lazy.shape)

    def _read(self) -> Bytes:
        with self._reading():
            return read_proven(self._lazy, self._proven, self.name)


class StoredTensors(Mapping[str, StoredTensor]):
    """All tensors of a checkpoint by path, "model/conv1.weight"."""

    def __init__(
        self,
        tensors: Mapping[str, LazyTensor],
        proven: Proven | None = None,
        foreign: bool = False,
        reading: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._tensors, self._proven, self._foreign = tensors, proven or Proven(), foreign
        self._reading = reading

    def __getitem__(self, key: str) -> StoredTensor:
        return StoredTensor(
            self._tensors[key], key, self._tensors, self._proven, self._foreign, self._reading
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _no_array(name: str, lazy: LazyTensor) -> Finding:
    return Finding(
        code="layout-not-plain",
        severity="error",
        where=name,
        what=f"a {lazy.layout} tensor has no NumPy form",
        why="it is made of several arrays",
        fix="take it as a torch tensor: .torch()",
    )
