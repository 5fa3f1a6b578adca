"""What kind of checkpoint a tree is, by its shape: a state dict, a model, a Lightning file."""

from typing import Any

from holdtrue.formats.module_tree import is_module
from holdtrue.formats.tree_walk import name_of
from holdtrue.formats.view import LazyTensor
from holdtrue.records.inert import NamedReference, Record

_LIGHTNING = "pytorch-lightning_version"
_SHOWN = 200


def describe_tree(tree: Any) -> dict[str, Any]:
    """`kind`, and for a Lightning checkpoint what Lightning says of itself."""
    about: dict[str, Any] = {"kind": kind_of(tree)}
    if isinstance(tree, dict) and _LIGHTNING in tree:
        about["lightning"] = _lightning(tree)
    return about


def kind_of(tree: Any) -> str:
    """A stable name for the shape of a tree."""
    if isinstance(tree, LazyTensor):
        return "storage" if (tree.class_name or "").endswith("Storage") else "tensor"
    if is_module(tree):
        return "module"
    if isinstance(tree, Record):
        return "object"
    if not isinstance(tree, dict):
        return type(tree).__name__
    if _LIGHTNING in tree:
        return "lightning"
    values = list(tree.values())
    if values and all(isinstance(value, LazyTensor) for value in values):
        return "state-dict"
    if set(tree) == {"state", "param_groups"}:
        return "optimizer"
    return "checkpoint"


def _lightning(tree: dict[Any, Any]) -> dict[str, Any]:
    said: dict[str, Any] = {"version": _short(tree[_LIGHTNING])}
    for name in ("epoch", "global_step", "hparams_name", "hyper_parameters_name"):
        if name in tree:
            said[name] = _short(tree[name])
    for name in ("callbacks", "loops", "hyper_parameters", "datamodule_hyper_parameters"):
        part = tree.get(name)
        if isinstance(part, dict):
            said[name] = [name_of(key) for key in list(part)[:_SHOWN]]
    for name in ("optimizer_states", "lr_schedulers"):
        if isinstance(tree.get(name), list):
            said[name] = len(tree[name])
    said["weights_only"] = "optimizer_states" not in tree
    return said


def _short(value: Any) -> Any:
    """A plain value fit for `about`."""
    if isinstance(value, str):
        return value[:_SHOWN]
    if isinstance(value, (bool, float, type(None))):
        return value
    if isinstance(value, int):
        return value if value.bit_length() <= 64 else "0x…"
    if isinstance(value, NamedReference):
        return value.name[:_SHOWN]
    return f"<{type(value).__name__}>"
