"""The dtypes of torch by name, and how each is laid down in a safetensors file.

safetensors knows fewer dtypes than torch. One that it lacks, or that its own torch loader cannot
read back, is stored as plain numbers of the same bytes; the manifest keeps the true dtype.
"""

from msgspec import Struct


class DType(Struct, frozen=True):
    """`code` and `trailing` describe the stored form: a complex128 [3] is stored as F64 [3, 2]."""

    name: str  # torch's name without "torch."
    itemsize: int  # bytes of one element in memory
    code: str  # safetensors dtype
    numpy: str | None  # NumPy dtype (little-endian); None where NumPy has no such number
    trailing: tuple[int, ...] = ()
    floating: bool = False


def _table() -> dict[str, DType]:
    rows = [
        DType("float64", 8, "F64", "<f8", floating=True),
        DType("float32", 4, "F32", "<f4", floating=True),
        DType("float16", 2, "F16", "<f2", floating=True),
        DType("bfloat16", 2, "BF16", None, floating=True),
        DType("float8_e4m3fn", 1, "F8_E4M3", None, floating=True),
        DType("float8_e4m3fnuz", 1, "U8", None, floating=True),
        DType("float8_e5m2", 1, "F8_E5M2", None, floating=True),
        DType("float8_e5m2fnuz", 1, "U8", None, floating=True),
        DType("float8_e8m0fnu", 1, "U8", None, floating=True),
        DType("float4_e2m1fn_x2", 1, "U8", None, floating=True),
        DType("complex32", 4, "F16", None, (2,)),
        DType("complex64", 8, "C64", "<c8"),
        DType("complex128", 16, "F64", "<c16", (2,)),
        DType("bool", 1, "BOOL", "|b1"),
        DType("uint8", 1, "U8", "|u1"),
        DType("int8", 1, "I8", "|i1"),
        DType("uint16", 2, "U16", "<u2"),
        DType("int16", 2, "I16", "<i2"),
        DType("uint32", 4, "U32", "<u4"),
        DType("int32", 4, "I32", "<i4"),
        DType("uint64", 8, "U64", "<u8"),
        DType("int64", 8, "I64", "<i8"),
        DType("quint8", 1, "U8", None),
        DType("qint8", 1, "I8", None),
        DType("qint32", 4, "I32", None),
        DType("quint4x2", 1, "U8", None),
        DType("quint2x4", 1, "U8", None),
        DType("bits8", 1, "U8", None),
        DType("bits1x8", 1, "U8", None),
        DType("bits2x4", 1, "U8", None),
        DType("bits4x2", 1, "U8", None),
        DType("bits16", 2, "U16", None),
    ]
    # The sub-byte integers are dtype shells in torch: one byte an element, no arithmetic.
    rows += [DType(f"{sign}int{bits}", 1, "U8", None) for sign in ("", "u") for bits in range(1, 8)]
    return {row.name: row for row in rows}


DTYPES: dict[str, DType] = _table()

# safetensors' own dtypes → torch's names; bits of one element for the size check.
SAFETENSORS: dict[str, tuple[str, int]] = {
    "F64": ("float64", 64), "F32": ("float32", 32),
    "F16": ("float16", 16), "BF16": ("bfloat16", 16),
    "F8_E4M3": ("float8_e4m3fn", 8), "F8_E5M2": ("float8_e5m2", 8),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", 8), "F8_E5M2FNUZ": ("float8_e5m2fnuz", 8),
    "F8_E8M0": ("float8_e8m0fnu", 8), "F4": ("float4_e2m1fn_x2", 4),
    "F6_E2M3": ("float6_e2m3", 6), "F6_E3M2": ("float6_e3m2", 6),
    "C64": ("complex64", 64), "BOOL": ("bool", 8),
    "U64": ("uint64", 64), "I64": ("int64", 64), "U32": ("uint32", 32), "I32": ("int32", 32),
    "U16": ("uint16", 16), "I16": ("int16", 16), "U8": ("uint8", 8), "I8": ("int8", 8),
}  # fmt: skip


# Values of the quantised dtypes that share a byte; every row begins on a byte of its own.
PACKED = {"quint4x2": 2, "quint2x4": 4}


def packed_bytes(name: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor of a packed dtype."""
    if not shape:
        return 1
    return product(shape[:-1]) * -(-shape[-1] // PACKED[name])


def product(shape: tuple[int, ...]) -> int:
    """Number of elements; 1 for a 0-d shape."""
    count = 1
    for size in shape:
        count *= size
    return count


def contiguous_stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The C-order strides of a shape, in elements, as torch gives them."""
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


# Tensors laid over one memory may span at most this many times their own elements: more would let
# a small file ask for a large allocation.
OVERLAP_FACTOR = 4


def extent(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """How many elements of memory a strided tensor spans, from its first to its last."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
