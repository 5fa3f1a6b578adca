"""Which live classes and functions a recipe may use: audited as names before any is called."""

import sys
import types
from collections.abc import Mapping
from typing import Any

from msgspec import Struct, field
from torch import nn
from torch.nn import functional

from holdtrue.findings import Finding, several
from holdtrue.records.recipe import TORCH_FUNCTIONS, Need
from holdtrue.records.trust import Trust, class_name, covers, find_class, find_imported

_LAYERS = Trust(packages=("torch.nn",))
_CONFIGS = frozenset(
    f"transformers.configuration_utils.{n}" for n in ("PretrainedConfig", "PreTrainedConfig")
)


class Resolved(Struct, frozen=True):
    """Everything a recipe names, found; or why not."""

    classes: dict[str, type] = field(default_factory=dict)
    functions: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


def resolve(needs: Mapping[str, Need], agreed: Trust, where: str) -> Resolved:
    """Look every name up among what is imported and trusted. Nothing is imported or called."""
    found = Resolved()
    untrusted: list[str] = []
    absent: list[str] = []
    for name, need in needs.items():
        thing = _function(name, agreed) if need == "function" else _class(name, need, agreed)
        if thing is None:
            (untrusted if _is_imported(name) else absent).append(name)
        elif need == "function":
            found.functions[name] = thing
        elif _fits(thing, need):
            found.classes[name] = thing
        else:
            found.findings.append(_wrong_kind(where, name, need))
    if untrusted:
        found.findings.append(_not_trusted(where, untrusted))
    if absent:
        found.findings.append(_not_imported(where, absent))
    return found


def _class(name: str, need: Need, agreed: Trust) -> type | None:
    cls = find_class(name, agreed)
    if cls is None and need in ("module", "class"):
        layer = find_class(name, _LAYERS)
        return layer if layer is not None and issubclass(layer, nn.Module) else None
    return cls


def _function(name: str, agreed: Trust) -> Any:
    found = find_imported(name)
    if type(found) not in (types.FunctionType, types.BuiltinFunctionType):
        return None
    space, _, short = name.rpartition(".")
    if space == "torch._C._nn":  # how pickles call torch.nn.functional.gelu and its like
        return found if vars(functional).get(short) is found else None
    if name in TORCH_FUNCTIONS:
        return found
    if space == functional.__name__ and not short.startswith("_"):
        home = found.__module__ or ""
        return found if home in (functional.__name__, "torch._C._nn", "torch._C", "") else None
    # A name that a trusted module merely imported (`from os import system`) is not of that module.
    return found if covers(agreed, name) and class_name(found) == name else None


def _fits(thing: type, need: Need) -> bool:
    if need == "module":
        return issubclass(thing, nn.Module)
    if need == "config":
        return any(class_name(c) in _CONFIGS for c in type.__dict__["__mro__"].__get__(thing))
    return True


def _is_imported(name: str) -> bool:
    return name.startswith("builtins.") or find_imported(name) is not None


def _wrong_kind(where: str, name: str, need: Need) -> Finding:
    wanted = "a torch.nn.Module" if need == "module" else "a transformers configuration"
    return Finding(
        code="class-not-a-module",
        severity="error",
        where=where,
        what=f"{name} is not {wanted}, so it is not called",
        why="a recipe names it as one; holdtrue writes no such recipe, so the file was altered or "
        "the class has become another",
        fix="build the model in your own code, then ck.restore(model=model)",
    )


def _not_trusted(where: str, names: list[str]) -> Finding:
    short = ", ".join(dict.fromkeys(n.rpartition(".")[2] for n in names))
    packages = ", ".join(repr(p) for p in dict.fromkeys(n.partition(".")[0] for n in names))
    return Finding(
        code="class-not-trusted",
        severity="error",
        where=where,
        what="the recipe names what nobody agreed to build: " + ", ".join(names),
        why="a file alone never makes holdtrue call anything but torch's own layers",
        fix=f"if you know them: ck.build(..., trust=[{short}]), or by package: trust=[{packages}]",
        places=several(names),
    )


def _not_imported(where: str, names: list[str]) -> Finding:
    modules = dict.fromkeys(_module_of(n) for n in names)
    return Finding(
        code="class-missing",
        severity="error",
        where=where,
        what="the recipe needs what is not imported here: " + ", ".join(names),
        why="a file never makes holdtrue import anything",
        fix=f"import {', '.join(modules)} first; where the code is lost, `holdtrue inspect "
        "--source` shows the text that was kept",
        places=several(names),
    )


def _module_of(name: str) -> str:
    parts = name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        if ".".join(parts[:cut]) in sys.modules:
            break
    lower = [p for p in parts[:-1] if not p[:1].isupper() and p != "<locals>"]
    return ".".join(lower) or parts[0]
