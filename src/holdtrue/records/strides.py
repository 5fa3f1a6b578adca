"""The strides that are kept of a tensor: its memory order, without the gaps."""

from holdtrue.records.dtypes import contiguous_stride


def dense_stride(shape: tuple[int, ...], stride: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a compact copy in the same memory order, as torch's `empty_like` lays it out.

    Repeated dimensions (stride 0) stay repeated.
    """
    repeated = [size > 1 and step == 0 for size, step in zip(shape, stride, strict=True)]
    once = tuple(1 if r else size for r, size in zip(repeated, shape, strict=True))
    if 0 in shape or len(stride) != len(shape):
        return contiguous_stride(shape)
    if is_dense(once, stride):
        return tuple(0 if r else step for r, step in zip(repeated, stride, strict=True))
    made = [0] * len(shape)
    step = 1
    for axis in sorted(range(len(shape)), key=lambda a: (stride[a], -a)):
        made[axis] = step
        step *= once[axis]
    return tuple(0 if r else step for r, step in zip(repeated, made, strict=True))


def is_dense(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether the elements fill their memory without gaps, each once."""
    expected = 1
    for step, size in sorted((st, n) for st, n in zip(stride, shape, strict=True) if n != 1):
        if step != expected:
            return False
        expected *= size
    return True
