"""torch's persistent ids: which storage a tensor lies on, and of what dtype it is."""

from typing import Any

from msgspec import Struct

from holdtrue.formats.pickle_tensors import row
from holdtrue.formats.view import LazyTensor, Piece, Storage
from holdtrue.records.dtypes import DTYPES
from holdtrue.records.inert import NamedReference

_DTYPES: dict[str, str] = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16",
    "CharStorage": "int8", "ByteStorage": "uint8", "BoolStorage": "bool",
    "BFloat16Storage": "bfloat16", "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64", "QInt8Storage": "qint8", "QInt32Storage": "qint32",
    "QUInt8Storage": "quint8", "QUInt4x2Storage": "quint4x2", "QUInt2x4Storage": "quint2x4",
    "UntypedStorage": "uint8", "_UntypedStorage": "uint8",
}  # fmt: skip


class StorageId(Struct, frozen=True, kw_only=True):
    """A persistent id of kind "storage", checked."""

    class_name: str
    dtype: str
    key: str
    location: str
    numel: int
    view: tuple[str, int, int] | None = None  # (key, first element, elements), before torch 0.4

    @property
    def nbytes(self) -> int:
        return self.numel * DTYPES[self.dtype].itemsize


def parse_storage_id(pid: Any) -> StorageId:
    """`("storage", class, key, location, numel[, view])`. Raises ValueError for anything else."""
    if not isinstance(pid, tuple) or len(pid) not in (5, 6) or text(pid[0]) != "storage":
        raise ValueError("a persistent id that names no storage")
    _, cls, key, location, numel, *view = pid
    if not isinstance(cls, NamedReference):
        raise ValueError("a storage without its class")
    dtype = storage_dtype(cls.name)
    if type(numel) is not int or not 0 <= numel < 1 << 60:
        raise ValueError("a storage of no possible length")
    metadata = None
    if view and view[0] is not None:
        metadata = _view(view[0])
    return StorageId(
        class_name=cls.name,
        dtype=dtype,
        key=text(key),
        location=text(location),
        numel=numel,
        view=metadata,
    )


def storage_dtype(class_name: str) -> str:
    """The dtype of a storage class by its name."""
    last = class_name.rpartition(".")[2]
    if last not in _DTYPES:
        raise ValueError(f"an unknown storage class, {class_name[:80]}")
    return _DTYPES[last]


def _view(value: Any) -> tuple[str, int, int]:
    if not isinstance(value, tuple) or len(value) != 3:
        raise ValueError("a storage view that is none")
    key, offset, numel = value
    if any(type(n) is not int or not 0 <= n < 1 << 60 for n in (offset, numel)):
        raise ValueError("a storage view of no possible length")
    return text(key), offset, numel


def text(value: Any) -> str:
    """A short string; Python 2 wrote bytes, and old keys may be ints."""
    if isinstance(value, bytes):
        value = value.decode("latin1")
    if type(value) is int and value.bit_length() <= 64:
        return str(value)
    if not isinstance(value, str) or len(value) > 1024:
        raise ValueError("a storage whose key or device is no short text")
    return value


def storage_tensor(found: StorageId, storage: Storage) -> LazyTensor:
    """What the persistent id stands for in the tree: the whole storage, or a view of it."""
    made = row(
        storage, found.dtype, found.numel, device=found.location, class_name=found.class_name
    )
    if found.view is None:
        return made
    _, offset, numel = found.view
    piece = Piece(start=(0,), shape=(numel,), storage=storage, offset=offset, stride=(1,))
    return LazyTensor(
        dtype=found.dtype, shape=(numel,), stride=(1,), pieces=(piece,), device=found.location,
        class_name=found.class_name,
    )  # fmt: skip
