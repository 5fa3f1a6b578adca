"""What the sizes of weights show by themselves: NaN, infinity, too large, too small."""

from collections.abc import Iterator

from holdtrue.doctor.amounts import counted
from holdtrue.doctor.subjects import Weights
from holdtrue.doctor.tensor_roles import (
    Named,
    earlier_checkpoint,
    infinity_is_meant,
    is_mask,
    weights_in,
)
from holdtrue.findings import Finding, grouped

_EXTREME = 1e7  # no layer is trained to weights of this size


def not_finite(weights: Weights) -> Iterator[Finding]:
    """NaN or infinity in weights; the -inf of a mask is none."""
    named = weights_in(weights)
    bad = [n for n in named if n.statistics.first_bad is not None and not infinity_is_meant(n)]
    beside = [n for n in bad if n.statistics.elements == 1 and not n.is_weight and not n.owner[1:]]
    bad = [n for n in bad if n not in beside]
    if bad:
        count = sum(n.statistics.nan + n.statistics.infinite for n in bad)
        yield grouped(
            code="weights-not-finite",
            severity="error",
            what=f"{len(bad)} of {len(named)} tensors hold {_kinds(bad)}",
            places=[_bad_place(n) for n in bad],
            why=_why_not_finite(bad, count, len(named)),
            fix="go back to a checkpoint from before it; every output that depends on these values "
            "is NaN or infinite, and training on from here does not mend it",
            command=earlier_checkpoint(weights.view),
        )
    if beside:
        yield grouped(
            code="value-not-finite",
            severity="note",
            what="a number that is kept beside the weights is NaN",
            places=[_bad_place(n) for n in beside],
            why="a loss or metric was NaN when it was saved: training may have diverged",
            fix="compare with the checkpoint before: holdtrue diff OTHER THIS",
        )


def extreme_values(weights: Weights) -> Iterator[Finding]:
    """Finite, but of a size that no training gives: a flipped bit, or just before NaN."""
    bad = [
        n
        for n in weights_in(weights)
        if n.floating
        and (n.is_weight or (n.leaf == "bias" and len(n.tensor.shape) == 1))
        and not is_mask(n)
        and n.statistics.largest > _EXTREME
    ]
    if bad:
        yield grouped(
            code="weights-extreme",
            severity="warning",
            what=f"weights of a size that training does not give in {counted(len(bad), 'tensor')}",
            places=[f"{n.path}: up to {n.statistics.largest:.3g}" for n in bad],
            why="a flipped exponent bit makes one value of a tensor huge; a diverging run makes "
            "many large, shortly before they turn to NaN",
            fix="go back to a checkpoint from before it",
            command=earlier_checkpoint(weights.view),
            confidence="likely",
        )


def denormals(weights: Weights) -> Iterator[Finding]:
    """Weights below the smallest normal number of their dtype."""
    heavy = [
        n
        for n in weights_in(weights)
        if n.statistics.denormals >= 64
        and not n.tensor.dtype.startswith("float8")
        and n.statistics.denormals * 20 > n.statistics.elements - n.statistics.zeros
    ]
    if heavy:
        most = any(n.statistics.denormals * 2 > n.statistics.elements for n in heavy)
        yield grouped(
            code="weights-denormal",
            severity="warning" if most else "note",
            what=f"many values of {counted(len(heavy), 'tensor')} are denormal: too small for "
            "their dtype",
            places=[
                f"{n.path}: {n.statistics.denormals:,} of {n.statistics.elements:,}" for n in heavy
            ],
            why="weight decay without gradients shrinks weights so, or they were cast to half; "
            "they lose their digits, and many processors are far slower with them",
            fix="cast from a wider copy with a scale, or set them to zero: "
            "torch.set_flush_denormal(True)",
        )


def beyond_half(weights: Weights) -> Iterator[Finding]:
    """Values that float16 cannot hold, where no model says that it is wanted."""
    if weights.wanted:
        return
    wide = [
        n
        for n in weights_in(weights)
        if n.tensor.dtype in ("float32", "float64", "bfloat16")
        and n.is_weight
        and 65504 < n.statistics.largest <= _EXTREME
    ]
    if wide:
        yield grouped(
            code="beyond-float16",
            severity="note",
            what=f"values beyond the range of float16 in {counted(len(wide), 'tensor')}",
            places=[f"{n.path}: up to {n.statistics.largest:.4g}" for n in wide],
            why="as float16 they become infinite: its largest number is 65504",
            fix="run the model in bfloat16 or float32",
        )


def _why_not_finite(bad: list[Named], count: int, of: int) -> str:
    if count == 1:
        return "one lone value: a flipped bit, or a single overflow"
    if not any(n.statistics.nan for n in bad) and all(n.tensor.dtype == "float16" for n in bad):
        return "float16 ends at 65504: larger values became infinite when they were cast to it"
    if len(bad) * 2 > of:
        return "the loss became NaN, and one step of the optimizer carried it into every weight"
    return "a NaN gradient or an overflow reached these tensors before the state was saved"


def _kinds(bad: list[Named]) -> str:
    nan, infinite = (any(n.statistics.nan for n in bad), any(n.statistics.infinite for n in bad))
    return "NaN and infinity" if nan and infinite else "NaN" if nan else "infinity"


def _bad_place(named: Named) -> str:
    held = named.statistics
    counts = [f"{n:,} {what}" for n, what in ((held.nan, "NaN"), (held.infinite, "infinite")) if n]
    return f"{named.path}{list(held.first_bad or ())}: {', '.join(counts)} of {held.elements:,}"
