"""Which parameters an optimizer state belongs to, told by the order and the shapes.

torch numbers parameters in the order in which the optimizer was given them, which is mostly that
of the model. So the shapes of the moments have to be found, in order, among those of the model.
"""

from collections import Counter
from collections.abc import Sequence

from holdtrue.doctor.keeping import memory_of
from holdtrue.doctor.optimizer_states import SavedOptimizer, Shape, shapes_in_order
from holdtrue.doctor.state_dicts import StateDict
from holdtrue.formats.pickle_tensors import is_storage
from holdtrue.records.dtypes import DTYPES

_BUFFERS = frozenset({
    "running_mean", "running_var", "num_batches_tracked", "position_ids", "inv_freq", "attn_mask",
    "relative_position_index", "token_type_ids", "n_averaged",
})  # fmt: skip

Named = tuple[str, Shape]


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
    if model is None or len(saved.groups) > 1:
        return unknown  # groups are commonly sorted by kind: their order says nothing
    return embed(shapes_in_order(saved), parameters(model)) or unknown


def left_over(saved: SavedOptimizer, named: Sequence[Named]) -> Counter[Shape]:
    """Shapes of moments for which there is no parameter left, however they are ordered."""
    return Counter(s for s in shapes_in_order(saved) if s is not None) - Counter(
        shape for _, shape in named
    )


def model_of(saved: SavedOptimizer, models: Sequence[StateDict]) -> StateDict | None:
    """The state dict that the optimizer fits best, the first of equals."""
    return min(models, key=lambda m: left_over(saved, parameters(m)).total(), default=None)
