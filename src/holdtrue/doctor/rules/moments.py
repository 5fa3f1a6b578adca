"""What an optimizer's state shows: moments that cannot be."""

from collections.abc import Iterator
from typing import Any

from holdtrue.doctor.subjects import Weights
from holdtrue.doctor.tensor_roles import by_owner, moments_in, optimizer_paths
from holdtrue.findings import Finding, grouped

# Sums and averages of squares: never below zero.
_SQUARES = frozenset({"exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum", "exp_avg_sq_row",
                      "exp_avg_sq_col", "exp_inf", "acc_delta"})  # fmt: skip
_AVERAGES = frozenset({"exp_avg", "momentum_buffer", "grad_avg"})
_EXPLODED = 1e12
_UNDERFLOW = 1e-15  # a gradient above this has a square that float32 can hold


def moments_not_finite(weights: Weights) -> Iterator[Finding]:
    """NaN or infinity in what the optimizer keeps."""
    moments = moments_in(weights)
    bad = [n for n in moments if n.floating and n.statistics.first_bad is not None]
    if bad:
        yield _of_moments(
            weights,
            [
                f"{n.path}{list(n.statistics.first_bad or ())}: "
                f"{n.statistics.nan + n.statistics.infinite:,} of {n.statistics.elements:,}"
                for n in bad
            ],
            code="moments-not-finite",
            severity="error",
            what=f"{len(bad)} of {len(moments)} tensors of the optimizer hold NaN or infinity",
            why="a gradient was NaN or infinite and the step was not skipped; an average never "
            "forgets it, so that the next step makes the weights NaN too",
        )


def negative_squares(weights: Weights) -> Iterator[Finding]:
    """An average of squares below zero."""
    bad = [n for n in moments_in(weights) if n.leaf in _SQUARES and n.statistics.negative]
    if bad:
        yield _of_moments(
            weights,
            [
                f"{n.path}: {n.statistics.negative:,} of {n.statistics.elements:,}, "
                f"down to {n.statistics.low:.4g}"
                for n in bad
            ],
            code="moments-negative",
            severity="error",
            what=f"an average of squared gradients is negative in {len(bad)} tensor"
            + "s" * (len(bad) > 1),
            why="squares are not negative: the state belongs to another optimizer, was averaged or "
            "quantised, or is damaged; the next step takes its root, which is NaN",
        )


def exploded(weights: Weights) -> Iterator[Finding]:
    """Moments of a size that only exploding gradients give."""
    bad = [
        n
        for n in moments_in(weights)
        if n.floating and n.leaf != "step" and n.statistics.largest > _EXPLODED
    ]
    if bad:
        yield _of_moments(
            weights,
            [f"{n.path}: up to {n.statistics.largest:.3g}" for n in bad],
            code="moments-exploded",
            severity="warning",
            what=f"averages of gradients have exploded in {len(bad)} tensor" + "s" * (len(bad) > 1),
            why="gradients beyond all measure went into them; the second moment stays so large for "
            "thousands of steps, in which these parameters hardly move",
        )


def second_moment_lost(weights: Weights) -> Iterator[Finding]:
    """Gradients on average, but none squared: the next step is divided by eps."""
    bad = [
        state["exp_avg_sq"]
        for state in by_owner(moments_in(weights)).values()
        if "exp_avg_sq" in state
        and "exp_avg" in state
        and state["exp_avg_sq"].statistics.all_zero
        and state["exp_avg"].statistics.largest > _UNDERFLOW
    ]
    if bad:
        yield _of_moments(
            weights,
            [n.path for n in bad],
            code="moments-inconsistent",
            severity="warning",
            what=f"the second moment is zero where the first is not, in {len(bad)} tensor"
            + "s" * (len(bad) > 1),
            why="both come from the same gradients: one was zeroed or lost; the next step is "
            "divided by eps and throws the weights far off",
        )


def no_gradients(weights: Weights) -> Iterator[Finding]:
    """Steps were taken, and nothing came of them."""
    states = by_owner(moments_in(weights)).values()
    averages = [n for state in states for n in state.values() if n.leaf in _AVERAGES]
    zero = [n for n in averages if n.statistics.all_zero]
    if zero and any(count > 0 for count in _steps(weights).values()):
        whole = len(zero) == len(averages)
        yield grouped(
            code="gradients-zero",
            severity="warning" if whole and len(zero) > 1 else "note",
            what=f"the gradients of {len(zero)} of {len(averages)} parameters were zero",
            places=[n.path for n in zero],
            why="steps were taken with them, and their average is zero: nothing that the loss "
            "depends on goes through these parameters"
            + (", or the moments were zeroed" if whole else ""),
            fix="check that the loss reaches them: p.grad after backward(), detach(), dead ReLUs",
            confidence="likely",
        )


def _steps(weights: Weights) -> dict[str, float]:
    """The step of each parameter, a tensor or a plain number; optimizer and parameter as key."""
    found: dict[str, float] = {}
    optimizers = optimizer_paths(weights.view)
    for path, states in optimizers.items():
        for parameter, state in states.items():
            step = state.get("step") if isinstance(state, dict) else None
            if isinstance(step, int | float) and not isinstance(step, bool):
                found[f"{path}\0{parameter}"] = float(step)
    for n in moments_in(weights):
        if n.leaf == "step" and n.statistics.elements == 1:
            optimizer = next((path for path in optimizers if n.path.startswith(path)), "")
            parameter = n.path[len(optimizer) :].rpartition("/")[0].lstrip("/")
            found[f"{optimizer}\0{parameter}"] = float(n.statistics.low or 0)
    return found


def _of_moments(weights: Weights, places: list[str], **fields: Any) -> Finding:
    return grouped(
        places=places,
        fix="restore the model alone and begin with a fresh optimizer, or go back to a checkpoint "
        "from before it",
        command=f"holdtrue.open({weights.view.path!r}).restore(model=model)",
        **fields,
    )
