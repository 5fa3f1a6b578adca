"""Whether a model's dtypes can hold the values that are meant for it."""

from collections.abc import Iterator

from holdtrue.doctor.subjects import Weights
from holdtrue.findings import Finding, grouped

# The largest finite number of each dtype that is narrower than another.
_LARGEST = {
    "float16": 65504.0,
    "bfloat16": 3.3895313892515355e38,
    "float32": 3.4028234663852886e38,
    "float8_e4m3fn": 448.0,
    "float8_e4m3fnuz": 240.0,
    "float8_e5m2": 57344.0,
    "float8_e5m2fnuz": 57344.0,
}


def out_of_range(weights: Weights) -> Iterator[Finding]:
    """Values that the model's dtype turns into infinity."""
    lost: list[str] = []
    for path, dtype in weights.wanted.items():
        held, tensor = weights.statistics.get(path), weights.view.tensors[path]
        if held is None or dtype == tensor.dtype or held.low is None or held.high is None:
            continue
        if not _holds(dtype, float(held.low), float(held.high)):
            lost.append(f"{path}: {held.low:.4g} to {held.high:.4g} in {tensor.dtype}, → {dtype}")
    if lost:
        yield grouped(
            code="values-out-of-range",
            severity="error",
            what=f"values of {len(lost)} tensor{'s' * (len(lost) > 1)} are beyond the model's "
            "dtype",
            places=lost,
            why="copy_ casts without a word: what float16 cannot hold (above 65504) becomes "
            "infinite",
            fix="before it is restored; bfloat16 has the range of float32, and fewer digits",
            command="model.bfloat16()",
        )


def _holds(dtype: str, low: float, high: float) -> bool:
    largest = _LARGEST.get(dtype)
    return largest is None or (-largest <= low and high <= largest)
