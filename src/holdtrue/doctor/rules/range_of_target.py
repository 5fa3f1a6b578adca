"""Whether a model's dtypes can hold the values that are meant for it."""

from collections.abc import Iterator

from holdtrue.doctor.subjects import Fit, Weights
from holdtrue.doctor.tensor_roles import finding
from holdtrue.findings import Finding

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
_INTEGERS = {f"{sign}int{bits}": bits for sign in ("", "u") for bits in (8, 16, 32, 64)}


def out_of_range(weights: Weights) -> Iterator[Finding]:
    """Values that the model's dtype turns into infinity or another number."""
    fit = weights.fit
    if fit is None:
        return
    wanted = _dtypes(fit)
    paths = {id(tensor): path for path, tensor in weights.view.tensors.items()}
    lost: list[str] = []
    for name, tensor in fit.state.names.items():
        held = weights.statistics.get(paths.get(id(tensor), ""))
        dtype = wanted.get(fit.names.get(name, name))
        if held is None or dtype is None or dtype == tensor.dtype or not held.finite:
            continue
        if not _holds(dtype, float(held.low or 0), float(held.high or 0)):
            lost.append(f"{name}: {held.low:.4g} to {held.high:.4g} in {tensor.dtype}, → {dtype}")
    if lost:
        yield finding(
            lost,
            code="values-out-of-range",
            severity="error",
            what=f"values of {len(lost)} tensor{'s' * (len(lost) > 1)} are beyond the model's "
            "dtype",
            why="copy_ casts without a word: what float16 cannot hold (above 65504) becomes "
            "infinite, what an integer cannot hold another number",
            fix="build the model in a dtype that holds them: model.to(torch.bfloat16) has the "
            "range of float32",
            command="model.to(torch.bfloat16)",
        )


def _dtypes(fit: Fit) -> dict[str, str]:
    """The dtype of each tensor of the live model, by name."""
    return {
        f"{path}.{name}" if path else name: facts.dtype
        for path, position in fit.target.modules.items()
        for name, facts in fit.target.kinds[position].tensors.items()
    }


def _holds(dtype: str, low: float, high: float) -> bool:
    if dtype in _LARGEST:
        most = _LARGEST[dtype]
        return -most <= low and high <= most
    if dtype in _INTEGERS:
        bits, signed = _INTEGERS[dtype], not dtype.startswith("u")
        least = -(2.0 ** (bits - 1)) if signed else 0.0
        return least <= low and high < 2.0 ** (bits - signed)
    return True
