"""A whole pickled model built again without unpickling: trusted classes only, nothing else called.

What unpickling would do for a module is done here by hand: an empty instance, and its state set.
"""

from enum import Enum
from typing import Any

from torch import nn

from holdtrue.errors import RestoreError, fail
from holdtrue.findings import Finding, report
from holdtrue.formats.module_tree import is_module
from holdtrue.formats.tree_map import map_tensors
from holdtrue.records.inert import NamedReference
from holdtrue.records.recipe import Need
from holdtrue.records.trust import Trust, find_imported
from holdtrue.restore.resolving import Resolved, resolve
from holdtrue.restore.storages import Storages, torch_value


def build_foreign(part: str, tree: Any, agreed: Trust, subject: str) -> nn.Module:
    """The module of a file of another format. Raises RestoreError saying why not."""
    where = f"{subject}: {part}"
    if not is_module(tree):
        raise fail(RestoreError, where, _weights_only(where))
    resolved = resolve(_needs(tree, where), agreed, where)
    if resolved.findings:
        raise RestoreError(report(where, resolved.findings))
    reviving = _Reviving(resolved)
    try:
        made = map_tensors(tree, Storages(where, agreed), where, reviving)
    except RestoreError:
        raise
    except Exception as error:  # __setstate__ of the trusted classes
        if type(error).__module__.startswith("holdtrue."):
            raise
        raise fail(
            RestoreError, where, _refused(where, f"{type(error).__name__}: {error}")
        ) from error
    if reviving.left or not isinstance(made, nn.Module):
        raise fail(RestoreError, where, _refused(where, "it holds " + ", ".join(reviving.left)))
    return made


def _needs(tree: Any, where: str) -> dict[str, Need]:
    found: dict[str, Need] = {}

    def note(inert: Any) -> Any:
        if torch_value(inert) is not inert:
            return inert
        if isinstance(inert, NamedReference):
            thing = find_imported(inert.name)
            found.setdefault(inert.name, "class" if issubclass(type(thing), type) else "function")
        else:
            found[inert.class_name] = "module" if is_module(inert) else "object"
        return inert

    map_tensors(tree, lambda lazy: lazy, where, note)
    return found


class _Reviving:
    """Makes something of what is inert; gathers what nothing can be made of."""

    def __init__(self, resolved: Resolved) -> None:
        self.resolved = resolved
        self.left: list[str] = []

    def __call__(self, inert: Any) -> Any:
        value = torch_value(inert)
        if value is not inert:
            return value
        if isinstance(inert, NamedReference):
            known: dict[str, Any] = {**self.resolved.classes, **self.resolved.functions}
            return known[inert.name]
        cls: Any = self.resolved.classes.get(inert.class_name)
        if cls is None:
            return inert
        if is_module(inert):
            made = cls.__new__(cls)
            made.__setstate__(inert.state)
            return made
        if issubclass(cls, Enum) and len(inert.args) == 1:
            return cls(inert.args[0])
        if issubclass(cls, tuple) and len(getattr(cls, "_fields", ())) == len(inert.args):
            return tuple.__new__(cls, inert.args)
        if inert.args or inert.kwargs or inert.items is not None:
            self.left.append(f"a {inert.class_name} that only its own code can build")
            return inert
        made = cls.__new__(cls)
        if isinstance(inert.state, dict) and hasattr(made, "__dict__"):
            vars(made).update(inert.state)
        elif inert.state is not None:
            self.left.append(f"a {inert.class_name} that only its own code can fill")
        return made


def _weights_only(where: str) -> Finding:
    return Finding(
        code="not-rebuildable",
        severity="error",
        where=where,
        what="the file holds weights, and does not say of which architecture",
        why="a state dict has names and shapes; the code that made them is not in it",
        fix="build the model in your own code, then ck.restore(model=model)",
    )


def _refused(where: str, why: str) -> Finding:
    return Finding(
        code="not-rebuildable",
        severity="error",
        where=where,
        what="this pickled model cannot be built without running the pickle",
        why=why[:500],
        fix="build the model in your own code, then ck.restore(model=model)",
    )
