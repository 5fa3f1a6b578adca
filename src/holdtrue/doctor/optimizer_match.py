"""Which saved optimizer a live one is to go on from, and which parameters are which."""

from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from holdtrue.doctor.live_training import LiveModel, LiveOptimizer, LiveTraining
from holdtrue.doctor.optimizer_states import SavedOptimizer, Shape, shapes_by_group, shapes_in_order
from holdtrue.doctor.parameter_order import assign, parameters, saved_names
from holdtrue.doctor.state_dicts import StateDict
from holdtrue.doctor.training_state import SavedTraining

_WRAPPERS = ("module.", "_orig_mod.", "_forward_module.", "_fsdp_wrapped_module.")


class Matched(Struct, frozen=True, kw_only=True, eq=False):
    """A live optimizer beside the saved one that it is to go on from."""

    live: LiveOptimizer
    saved: SavedOptimizer
    shapes: list[Shape | None]  # of the saved parameters, in their order
    names: list[str | None]  # of the saved parameters, as the model here calls them
    told: bool  # the file itself says the names; else they follow from order and shapes

    @property
    def sizes(self) -> tuple[list[int], list[int]]:
        """Parameters of each group: saved, here."""
        return (
            [len(group.params) for group in self.saved.groups],
            [len(group.parameters) for group in self.live.groups],
        )

    @property
    def wrong_shapes(self) -> list[int]:
        """Positions at which the moments have another shape than the parameter here."""
        return [
            i
            for i, (shape, here) in enumerate(zip(self.shapes, self.live.parameters, strict=False))
            if shape is not None and here.shape is not None and shape != here.shape
        ]


def pair(targets: Sequence[str], paths: Sequence[str]) -> dict[str, int]:
    """target → position of the saved thing: by name, by the words in it, then in order."""
    found: dict[str, int] = {}
    left = list(range(len(paths)))
    for fits in (_same_name, _names_in_common):
        for target in targets:
            if target not in found:
                near = [i for i in left if fits(target, paths[i])]
                if len(near) == 1:
                    found[target] = near[0]
                    left.remove(near[0])
    rest = [target for target in targets if target not in found]
    return found | dict(zip(rest, left, strict=False))


def _same_name(target: str, path: str) -> bool:
    return path.rpartition("/")[2] == target


def _names_in_common(target: str, path: str) -> bool:
    return target in path


def matched(saved: SavedTraining, live: LiveTraining) -> list[Matched]:
    """Each live optimizer with its saved one; those without one are left out."""
    paths = [optimizer.path for optimizer in saved.optimizers]
    places = pair([optimizer.target for optimizer in live.optimizers], paths)
    return [
        _match(optimizer, saved.optimizers[places[optimizer.target]], saved, live)
        for optimizer in live.optimizers
        if optimizer.target in places
    ]


def _match(
    live: LiveOptimizer, saved: SavedOptimizer, training: SavedTraining, facts: LiveTraining
) -> Matched:
    names, told = resolve_names(saved, training.models, facts.models)
    return Matched(live=live, saved=saved, shapes=shapes_in_order(saved), names=names, told=told)


def resolve_names(
    saved: SavedOptimizer, models: Sequence[StateDict], here: Sequence[LiveModel]
) -> tuple[list[str | None], bool]:
    """The saved parameters' names in the models here, and whether the file itself says them."""
    known = {name for model in here for name in model.shapes}
    if saved.names is not None:
        return [_clean(name, known) for name in saved.names], True
    for state in models:
        named = [(_clean(n, known), shape) for n, shape in parameters(state)]
        if known and sum(n in known for n, _ in named) * 2 < len(named):
            continue
        # Buffers look like parameters in a state dict; the model here knows better.
        own = [(n, s) for n, s in named if n in known] if known else named
        if len(own) == len(saved.params):
            found = assign(shapes_by_group(saved), own)
            if found is not None:
                return found, False
    if len(models) == 1:
        found = [None if n is None else _clean(n, known) for n in saved_names(saved, models[0])]
        if any(found):
            return found, False
    if len(here) == 1 and not models:
        shapes = [(n, s) for n, s in here[0].shapes.items() if s is not None]
        return assign(shapes_by_group(saved), shapes) or [None] * len(saved.params), False
    return [None] * len(saved.params), False


def _clean(name: str, known: set[str]) -> str:
    """The name without wrappers' prefixes, where the models here know it so."""
    if name in known:
        return name
    short = name
    for prefix in _WRAPPERS:
        short = short.replace(prefix, "")
    if short in known:
        return short
    inner = short.partition(".")[2]
    return inner if inner in known else short


def plain_settings(value: Any) -> bool:
    """True for what can be shown side by side."""
    if isinstance(value, tuple | list):
        return all(map(plain_settings, value))
    return value is None or isinstance(value, bool | int | float | str)


def alike(saved: Any, here: Any) -> bool:
    """Equal, whether tuple or list; true as well where they cannot be compared."""
    if isinstance(saved, tuple | list) and isinstance(here, tuple | list):
        return len(saved) == len(here) and all(map(alike, saved, here))
    if not plain_settings(saved) or not plain_settings(here):
        return True
    return bool(saved == here)
