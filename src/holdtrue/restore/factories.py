"""The live objects that a file is compared with: given, or made by what the caller names."""

import inspect
import traceback
from typing import Any

import torch
from torch import nn

from holdtrue.errors import HoldtrueError, fail
from holdtrue.findings import Finding
from holdtrue.records.trust import class_name


class ModelUnavailableError(HoldtrueError):
    """There is no model to compare with."""

    exit_code = 2


def module_of(part: str, given: Any) -> nn.Module:
    """The module, or what the factory makes: without memory where it can be made so.

    Raises ModelUnavailableError where it raises, or makes something else.
    """
    if isinstance(given, nn.Module):
        return given
    if not callable(given):
        raise fail(ModelUnavailableError, part, _no_module(part, given, given))
    try:
        # A model larger than memory is only compared, never filled.
        with torch.device("meta"):
            made = given()
        if isinstance(made, nn.Module):
            return made
    except Exception:  # the factory's own code, which may need real values
        made = None
    try:
        made = given()
    except Exception as error:
        raise fail(ModelUnavailableError, part, _raised(part, given, error)) from error
    if not isinstance(made, nn.Module):
        raise fail(ModelUnavailableError, part, _no_module(part, given, made))
    return made


def _raised(part: str, factory: Any, error: Exception) -> Finding:
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if f.filename != __file__]
    at = f", at {own[-1].filename}:{own[-1].lineno}" if own else ""
    needs = ""
    if isinstance(error, TypeError) and not own:
        needs = f"; it takes {_signature(factory)}, and is called without arguments"
    return Finding(
        code="model-unavailable",
        severity="error",
        where=part,
        what=f"the model could not be made: {_name(factory)} raised {type(error).__name__}",
        why=f"{str(error)[:500]}{at}{needs}",
        fix="name a function without arguments that returns the model: "
        "def make(): return Net(classes=10)",
    )


def _no_module(part: str, factory: Any, made: Any) -> Finding:
    gave = "is" if factory is made else "returned"
    return Finding(
        code="model-unavailable",
        severity="error",
        where=part,
        what=f"{_name(factory)} {gave} no torch.nn.Module",
        why="the file is compared with the parameters and buffers of a module",
        fix="give a module, or a function without arguments that returns one",
        saved=None,
        expected=class_name(type(made)),
    )


def _name(factory: Any) -> str:
    name = getattr(factory, "__qualname__", None)
    return name if isinstance(name, str) else f"a {class_name(type(factory))}"


def _signature(factory: Any) -> str:
    try:
        return str(inspect.signature(factory))
    except (TypeError, ValueError):
        return "arguments"
