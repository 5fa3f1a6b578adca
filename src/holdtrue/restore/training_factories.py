"""The optimizer and the scheduler that a file is compared with, made for a model where named."""

import inspect
import traceback
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch.optim import Optimizer

from holdtrue.findings import Finding
from holdtrue.records.trust import class_name


def made_training(
    targets: Mapping[str, Any], models: Mapping[str, Any]
) -> tuple[dict[str, Any], list[Finding]]:
    """The objects among the targets, made where a function is given; and why some could not be.

    The function gets the model, and returns an optimizer, or an optimizer and its scheduler.
    """
    made: dict[str, Any] = {}
    findings: list[Finding] = []
    for name, given in targets.items():
        if not _is_factory(given):
            made[name] = given
            continue
        if not models:
            findings.append(_no_model(name))
            continue
        try:
            result = given(next(iter(models.values())))
        except Exception as error:  # the function's own code
            findings.append(_raised(name, given, error))
            continue
        optimizer, scheduler = result if _is_pair(result) else (result, None)
        if name != "optimizer" or isinstance(optimizer, Optimizer):
            made[name] = optimizer
            if scheduler is not None:
                made["scheduler"] = scheduler
        else:
            findings.append(_no_optimizer(name, given, result))
    return made, findings


def _is_factory(given: Any) -> bool:
    made_by_class = inspect.isclass(given)
    return made_by_class or inspect.isroutine(given) or isinstance(given, partial)


def _is_pair(result: Any) -> bool:
    return isinstance(result, tuple | list) and len(result) == 2


def _no_model(name: str) -> Finding:
    return Finding(
        code="optimizer-unavailable",
        severity="error",
        where=name,
        what=f"{name!r} is made by a function of the model, and there is no model",
        why="an optimizer is built from the parameters of a model",
        fix="name the model as well: --model package.module:factory",
    )


def _raised(name: str, factory: Any, error: Exception) -> Finding:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
    at = f", at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return Finding(
        code="optimizer-unavailable",
        severity="error",
        where=name,
        what=f"{name!r} could not be made: {_name(factory)} raised {type(error).__name__}",
        why=f"{str(error)[:500]}{at}",
        fix="name a function that takes the model: "
        "def make(model): return torch.optim.AdamW(model.parameters(), 1e-3)",
    )


def _no_optimizer(name: str, factory: Any, result: Any) -> Finding:
    return Finding(
        code="optimizer-unavailable",
        severity="error",
        where=name,
        what=f"{_name(factory)} returned no optimizer",
        why="the file is compared with a torch.optim.Optimizer, or with an optimizer and its "
        "scheduler",
        fix="return the optimizer, or (optimizer, scheduler)",
        expected=class_name(type(result)),
    )


def _name(factory: Any) -> str:
    return str(getattr(factory, "__qualname__", class_name(type(factory))))
