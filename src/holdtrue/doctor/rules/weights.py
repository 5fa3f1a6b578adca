"""What the values of weights show by themselves: NaN, zeros, lost pages."""

from collections import defaultdict
from collections.abc import Iterator

from holdtrue.doctor.subjects import Weights
from holdtrue.doctor.tensor_roles import (
    Named,
    earlier_checkpoint,
    finding,
    infinity_is_meant,
    is_mask,
    is_table,
    weights_in,
)
from holdtrue.findings import Finding
from holdtrue.formats.pieces import is_contiguous
from holdtrue.formats.tensor_bytes import element_bytes

_EXTREME = 1e7  # no layer is trained to weights of this size
_PAGE = 4096
_DENSE = 0.01  # of a damaged tensor's other values, at most so many are zero
_SMALL = 16  # elements; of fewer, all being alike says nothing
_FRESH_ZERO = ("lora_b", "lora_up", "hada_w2", "lokr_w2", "adaln", "zero_conv", "zero_module",
               "controlnet", "gate", "offset", "pos_emb", "position", "prompt",
               "modulation")  # fmt: skip


def not_finite(weights: Weights) -> Iterator[Finding]:
    """NaN or infinity in weights; the -inf of a mask is none."""
    named = weights_in(weights)
    bad = [n for n in named if n.statistics.first_bad is not None and not infinity_is_meant(n)]
    beside = [n for n in bad if n.statistics.elements == 1 and not n.is_weight and not n.owner[1:]]
    bad = [n for n in bad if n not in beside]
    if bad:
        count = sum(n.statistics.nan + n.statistics.infinite for n in bad)
        yield finding(
            [_bad_place(n) for n in bad],
            code="weights-not-finite",
            severity="error",
            what=f"{len(bad)} of {len(named)} tensors hold {_kinds(bad)}",
            why=_why_not_finite(bad, count, len(named)),
            fix="go back to a checkpoint from before it; every output that depends on these values "
            "is NaN or infinite, and training on from here does not mend it",
            command=earlier_checkpoint(weights.view),
        )
    if beside:
        yield finding(
            [_bad_place(n) for n in beside],
            code="value-not-finite",
            severity="note",
            what="a number that is kept beside the weights is NaN",
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
        yield finding(
            [f"{n.path}: up to {n.statistics.largest:.3g}" for n in bad],
            code="weights-extreme",
            severity="warning",
            what=f"weights of a size that training does not give in {_tensors(len(bad))}",
            why="a flipped exponent bit makes one value of a tensor huge; a diverging run makes "
            "many large, shortly before they turn to NaN",
            fix="go back to a checkpoint from before it",
            command=earlier_checkpoint(weights.view),
            confidence="likely",
        )


def all_zero(weights: Weights) -> Iterator[Finding]:
    """Weight matrices and scales without a value other than zero."""
    floating = [n for n in weights_in(weights) if n.floating]
    named = [n for n in floating if n.is_weight]
    zero = [n for n in named if n.statistics.all_zero and not _starts_at_zero(n)]
    if not zero:
        return
    everything = all(n.statistics.all_zero for n in named) and len(named) > 1
    by_design = set() if everything else _alike_everywhere(named) | _offsets_from_one(floating)
    for meant in (False, True):
        some = [n for n in zero if (n.pattern in by_design) == meant]
        if some:
            yield finding(
                [f"{n.path} {list(n.tensor.shape)}" for n in some],
                code="weights-all-zero",
                severity="note" if meant else "warning",
                what=f"{_tensors(len(some))} of weights {'is' if len(some) == 1 else 'are'} "
                "all zero",
                why="every layer has it so: they may start at zero by design, and were not trained"
                if meant
                else "whatever goes into such a layer, nothing but its bias comes out: it was "
                "zeroed, never filled after it was allocated, or its bytes were lost",
                fix="take these tensors from another checkpoint, unless they are meant to be zero",
                command=earlier_checkpoint(weights.view),
                confidence="hint" if meant else "likely",
            )


def constant(weights: Weights) -> Iterator[Finding]:
    """Weight matrices in which all values are equal."""
    named = [n for n in weights_in(weights) if n.floating and n.is_weight and n.is_matrix]
    held = [
        n
        for n in named
        if n.statistics.constant and n.statistics.zeros == 0 and n.statistics.elements >= _SMALL
    ]
    by_design = _alike_everywhere(named)
    for meant in (False, True):
        some = [n for n in held if (n.pattern in by_design or _is_filter(n)) == meant]
        if some:
            yield finding(
                [f"{n.path} {list(n.tensor.shape)}: {n.statistics.low:.4g}" for n in some],
                code="weights-constant",
                severity="note" if meant else "warning",
                what=f"all values are equal in {_tensors(len(some))} of weights",
                why="all its outputs are equal, and stay equal when it is trained: it was filled "
                "with one number and never initialised or loaded",
                fix="take these tensors from another checkpoint, or initialise them",
                command=earlier_checkpoint(weights.view),
                confidence="hint" if meant else "likely",
            )


def lost_pages(weights: Weights) -> Iterator[Finding]:
    """A stretch of zeros in a tensor that is dense elsewhere, as damage leaves it."""
    lost: list[str] = []
    odd: list[str] = []
    for named in weights_in(weights):
        runs = named.statistics.zero_runs
        if not runs or named.statistics.all_zero or is_mask(named) or not named.floating:
            continue
        inside = sum(length for _, length in runs)
        rest = named.statistics.elements - inside
        if rest < _PAGE // 64 or named.statistics.zeros - inside > _DENSE * rest:
            continue  # little is left, or zeros are common in it
        start, length = max(runs, key=lambda run: run[1])
        place = f"{named.path}: {inside:,} of {named.statistics.elements:,} values, from {start:,}"
        if is_table(named) and all(_is_rows(named, *run) for run in runs):
            continue  # rows that were never trained are told as such
        if all(_on_pages(named, *run) for run in runs):
            lost.append(place)
        elif (
            named.is_matrix
            and not all(_is_rows(named, *run) for run in runs)
            and (length * 4 >= named.statistics.elements)
        ):
            odd.append(place)
    for places, paged in ((lost, True), (odd, False)):
        if places:
            yield finding(
                places,
                code="zeros-in-weights",
                severity="warning",
                what=f"a stretch of zeros in {_tensors(len(places))} "
                f"that {'is' if len(places) == 1 else 'are'} dense elsewhere",
                why="it begins and ends at pages of 4,096 bytes of the file: those were never "
                "written, or read back as nothing"
                if paged
                else "it begins or ends in the middle of a row, as no layer is built: a copy or a "
                "loop that filled it stopped early",
                fix="take the file from its source again, or go back to another checkpoint",
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
        yield finding(
            [f"{n.path}: {n.statistics.denormals:,} of {n.statistics.elements:,}" for n in heavy],
            code="weights-denormal",
            severity="warning" if most else "note",
            what=f"many values of {_tensors(len(heavy))} are denormal: too small for their dtype",
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
        yield finding(
            [f"{n.path}: up to {n.statistics.largest:.4g}" for n in wide],
            code="beyond-float16",
            severity="note",
            what=f"values beyond the range of float16 in {_tensors(len(wide))}",
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


def _tensors(count: int) -> str:
    return "1 tensor" if count == 1 else f"{count:,} tensors"


def _starts_at_zero(named: Named) -> bool:
    name = ".".join((*named.owner, named.leaf)).lower()
    return named.statistics.elements < 2 or any(word in name for word in _FRESH_ZERO)


def _alike_everywhere(named: list[Named]) -> set[str]:
    """Patterns of names of which there are several tensors, all of one and the same value."""
    groups: dict[str, list[Named]] = defaultdict(list)
    for one in named:
        groups[one.pattern].append(one)
    return {
        pattern
        for pattern, some in groups.items()
        if len(some) > 1
        and "#" in pattern.split(".")[:-2]  # numbered layers, not the steps of a Sequential
        and len({(n.statistics.low, n.statistics.high) for n in some}) == 1
    }


def _offsets_from_one(named: list[Named]) -> set[str]:
    """Some norms scale by 1 + weight and have no bias: if one such starts at zero, all do."""
    with_bias = {n.owner for n in named if n.leaf == "bias"}
    scales = [
        n for n in named if n.is_weight and len(n.tensor.shape) == 1 and n.owner not in with_bias
    ]
    return {n.pattern for n in scales} if all(n.statistics.all_zero for n in scales) else set()


def _is_filter(named: Named) -> bool:
    """A depthwise convolution with one weight: a box filter."""
    return len(named.tensor.shape) >= 3 and named.tensor.shape[1] == 1


def _on_pages(named: Named, start: int, length: int) -> bool:
    """Whether a run begins and ends at pages of the file, or at the ends of its tensor."""
    if len(named.tensor.pieces) != 1:
        return False
    piece, width = named.tensor.pieces[0], element_bytes(named.tensor)
    if not is_contiguous(piece) or piece.storage.codec != "raw" or piece.storage.inline is not None:
        return False
    first = piece.storage.offset + (piece.offset + start) * width
    last = first + length * width
    # An element that lies across the edge of a page keeps some of its bytes.
    begins = start == 0 or first % _PAGE < width
    ends = start + length == named.statistics.elements or -last % _PAGE < width
    return begins and ends


def _is_rows(named: Named, start: int, length: int) -> bool:
    row = named.statistics.elements // named.tensor.shape[0]
    return start % row == 0 and length % row == 0
