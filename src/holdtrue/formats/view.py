"""The one interface behind every format: a tree of plain values, inert records and lazy tensors.

A tree is made of None, bool, int, float, complex, str, bytes, list, tuple, set, dict and their
standard-library kin, `Record` and `NamedReference` for what is not built, and `LazyTensor` leaves.
"""

from typing import Any, Literal

from msgspec import Struct, field
from msgspec.structs import replace

from holdtrue.findings import Finding
from holdtrue.records.manifest import Quantizer

Layout = Literal["strided", "sparse_coo", "sparse_csr", "sparse_csc", "sparse_bsr", "sparse_bsc",
                 "quantized", "subclass", "uninitialized", "meta", "mkldnn", "nested"]  # fmt: skip


# Without gc, as in `records/manifest.py`. A LazyTensor may hold a state that holds it: it has gc.
class Storage(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A run of bytes in a file. Tensors with equal `key` share memory in the saved state."""

    key: str  # unique within one view
    file: str  # path of the file that holds the bytes
    offset: int  # first byte within the file
    nbytes: int  # bytes once inflated
    codec: Literal["raw", "deflate"] = "raw"
    stored: int | None = None  # bytes within the file, where compressed
    skip: int = 0  # inflated bytes before the first of these, where compressed
    big_endian: bool = False
    itemsize: int = 1  # unit of byte swapping when big_endian
    crc32: int | None = None  # over the inflated bytes, where the format keeps one
    record: "Storage | None" = None  # what holds these bytes among others, and has the CRC
    digest: str | None = None  # xxh3-128 over the bytes, where the format keeps one
    inline: bytes | None = None  # the bytes themselves, where the file spells them differently


class Piece(Struct, frozen=True, kw_only=True, gc=False):
    """A box of a tensor: `shape` at `start`, and where its elements lie in a storage."""

    start: tuple[int, ...]
    shape: tuple[int, ...]
    storage: Storage
    offset: int  # first element within the storage, in elements
    stride: tuple[int, ...]  # in elements


class LazyTensor(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A tensor described, not read. Strided ones have pieces; the others have components."""

    dtype: str  # torch's name without "torch."
    shape: tuple[int, ...]
    stride: tuple[int, ...]  # in elements, as it was in memory when saved
    pieces: tuple[Piece, ...] = ()
    layout: Layout = "strided"
    device: str = "cpu"
    requires_grad: bool = False
    parameter: bool = False
    persistent: bool = True  # False: a buffer that state_dict() leaves out
    components: dict[str, "LazyTensor"] = field(default_factory=dict)
    quantizer: Quantizer | None = None
    numpy: str | None = None  # NumPy's own dtype string, for arrays
    lazy_bits: tuple[str, ...] = ()  # "conj", "neg": not in the bytes yet, read_tensor applies them
    class_name: str | None = None  # of a tensor subclass
    state: Any = None  # of a tensor subclass: its attributes
    coalesced: bool = False  # sparse COO
    overlap: tuple[int, int] | None = None  # (group, first element): laid over others of its group

    def __repr__(self) -> str:
        return f"<{self.dtype} {list(self.shape)} on {self.device}>"


__all__ = ["Layout", "LazyTensor", "Piece", "Quantizer", "Storage", "View"]


class View(Struct, frozen=True, kw_only=True):
    """A checkpoint as read from any format."""

    path: str
    format: str  # stable kebab-case name: "holdtrue", "torch-zip", "safetensors", …
    about: dict[str, Any]  # versions, byte order, writer: what the format says of itself
    tree: Any
    tensors: dict[str, LazyTensor]  # by path in the tree, names joined by "/"
    findings: tuple[Finding, ...] = ()  # what was noticed while reading


def prefixed(tensor: LazyTensor, prefix: str) -> LazyTensor:
    """The tensor with `prefix` before its storage keys, for files that are read together."""
    pieces = tuple(
        replace(piece, storage=replace(piece.storage, key=prefix + piece.storage.key))
        for piece in tensor.pieces
    )
    components = {name: prefixed(part, prefix) for name, part in tensor.components.items()}
    return replace(tensor, pieces=pieces, components=components)
