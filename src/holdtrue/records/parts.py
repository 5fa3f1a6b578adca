"""What the state of a module part and of an optimizer part looks like in the manifest."""

from typing import Any

from msgspec import Struct, field


class CustomState(Struct, frozen=True):
    """Entries that a module writes by a `_save_to_state_dict` of its own, as value nodes."""

    version: int | None
    entries: dict[str, Any]


class ModuleState(Struct, frozen=True, omit_defaults=True):
    """The state of a module part. Keys of the maps are module paths, "" for the root."""

    entries: dict[str, str] = field(default_factory=dict)  # name → tensor key, in module order
    training: dict[str, bool] = field(default_factory=dict)  # only where it differs from the parent
    extra: dict[str, Any] = field(default_factory=dict)  # get_extra_state()
    custom: dict[str, CustomState] = field(default_factory=dict)
    getstate: dict[str, Any] = field(default_factory=dict)  # __getstate__() of user classes
    gradients: dict[str, str] | None = None  # parameter name → tensor key; None: not asked for


class GroupState(Struct, frozen=True):
    params: list[str]  # names: "model/conv.weight", or "#3" for a tensor that no part holds
    settings: Any  # value node: lr, betas, …


class OptimizerState(Struct, frozen=True, omit_defaults=True):
    groups: list[GroupState]
    state: dict[str, Any] = field(default_factory=dict)  # parameter name → value node
    shared: Any = None  # value node of what belongs to no parameter
    shapes: dict[str, list[int]] = field(default_factory=dict)
    dtypes: dict[str, str] = field(default_factory=dict)
