"""A state dict as plain safetensors: one file, or Hugging Face's shards with their index."""

from msgspec import Struct

from holdtrue.engine.layout import PlannedFile, plan_file, plan_shards
from holdtrue.engine.stored import StoredSource, stored_source
from holdtrue.formats.view import LazyTensor
from holdtrue.records.dtypes import DTYPES, SAFETENSORS
from holdtrue.records.leaf_nodes import is_unicode

_STEM = "model"  # what Hugging Face's loaders look for
_CODES = {name: code for code, (name, _) in SAFETENSORS.items()}


class Files(Struct, frozen=True, eq=False):
    """Planned files, and the sources by the key that placements have."""

    files: list[PlannedFile]
    sources: dict[str, StoredSource]

    @property
    def nbytes(self) -> int:
        return sum(file.nbytes for file in self.files)


def unfit(name: str, tensor: LazyTensor) -> str | None:
    """Why a tensor cannot be in such a file; None where it can."""
    if name == "__metadata__" or not is_unicode(name):
        return "its name is not one that safetensors allows"
    if tensor.layout != "strided":
        return f"safetensors has no {tensor.layout} tensors"
    row = DTYPES.get(tensor.dtype)
    spelled = row is not None and tensor.numpy in (None, row.numpy)
    if tensor.dtype not in _CODES or not spelled:
        return f"safetensors has no {tensor.numpy or tensor.dtype[:40]}"
    return None


def one_file(names: dict[str, LazyTensor], metadata: dict[str, str]) -> Files:
    """All tensors in one file, with the header's metadata of the file that they come from."""
    sources = _sources(names)
    told = {"format": "pt", **metadata}
    return Files([plan_file(f"{_STEM}.safetensors", list(sources), sources, told)], sources)


def shards(names: dict[str, LazyTensor], most: int) -> Files:
    """Files of at most `most` bytes of tensors, and an index even where there is one only."""
    sources = _sources(names)
    return Files(plan_shards(_STEM, list(sources), sources, most), sources)


def _sources(names: dict[str, LazyTensor]) -> dict[str, StoredSource]:
    return {f"{_STEM}/{name}": _source(tensor) for name, tensor in names.items()}


def _source(tensor: LazyTensor) -> StoredSource:
    """As safetensors itself spells the dtype, not in the carriers of holdtrue's own format."""
    made = stored_source(tensor)
    shape = tensor.shape
    if tensor.dtype == "float4_e2m1fn_x2" and shape:  # counted in halves of a byte there
        shape = (*shape[:-1], shape[-1] * 2)
    return StoredSource(tensor, _CODES[tensor.dtype], shape, made.nbytes)
