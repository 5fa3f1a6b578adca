"""What the values of one tensor are like: one pass over its bytes, in blocks, without torch."""

from collections.abc import Iterator

from msgspec import Struct

from holdtrue.doctor.elements import decoder, element_type
from holdtrue.doctor.side_by_side import Progress, chunks
from holdtrue.doctor.tally import Tally, add
from holdtrue.doctor.zero_runs import ZeroRuns
from holdtrue.formats.tensor_bytes import Bytes, element_bytes
from holdtrue.formats.view import LazyTensor
from holdtrue.on_demand import numpy as np

_RUN = 64  # zeros in a row that are worth a word
_STEP = 1 << 16  # elements reckoned with at once: they and their flags stay in the cache

# The smallest normal number. Below it digits are lost, and many processors are slow.
_NORMAL = {
    "<f2": 2.0**-14,
    "<f4": 2.0**-126,
    "<f8": 2.0**-1022,
    "bfloat16": 2.0**-126,
    "float8_e4m3fn": 2.0**-6,
    "float8_e4m3fnuz": 2.0**-7,
    "float8_e5m2": 2.0**-14,
    "float8_e5m2fnuz": 2.0**-15,
}


class Rows(Struct, frozen=True, kw_only=True):
    """The rows of a matrix; `first` and `last` are the outermost of those that are all zero."""

    count: int
    zero: int = 0
    first: int = -1
    last: int = -1
    repeated: int = 0  # not zero, and equal to the row before


class Statistics(Struct, frozen=True, kw_only=True):
    """A tensor's values summed up. Of complex numbers `low` and `high` are over both parts.

    `low`, `high`, `mean` and `rms` are those of the finite values, None where there are none.
    """

    elements: int
    nan: int = 0
    plus_infinite: int = 0  # of complex numbers: either part, either sign
    minus_infinite: int = 0
    zeros: int = 0
    denormals: int = 0
    negative: int = 0
    low: float | int | None = None
    high: float | int | None = None
    mean: float | None = None
    rms: float | None = None  # root of the mean square
    first_bad: tuple[int, ...] | None = None  # index of the first NaN or infinity
    rows: Rows | None = None  # of floating matrices whose rows fit a block
    zero_runs: tuple[tuple[int, int], ...] = ()  # first element and length, of 64 or more
    digest: str = ""  # xxh3-128 of the bytes in C order

    @property
    def infinite(self) -> int:
        return self.plus_infinite + self.minus_infinite

    @property
    def finite(self) -> int:
        return self.elements - self.nan - self.infinite

    @property
    def largest(self) -> float:
        """The largest finite magnitude; 0 where nothing is finite."""
        return max((abs(float(x)) for x in (self.low, self.high) if x is not None), default=0.0)

    @property
    def constant(self) -> bool:
        """One finite value everywhere."""
        return self.elements > 0 and self.finite == self.elements and self.low == self.high

    @property
    def all_zero(self) -> bool:
        return self.elements > 0 and self.zeros == self.elements


def summarise(tensor: LazyTensor, progress: Progress | None = None) -> Statistics | None:
    """The statistics of a strided tensor; None for elements that are no numbers.

    Raises DamageError where its bytes are missing or not those that were written.
    """
    decode, width = decoder(tensor), element_bytes(tensor)
    if decode is None or not width or tensor.layout not in ("strided", "quantized"):
        return None
    kind = element_type(tensor)
    is_float = decode(np.zeros(width, np.uint8)).dtype.kind == "f"
    matrix = is_float and len(tensor.shape) == 2 and 4 <= tensor.shape[1] <= _STEP
    tally = Tally(
        shape=tensor.shape,
        normal=_NORMAL.get(kind, 0.0),
        columns=tensor.shape[1] if matrix else 0,
        runs=ZeroRuns(_RUN) if is_float else None,
    )
    step = (_STEP // tally.columns * tally.columns if matrix else _STEP) * width
    with np.errstate(all="ignore"):  # overflow and NaN are what is looked for
        for block in _blocks(tensor, step, progress):
            tally.digest.update(block.data)
            add(tally, decode(block))
    return _statistics(tally)


def _blocks(tensor: LazyTensor, step: int, progress: Progress | None) -> Iterator[Bytes]:
    """The bytes in blocks of just `step`, the last one apart: no row is cut in two."""
    rest = np.empty(0, np.uint8)
    for chunk in chunks(tensor, progress):
        data = np.concatenate([rest, chunk]) if len(rest) else chunk
        end = len(data) // step * step
        for at in range(0, end, step):
            yield data[at : at + step]
        rest = data[end:]
    if len(rest):
        yield rest


def _statistics(tally: Tally) -> Statistics:
    finite = tally.at - tally.nan - tally.plus - tally.minus
    bad = tally.first_bad
    return Statistics(
        elements=tally.at,
        nan=tally.nan,
        plus_infinite=tally.plus,
        minus_infinite=tally.minus,
        zeros=tally.zeros,
        denormals=tally.denormals,
        negative=tally.negative,
        low=tally.low,
        high=tally.high,
        mean=tally.total / finite if finite else None,
        rms=(tally.squares / finite) ** 0.5 if finite else None,
        first_bad=_index(bad, tally.shape) if bad >= 0 else None,
        rows=_rows(tally) if tally.columns else None,
        zero_runs=tally.runs.finished(tally.at) if tally.runs else (),
        digest=tally.digest.hexdigest(),
    )


def _index(flat: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    found: list[int] = []
    for size in reversed(shape):
        flat, place = divmod(flat, size)
        found.append(place)
    return tuple(reversed(found))


def _rows(tally: Tally) -> Rows:
    return Rows(
        count=tally.shape[0],
        zero=tally.zero_rows,
        first=tally.first_row,
        last=tally.last_row,
        repeated=tally.repeated,
    )
