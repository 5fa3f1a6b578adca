"""Which parameters an optimizer state belongs to, told by the order and the shapes.

torch numbers parameters in the order in which the optimizer was given them, which is mostly that
of the model within each group. So the shapes of a group's moments have to be found, in order, among
those of the model; in which order the groups come says nothing.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

from holdtrue.doctor.keeping import memory_of
from holdtrue.doctor.optimizer_states import (
    SavedOptimizer,
    Shape,
    shapes_by_group,
    shapes_in_order,
)
from holdtrue.doctor.state_dicts import StateDict
from holdtrue.formats.pickle_tensors import is_storage
from holdtrue.records.dtypes import DTYPES

_BUFFERS = frozenset({
    "running_mean", "running_var", "num_batches_tracked", "position_ids", "inv_freq", "attn_mask",
    "relative_position_index", "token_type_ids", "n_averaged",
})  # fmt: skip

Named = tuple[str, Shape]

_PLACES = 20_000  # places that are looked at to tell groups apart; more are too alike to be told


def parameters(state: StateDict) -> list[Named]:
    """Names and shapes of what is likely a parameter, in order; tied ones once."""
    seen: set[object] = set()
    found: list[Named] = []
    for name, tensor in state.names.items():
        if is_storage(tensor) or name.rpartition(".")[2] in _BUFFERS:
            continue
        if tensor.dtype in DTYPES and not tensor.dtype.startswith(("float", "bfloat", "complex")):
            continue
        memory = memory_of(tensor) if tensor.pieces else name
        if memory not in seen:
            seen.add(memory)
            found.append((name, tensor.shape))
    return found


def assign(
    groups: Sequence[Sequence[Shape | None]], named: Sequence[Named]
) -> list[str | None] | None:
    """The name for each shape of each group, one group after the other.

    None where the groups do not come out of the named ones. A name is None where several would do.
    """
    filled = [group for group in groups if group]
    found = embed(filled[0], named) if len(filled) == 1 else _deal(filled, named)
    return _by_shape([shape for group in filled for shape in group], named) or found


def _by_shape(shapes: Sequence[Shape | None], named: Sequence[Named]) -> list[str | None] | None:
    """Names by shapes that only one parameter has, in whatever order they come; else None."""
    homes = {shape: name for name, shape in named}
    if len(homes) < len(named) or len(set(shapes)) < len(shapes) or not homes.keys() >= set(shapes):
        return None
    return [homes[shape] for shape in shapes if shape is not None]


def _deal(
    groups: Sequence[Sequence[Shape | None]], named: Sequence[Named]
) -> list[str | None] | None:
    """Names for groups that each keep the model's order: all ways to deal them out are followed."""
    sizes = tuple(map(len, groups))
    spare = len(named) - sum(sizes)  # parameters that no group holds: frozen ones
    if spare < 0:
        return None
    levels = [{(0,) * len(groups)}]
    count = 0
    for at, (_, shape) in enumerate(named):
        level = {
            after
            for before in levels[-1]
            for after, _ in _choices(before, groups, shape, at - sum(before) < spare)
        }
        count += len(level)
        if not level or count > _PLACES:
            return None
        levels.append(level)
    takers: dict[tuple[int, int], set[int]] = {}
    alive = levels[-1] & {sizes}
    for at in range(len(named) - 1, -1, -1):
        reached = set()
        for before in levels[at]:
            for after, taken in _choices(before, groups, named[at][1], at - sum(before) < spare):
                if after in alive:
                    reached.add(before)
                    if taken is not None:
                        takers.setdefault((taken, before[taken]), set()).add(at)
        alive = reached
    if not alive:
        return None
    places = [takers[i, j] for i, size in enumerate(sizes) for j in range(size)]
    return [named[min(place)][0] if len(place) == 1 else None for place in places]


def _choices(
    before: tuple[int, ...], groups: Sequence[Sequence[Shape | None]], shape: Shape, spare: bool
) -> Iterator[tuple[tuple[int, ...], int | None]]:
    """What each group has had after the next parameter, and which group took it; None: no group."""
    if spare:
        yield before, None
    for i, group in enumerate(groups):
        if before[i] < len(group) and group[before[i]] in (None, shape):
            yield (*before[:i], before[i] + 1, *before[i + 1 :]), i


def embed(shapes: Sequence[Shape | None], named: Sequence[Named]) -> list[str | None] | None:
    """The name for each shape, if the shapes are found in order among the named ones.

    None where they are not. A name is None where several would do.
    """
    first = _leftmost(shapes, [shape for _, shape in named])
    if first is None:
        return None
    back = _leftmost(shapes[::-1], [shape for _, shape in reversed(named)])
    last = [len(named) - 1 - at for at in reversed(back or [])]
    return [named[a][0] if a == b else None for a, b in zip(first, last, strict=True)]


def _leftmost(shapes: Sequence[Shape | None], among: Sequence[Shape]) -> list[int] | None:
    places: list[int] = []
    at = 0
    for shape in shapes:
        while at < len(among) and shape is not None and among[at] != shape:
            at += 1
        if at >= len(among):
            return None
        places.append(at)
        at += 1
    return places


def saved_names(saved: SavedOptimizer, model: StateDict | None) -> list[str | None]:
    """The parameters' names in the order of the groups: those of the file, or told by the order."""
    own = saved.names
    if own is not None:
        return list(own)
    unknown: list[str | None] = [None] * len(saved.params)
    if model is None:
        return unknown
    return assign(shapes_by_group(saved), parameters(model)) or unknown


def left_over(saved: SavedOptimizer, named: Sequence[Named]) -> Counter[Shape]:
    """Shapes of moments for which there is no parameter left, however they are ordered."""
    return Counter(s for s in shapes_in_order(saved) if s is not None) - Counter(
        shape for _, shape in named
    )


def model_of(saved: SavedOptimizer, models: Sequence[StateDict]) -> StateDict | None:
    """The state dict that the optimizer fits best, the first of equals."""
    return min(models, key=lambda m: left_over(saved, parameters(m)).total(), default=None)
