"""What weights that are zero, or all equal, show: layers never filled, pages lost."""

from collections import defaultdict
from collections.abc import Iterator

from holdtrue.doctor.amounts import counted
from holdtrue.doctor.subjects import Weights
from holdtrue.doctor.tensor_roles import (
    Named,
    by_owner,
    earlier_checkpoint,
    is_mask,
    is_table,
    weights_in,
)
from holdtrue.findings import Finding, grouped
from holdtrue.formats.pieces import is_contiguous
from holdtrue.formats.tensor_bytes import element_bytes

_PAGE = 4096
_DENSE = 0.01  # of a damaged tensor's other values, at most so many are zero
_REST = 64  # elements beside the zeros; of fewer nothing can be said
_STRETCHES = {
    "pages": "it begins and ends at pages of 4,096 bytes of the file: those were never written, or "
    "read back as nothing",
    "cut": "it begins or ends in the middle of a row, as no layer is built: a copy or a loop that "
    "filled it stopped early",
    "rows": "rows that follow one another are zero: never filled, added for new classes, or pruned",
}
_SMALL = 16  # elements; of fewer, all being alike says nothing
_FRESH_ZERO = ("lora_b", "lora_up", "hada_w2", "lokr_w2", "adaln", "zero_conv", "zero_module",
               "controlnet", "gate", "offset", "pos_emb", "position", "prompt",
               "modulation")  # fmt: skip


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
            yield grouped(
                code="weights-all-zero",
                severity="note" if meant else "warning",
                what=f"{counted(len(some), 'tensor')} of weights "
                f"{'is' if len(some) == 1 else 'are'} all zero",
                places=[f"{n.path} {list(n.tensor.shape)}" for n in some],
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
    floating = [n for n in weights_in(weights) if n.floating]
    named, layers = [n for n in floating if n.is_weight and n.is_matrix], by_owner(floating)
    held = [
        n
        for n in named
        if n.statistics.constant
        and n.statistics.zeros == 0
        and n.statistics.elements >= _SMALL
        and not _is_fresh_norm(n, layers[n.owner].get("bias"))
    ]
    by_design = _alike_everywhere(named)
    for meant in (False, True):
        some = [n for n in held if (n.pattern in by_design or _is_filter(n)) == meant]
        if some:
            yield grouped(
                code="weights-constant",
                severity="note" if meant else "warning",
                what=f"all values are equal in {counted(len(some), 'tensor')} of weights",
                places=[f"{n.path} {list(n.tensor.shape)}: {n.statistics.low:.4g}" for n in some],
                why="all its outputs are equal, and stay equal when it is trained: it was filled "
                "with one number and never initialised or loaded",
                fix="take these tensors from another checkpoint, or initialise them",
                command=earlier_checkpoint(weights.view),
                confidence="hint" if meant else "likely",
            )


def lost_pages(weights: Weights) -> Iterator[Finding]:
    """A stretch of zeros in a tensor that is dense elsewhere, as damage leaves it."""
    stretches: dict[str, list[str]] = defaultdict(list)
    for named in weights_in(weights):
        if named.floating and not is_mask(named) and not named.statistics.all_zero:
            kind = _kind_of_stretch(named)
            inside = sum(length for _, length in named.statistics.zero_runs)
            if kind:
                start = max(named.statistics.zero_runs, key=lambda run: run[1])[0]
                stretches[kind].append(
                    f"{named.path}: {inside:,} of {named.statistics.elements:,} values, "
                    f"from {start:,}"
                )
    for kind, places in stretches.items():
        yield grouped(
            code="zeros-in-weights",
            severity="note" if kind == "rows" else "warning",
            what=f"a stretch of zeros in {counted(len(places), 'tensor')} "
            f"that {'is' if len(places) == 1 else 'are'} dense elsewhere",
            places=places,
            why=_STRETCHES[kind],
            fix="take the file from its source again, or go back to another checkpoint",
            command=earlier_checkpoint(weights.view),
            confidence="hint" if kind == "rows" else "likely",
        )


def _kind_of_stretch(named: Named) -> str:
    """Whether zeros end at pages of the file, within a row or at rows; "" for none to speak of."""
    held, runs = named.statistics, named.statistics.zero_runs
    inside = sum(length for _, length in runs)
    rest = held.elements - inside
    if not runs or rest < _REST or held.zeros - inside > _DENSE * rest:
        return ""  # little is left, or zeros are common in it
    whole_rows = named.is_matrix and all(_is_rows(named, *run) for run in runs)
    if whole_rows and is_table(named):
        return ""  # rows that were never trained are told as such
    if all(_on_pages(named, *run) for run in runs):
        return "pages"
    if not named.is_matrix or max(length for _, length in runs) * 4 < held.elements:
        return ""
    return "rows" if whole_rows else "cut"


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


def _is_fresh_norm(named: Named, bias: Named | None) -> bool:
    """Norms over several axes start with scales of 1 that look like a matrix."""
    alike = bias is not None and bias.tensor.shape == named.tensor.shape
    return named.statistics.low == 1 and (alike or "norm" in ".".join(named.owner).lower())


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
