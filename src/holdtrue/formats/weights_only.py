"""What `torch.load(weights_only=True)` takes, so that what it would refuse can be said beforehand.

The lists are torch 2.13's; a test compares them with the torch that is installed.
"""

from typing import Literal

from msgspec import Struct

_NUMBERS = ("BFloat16", "Byte", "Char", "Double", "Float", "Half", "Int", "Long", "Short")
_STORAGES = (*_NUMBERS, "Bool", "ComplexDouble", "ComplexFloat")
_QUANTIZED = ("QInt32", "QInt8", "QUInt2x4", "QUInt4x2", "QUInt8")
_DTYPES = (
    "bfloat16", "bits16", "bits1x8", "bits2x4", "bits4x2", "bits8", "bool", "complex128",
    "complex32", "complex64", "float16", "float32", "float4_e2m1fn_x2", "float64",
    "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu",
    "qint32", "qint8", "quint2x4", "quint4x2", "quint8",
    *(f"int{bits}" for bits in (1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 64)),
    *(f"uint{bits}" for bits in (1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 64)),
)  # fmt: skip
_SCHEMES = ("per_channel_affine", "per_channel_affine_float_qparams", "per_channel_symmetric",
            "per_tensor_affine", "per_tensor_symmetric")  # fmt: skip
_REBUILDERS = (
    "_rebuild_device_tensor_from_cpu_tensor", "_rebuild_device_tensor_from_numpy",
    "_rebuild_meta_tensor_no_storage", "_rebuild_nested_tensor", "_rebuild_parameter",
    "_rebuild_parameter_with_state", "_rebuild_qtensor", "_rebuild_sparse_tensor",
    "_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_wrapper_subclass",
)  # fmt: skip

GLOBALS = frozenset({
    "_codecs.encode", "builtins.bytearray", "builtins.complex", "builtins.set",
    "collections.Counter", "collections.OrderedDict", "torch.Size", "torch.Tensor",
    "torch.device", "torch.nn.parameter.Parameter", "torch.serialization._get_layout",
    "torch.storage.TypedStorage", "torch.storage.UntypedStorage",
    "torch._tensor._rebuild_from_type_v2",
    # Of these torch marks its own as safe when it is imported.
    "torch.distributed._mesh_layout._FlatLayout", "torch.distributed._mesh_layout._MeshLayout",
    "torch.nested._internal.nested_tensor.NestedTensor",
    "torch.nested._internal.nested_tensor._rebuild_njt",
    *(f"torch.{name}" for name in (*_DTYPES, *_SCHEMES)),
    *(f"torch.{name}Storage" for name in (*_STORAGES, *_QUANTIZED)),
    *(f"torch.cuda.{name}Storage" for name in _STORAGES),
    *(f"torch{place}.{name}Tensor" for place in ("", ".cuda") for name in (*_NUMBERS, "Bool")),
    *(f"torch{place}.sparse.{name}Tensor" for place in ("", ".cuda") for name in _NUMBERS),
    *(f"torch._utils.{name}" for name in _REBUILDERS),
})  # fmt: skip

OPCODES = frozenset({
    "GLOBAL", "NEWOBJ", "REDUCE", "BUILD", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "MARK",
    "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "NONE", "NEWFALSE", "NEWTRUE", "EMPTY_TUPLE",
    "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET", "BININT", "BININT1", "BININT2", "BINFLOAT",
    "BINUNICODE", "SHORT_BINSTRING", "BINPERSID", "BINGET", "LONG_BINGET", "BINPUT", "LONG_BINPUT",
    "LONG1", "PROTO", "STOP",
})  # fmt: skip


class Refused(Struct, frozen=True, kw_only=True):
    """One thing in a pickle at which the restricted unpickler stops, and where that stands."""

    kind: Literal["global", "opcode", "text"]
    name: str  # "numpy.dtype"; "STACK_GLOBAL" (147)
    offset: int
    count: int
    places: tuple[str, ...]  # paths in the tree of the first ones; none where they are not in it
