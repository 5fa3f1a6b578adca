"""What the values of certain layers show: BatchNorm, LoRA, embeddings."""

from collections.abc import Iterator

from holdtrue.doctor.subjects import Weights
from holdtrue.doctor.tensor_roles import Named, by_owner, is_table, moments_in, weights_in
from holdtrue.findings import Finding, Severity, grouped

_UPDATE_BN = "let them see the training data again: torch.optim.swa_utils.update_bn(loader, model)"
# The factors of adapters that start at zero.
_SECOND_FACTORS = frozenset({"lora_B", "lora_up", "lora_embedding_B", "hada_w2_a", "lokr_w2_b"})
_NEAR_ONE = 0.1  # the mean of scales that are drawn about 1
_PADDING = 1  # rows of zeros that an embedding has for its padding token


def negative_variance(weights: Weights) -> Iterator[Finding]:
    """A running variance below zero: its root is NaN."""
    bad = [n for n in _running(weights, "running_var") if n.statistics.negative]
    if bad:
        yield grouped(
            code="batchnorm-variance",
            severity="error",
            what=f"a running variance is negative in {len(bad)} BatchNorm layer"
            + "s" * (len(bad) > 1),
            places=[
                f"{n.path}: {n.statistics.negative:,} of {n.statistics.elements:,}, "
                f"down to {n.statistics.low:.4g}"
                for n in bad
            ],
            why="in eval mode the layer divides by its root, which is NaN; no training makes it "
            "negative, but averaging, subtracting or quantising states does, and damage",
            fix=f"{_UPDATE_BN}; or take the statistics from another checkpoint",
        )


def zero_variance(weights: Weights) -> Iterator[Finding]:
    """A running variance of zero: the layer's input never changed."""
    bad = [n for n in _running(weights, "running_var") if n.statistics.zeros]
    whole = [n for n in bad if n.statistics.all_zero]
    partly = [n for n in bad if n not in whole]
    graded: list[tuple[list[Named], Severity]] = [(whole, "warning"), (partly, "note")]
    for some, severity in graded:
        if some:
            yield grouped(
                code="batchnorm-variance-zero",
                severity=severity,
                what=f"a running variance is zero in {len(some)} BatchNorm layer"
                + "s" * (len(some) > 1),
                places=[
                    f"{n.path}: {n.statistics.zeros:,} of {n.statistics.elements:,}" for n in some
                ],
                why="in eval mode the layer multiplies by 1/√eps, about 300: its input was "
                "constant in training (a dead channel), or the statistics were zeroed",
                fix=_UPDATE_BN,
                confidence="likely",
            )


def fresh_statistics(weights: Weights) -> Iterator[Finding]:
    """Trained BatchNorm layers whose statistics are those of a fresh one."""
    layers = by_owner(weights_in(weights))
    fresh = [layer for layer in layers.values() if _has_fresh_statistics(layer)]
    trained = [layer for layer in fresh if _is_trained(layer)]
    if trained:
        yield grouped(
            code="batchnorm-untracked",
            severity="warning",
            what=f"{len(trained)} trained BatchNorm layer{'s' * (len(trained) > 1)} "
            f"{'have' if len(trained) > 1 else 'has'} the statistics of a fresh one",
            places=[f"{layer['running_mean'].path}: mean 0, variance 1" for layer in trained],
            why="their weights were trained, but mean 0 and variance 1 are what they start with: "
            "the statistics were not carried along, or the layers only ran in eval mode; "
            "in eval mode they normalise by numbers that have nothing to do with the data",
            fix=_UPDATE_BN,
            confidence="likely",
        )


def lora_without_effect(weights: Weights) -> Iterator[Finding]:
    """Adapters whose second factor is zero: their product adds nothing."""
    named = weights_in(weights)
    second = [n for n in named if n.floating and _factor(n) in _SECOND_FACTORS]
    zero = [n for n in second if n.statistics.all_zero]
    if not zero:
        return
    whole = len(zero) == len(second)
    yield grouped(
        code="lora-without-effect",
        severity="warning" if whole else "note",
        what=f"the adapter does nothing: all {len(zero)} of its second factors are zero"
        if whole
        else f"{len(zero)} of {len(second)} adapted layers are not changed: their second factor "
        "is zero",
        places=[f"{n.path} {list(n.tensor.shape)}" for n in zero],
        why="an adapter starts so, and W + B·A with B = 0 is W: it was saved before its first "
        "step, its parameters were not in the optimizer, or it was made anew before saving",
        fix="check that the trained adapter is the one that is saved, and that the optimizer had "
        "its parameters: [n for n, p in model.named_parameters() if p.requires_grad]",
        confidence="likely" if whole else "certain",
    )


def untrained_rows(weights: Weights) -> Iterator[Finding]:
    """Rows of embeddings that are zero, alike, or never had a gradient."""
    zero, alike = [], []
    for n in weights_in(weights):
        rows = n.statistics.rows
        if rows is None or not is_table(n) or n.statistics.constant:
            continue
        if rows.zero > _PADDING:
            zero.append(f"{n.path}: {rows.zero:,} of {rows.count:,}, {rows.first} to {rows.last}")
        if rows.repeated > 1:
            alike.append(f"{n.path}: {rows.repeated:,} of {rows.count:,}")
    unmoved = [
        f"{n.path}: {n.statistics.rows.zero:,} of {n.statistics.rows.count:,}"
        for n in moments_in(weights)
        if n.leaf == "exp_avg_sq"
        and n.statistics.rows is not None
        and is_table(n)
        and _PADDING < n.statistics.rows.zero < n.statistics.rows.count
    ]
    told = {
        "they are zero": (zero, "they were added as zeros, or are padding of the vocabulary"),
        "they are equal to the row before": (alike, "they were added with one start value"),
        "the optimizer saw no gradient for them": (unmoved, "no batch held their tokens"),
    }
    for what, (places, why) in told.items():
        if places:
            yield grouped(
                code="embedding-rows-untrained",
                severity="note",
                what=f"rows of an embedding were never trained: {what}",
                places=places,
                why=f"{why}; such a token means nothing to the model",
                fix="check that the tokenizer does not use these rows, or train them",
                confidence="likely",
            )


def _running(weights: Weights, leaf: str) -> list[Named]:
    return [n for n in weights_in(weights) if n.leaf == leaf and n.floating]


def _has_fresh_statistics(layer: dict[str, Named]) -> bool:
    mean, variance = layer.get("running_mean"), layer.get("running_var")
    if mean is None or variance is None:
        return False
    held = variance.statistics
    return mean.statistics.all_zero and held.constant and held.low == 1


def _is_trained(layer: dict[str, Named]) -> bool:
    """Whether its own weight and bias have left what they start from: 1, or near it, and 0."""
    weight, bias, seen = (layer.get(leaf) for leaf in ("weight", "bias", "num_batches_tracked"))
    if bias is not None and not bias.statistics.constant:
        return True
    if weight is None or weight.statistics.constant:
        return False
    counted = seen is None or not seen.statistics.all_zero
    return counted or abs((weight.statistics.mean or 0) - 1) > _NEAR_ONE


def _factor(named: Named) -> str:
    """The name of the factor, wherever in the tensor's name it stands."""
    words = (*named.owner[-3:], named.leaf)
    return next((word for word in reversed(words) if word in _SECOND_FACTORS), "")
