"""What the tensors of a file are for, by their names: weights, masks, an optimizer's moments."""

import re
from collections.abc import Iterator
from pathlib import Path
from shlex import quote

from msgspec import Struct

from holdtrue.doctor.statistics import Statistics
from holdtrue.doctor.subjects import Weights
from holdtrue.formats.tree_walk import each_node
from holdtrue.formats.view import LazyTensor, View

# How a whole pickled model spells the place of a tensor.
_INNER = frozenset({"_modules", "_parameters", "_buffers"})
# What optimizers call the state of a parameter, where a flat file does not say more.
_MOMENTS = frozenset({"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg",
                      "acc_delta", "grad_avg", "exp_inf"})  # fmt: skip
_WEIGHT = re.compile(r"(^|_)(weight|kernel)s?($|_)|(^|_)[wWv]$|embedding$|original\d?$")
_TABLE = re.compile(r"emb|wte|wpe|vocab|lm_head|token|lookup|codebook")
_MASK = re.compile(r"mask|causal|tril|triu|alibi|attn_bias|attention_bias|relative|slopes|penalt")
_UNSET = re.compile(r"(^|_)(min|max|best|lowest|highest)(_|$)")  # infinite until first set


class Named(Struct, frozen=True, kw_only=True):
    """A tensor with its statistics and its name in words: `owner` is the module's."""

    path: str
    owner: tuple[str, ...]
    leaf: str
    tensor: LazyTensor
    statistics: Statistics

    @property
    def is_weight(self) -> bool:
        """Whether it is called as the weights of layers are, as far as the name tells."""
        return bool(_WEIGHT.search(self.leaf))

    @property
    def is_matrix(self) -> bool:
        """Two or more axes along which it has more than one element."""
        return sum(size > 1 for size in self.tensor.shape) >= 2

    @property
    def floating(self) -> bool:
        return self.tensor.dtype.startswith(("float", "bfloat", "complex"))

    @property
    def pattern(self) -> str:
        """Its name without numbers: the same for the like tensors of all layers."""
        return ".".join("#" if word.isdecimal() else word for word in (*self.owner, self.leaf))


def weights_in(weights: Weights) -> list[Named]:
    """All tensors with values but those of an optimizer."""
    return [named for named, own in _named(weights) if not own]


def moments_in(weights: Weights) -> list[Named]:
    """What optimizers keep for a parameter: `owner` is the parameter, `leaf` the moment."""
    return [named for named, own in _named(weights) if own]


def by_owner(named: list[Named]) -> dict[tuple[str, ...], dict[str, Named]]:
    """The tensors of each module, or of each parameter, by leaf."""
    found: dict[tuple[str, ...], dict[str, Named]] = {}
    for one in named:
        found.setdefault(one.owner, {})[one.leaf] = one
    return found


def optimizer_paths(view: View) -> dict[str, dict[object, object]]:
    """Where in the tree optimizers lie, torch's and holdtrue's: path → per-parameter state."""
    found: dict[str, dict[object, object]] = {}
    for path, node in each_node(view.tree, view.path):
        if isinstance(node, dict) and ("param_groups" in node or "groups" in node):
            state = node.get("state")
            if isinstance(state, dict):
                found[path] = state
    return found


def infinity_is_meant(named: Named) -> bool:
    """Masks hold -inf beside one value; bounds that were never set are infinite."""
    held = named.statistics
    if held.nan or named.is_weight:
        return False
    if _UNSET.search(named.leaf) or held.elements == 1:
        return True
    if held.plus_infinite or len(named.tensor.shape) < 2:
        return False
    plain = held.finite == 0 or held.low == held.high
    return plain or bool(_MASK.search(".".join((*named.owner[-1:], named.leaf))))


def is_mask(named: Named) -> bool:
    """Whether its name is that of a mask or a position table, whose zeros are meant."""
    return bool(_MASK.search(named.leaf))


def is_table(named: Named) -> bool:
    """Whether it is looked up row by row, as far as its name tells."""
    name = ".".join((*named.owner[-2:], named.leaf)).lower()
    return len(named.tensor.shape) == 2 and bool(_TABLE.search(name))


def earlier_checkpoint(view: View) -> str:
    """The command that lists the checkpoints of the run that a checkpoint belongs to."""
    folder = Path(view.path)
    if view.format == "holdtrue" and folder.name.startswith("step-"):
        return f"holdtrue log {quote(str(folder.parent))}"
    return ""


def _named(weights: Weights) -> Iterator[tuple[Named, bool]]:
    optimizers = tuple(path + "/" if path else "" for path in optimizer_paths(weights.view))
    for path, statistics in weights.statistics.items():
        tensor = weights.view.tensors.get(path)
        if tensor is None:
            whole, _, part = path.rpartition("/")
            tensor = weights.view.tensors[whole].components[part]
        words = [word for word in re.split(r"[/.]", path) if word not in _INNER]
        inside = path.startswith(optimizers) if optimizers else False
        named = Named(
            path=path,
            owner=tuple(words[:-1]),
            leaf=words[-1],
            tensor=tensor,
            statistics=statistics,
        )
        yield named, inside or named.leaf in _MOMENTS
