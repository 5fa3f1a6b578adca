"""The optimizer states that a view holds, wherever they lie, as `state_dict()` lays them out.

They are told by content: a dict with `state` and `param_groups`. Which class wrote one is told by
the settings of its groups and the names of its moments; torch writes no class name.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeGuard

from msgspec import Struct, field

from holdtrue.doctor.elements import decoder
from holdtrue.errors import HoldtrueError
from holdtrue.formats.tensor_bytes import read_tensor
from holdtrue.formats.tree_walk import name_of
from holdtrue.formats.view import LazyTensor
from holdtrue.limits import KIB
from holdtrue.records.inert import Record

Shape = tuple[int, ...]

_SCALARS = 20_000  # step counts of one optimizer that are read
_GROUP_OWN = frozenset({"params", "param_names"})

# Moments that have the shape of their parameter. Others (factored, projected, packed) do not.
_LIKE_PARAMETER = frozenset({
    "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg",
    "grad_avg", "acc_delta", "sum", "prev", "ax", "state1", "state2", "exp_avg_diff",
})  # fmt: skip
_OF_NO_SHAPE = frozenset({"step", "eta", "mu", "mu_product"})

# Settings by which torch's classes are told apart; the first that fits is the one.
_CLASSES: tuple[tuple[str, frozenset[str]], ...] = (
    ("LBFGS", frozenset({"max_iter", "tolerance_grad"})),
    ("Rprop", frozenset({"etas", "step_sizes"})),
    ("ASGD", frozenset({"lambd", "t0"})),
    ("Adadelta", frozenset({"rho"})),
    ("Adagrad", frozenset({"lr_decay", "initial_accumulator_value"})),
    ("RMSprop", frozenset({"alpha", "centered"})),
    ("SGD", frozenset({"dampening", "nesterov"})),
    ("NAdam", frozenset({"momentum_decay"})),
    ("Adafactor", frozenset({"beta2_decay"})),
    ("Muon", frozenset({"ns_coefficients"})),
    ("Adam or AdamW", frozenset({"betas", "eps", "amsgrad"})),
)


class SavedGroup(Struct, frozen=True, kw_only=True, eq=False):
    params: tuple[Any, ...]  # the numbers under which `state` has their moments
    names: tuple[str, ...] | None  # where the file keeps them
    settings: dict[str, Any]


class SavedOptimizer(Struct, frozen=True, kw_only=True, eq=False):
    path: str  # in the tree
    groups: tuple[SavedGroup, ...]
    state: Mapping[Any, Any]
    class_name: str  # as near as the file can say
    steps: dict[Any, float] = field(default_factory=dict)  # parameter number → steps it took

    @property
    def params(self) -> list[Any]:
        return [number for group in self.groups for number in group.params]

    @property
    def names(self) -> list[str] | None:
        """The parameters' names in the order of the groups, where the file keeps them all."""
        if not self.groups or any(group.names is None for group in self.groups):
            return None
        return [name for group in self.groups for name in group.names or ()]

    @property
    def step(self) -> float | None:
        return max(self.steps.values(), default=None)


def is_optimizer_state(node: Any) -> TypeGuard[dict[str, Any]]:
    """A dict as `torch.optim.Optimizer.state_dict()` makes it."""
    if not isinstance(node, dict) or not isinstance(node.get("state"), dict):
        return False
    groups = node.get("param_groups")
    return (
        isinstance(groups, list)
        and bool(groups)
        and all(isinstance(g, dict) and isinstance(g.get("params"), list) for g in groups)
        # An optimizer pickled whole has its tensors themselves in the groups.
        and all(isinstance(p, int | str) for g in groups for p in g["params"])
    )


def saved_optimizer(path: str, node: dict[str, Any]) -> SavedOptimizer:
    """The optimizer whose state this node is."""
    groups = tuple(_group(group) for group in node["param_groups"])
    return SavedOptimizer(
        path=path,
        groups=groups,
        state=node["state"],
        class_name=class_of(groups, node["state"]),
        steps=_steps(groups, node["state"]),
    )


def _group(group: dict[str, Any]) -> SavedGroup:
    params, names = group["params"], group.get("param_names")
    if params and all(isinstance(p, str) for p in params):
        names = params  # as FSDP and distributed checkpoints number them
    named = isinstance(names, list | tuple) and len(names) == len(params)
    return SavedGroup(
        params=tuple(params),
        names=tuple(map(name_of, names)) if named and isinstance(names, list | tuple) else None,
        settings={name_of(k): v for k, v in group.items() if k not in _GROUP_OWN},
    )


def class_of(groups: Iterable[SavedGroup], state: Mapping[Any, Any]) -> str:
    """The class that wrote these, in words: "SGD", "Adam or AdamW", "an unknown class"."""
    settings = {key for group in groups for key in group.settings}
    decoupled = [g.settings.get("decoupled_weight_decay") for g in groups]
    for name, marks in _CLASSES:
        if marks <= settings:
            if name == "Adam or AdamW" and None not in decoupled:
                return "AdamW" if all(decoupled) else "Adam"
            return name
    moments = {k for s in list(state.values())[:1] if isinstance(s, dict) for k in s}
    if {"exp_avg", "exp_inf"} <= moments:
        return "Adamax"
    if "exp_avg" in moments and "exp_avg_sq" not in moments:
        return "Lion or alike"
    return "Adam-like" if "exp_avg" in moments else "an unknown class"


def parameter_shape(state: Any) -> Shape | None:
    """The shape of the parameter that this state belongs to; None where it does not show."""
    if not isinstance(state, dict) or not state.keys() <= _LIKE_PARAMETER | _OF_NO_SHAPE:
        return None
    shapes = {
        value.shape
        for key, value in state.items()
        if key in _LIKE_PARAMETER and isinstance(value, LazyTensor) and value.layout == "strided"
    }
    return shapes.pop() if len(shapes) == 1 else None


def shapes_in_order(saved: SavedOptimizer) -> list[Shape | None]:
    """For each parameter, in the order of the groups, what its moments say of its shape."""
    return [shape for group in shapes_by_group(saved) for shape in group]


def shapes_by_group(saved: SavedOptimizer) -> list[list[Shape | None]]:
    """For each group, what the moments of its parameters say of their shapes."""
    return [[parameter_shape(saved.state.get(n)) for n in group.params] for group in saved.groups]


def moments(saved: SavedOptimizer) -> Iterator[tuple[str, str, LazyTensor]]:
    """(path, name of the moment, tensor) of every tensor in the state, step counts too."""
    for number, state in saved.state.items():
        if isinstance(state, dict):
            for key, value in state.items():
                if isinstance(value, LazyTensor):
                    yield f"{saved.path}/state/{name_of(number)}/{key}", str(key), value


def _steps(groups: tuple[SavedGroup, ...], state: Mapping[Any, Any]) -> dict[Any, float]:
    found: dict[Any, float] = {}
    for number in [n for group in groups for n in group.params][:_SCALARS]:
        own = state.get(number)
        value = scalar(own.get("step")) if isinstance(own, dict) else None
        if value is not None:
            found[number] = value
    if found:
        return found
    # Some classes of other packages count for a whole group.
    of_group = ((group, scalar(group.settings.get("step"))) for group in groups)
    return {n: step for group, step in of_group if step is not None for n in group.params}


def scalar(value: Any) -> float | None:
    """A number, also of a tensor with one element; None for anything else, or unreadable."""
    if isinstance(value, Record | bool):
        return None
    if isinstance(value, int | float):
        return float(value) if abs(value) < 1e300 else None
    if not isinstance(value, LazyTensor) or value.layout != "strided" or len(value.pieces) != 1:
        return None
    storage = value.pieces[0].storage
    packed = storage.codec != "raw" and storage.nbytes > 64 * KIB
    if any(size != 1 for size in value.shape) or packed:
        return None
    try:
        decode = decoder(value)
        return None if decode is None else float(decode(read_tensor(value)).reshape(-1)[0].real)
    except (HoldtrueError, OSError, ValueError, IndexError, TypeError):
        return None  # damage is another finding's business
