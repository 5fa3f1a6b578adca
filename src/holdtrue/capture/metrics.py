"""The metrics of a save: plain numbers, told from what is none before anything is written."""

from collections.abc import Mapping
from typing import Any, SupportsFloat

import numpy as np
from torch import Tensor

from holdtrue.capture.tensors import TensorSet, tensor_set
from holdtrue.capture.values import ValueEncoder
from holdtrue.findings import Finding


def capture_metrics(metrics: Any) -> tuple[Any, list[Finding]]:
    """The node of the metrics, and what is wrong with them. A tensor or array without dimensions
    is taken as its number."""
    if metrics is None:
        return None, []
    if not isinstance(metrics, Mapping):
        return None, [_no_number("metrics")]
    numbers = {name: _number(value) for name, value in metrics.items()}
    tensors: TensorSet = tensor_set("metrics")
    node = ValueEncoder(tensors).encode(numbers, "")
    odd = [
        f"metrics/{name}"
        for name, value in numbers.items()
        if not isinstance(name, str) or not _fits_a_float(value)
    ]
    odd += [key for key in tensors.records if key not in odd]
    return node, [*tensors.findings, *map(_no_number, odd)]


def _number(value: Any) -> Any:
    if not isinstance(value, Tensor | np.ndarray) or value.ndim:
        return value
    try:
        return value.item()
    except (RuntimeError, ValueError, TypeError, NotImplementedError):  # on the meta device
        return value


def _fits_a_float(value: Any) -> bool:
    """False also for a whole number that is too large: it could not be ranked."""
    if not isinstance(value, SupportsFloat):
        return False
    try:
        float(value)
    except Exception:  # the value's own code
        return False
    return True


def _no_number(where: str) -> Finding:
    return Finding(
        code="metric-not-a-number",
        severity="error",
        where=where,
        what="a metric is a name and one plain number",
        why="it is read again and again to tell which checkpoint is best",
        fix='metrics={"val_loss": float(loss)}',
    )
