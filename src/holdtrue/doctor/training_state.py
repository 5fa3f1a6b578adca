"""What a file keeps of a training beside weights: schedulers, scalers, random states, counters.

Like optimizers they are told by content, since every script and trainer has its own names.
"""

from collections.abc import Iterator
from typing import Any

from msgspec import Struct, field

from holdtrue.doctor.optimizer_states import (
    SavedOptimizer,
    is_optimizer_state,
    saved_optimizer,
    scalar,
)
from holdtrue.doctor.state_dicts import StateDict, state_dicts
from holdtrue.formats.tree_walk import each_node, name_of
from holdtrue.formats.view import LazyTensor, View
from holdtrue.records.inert import Record

# Settings by which torch's schedulers are told apart; the first that fits is the one.
_SCHEDULERS: tuple[tuple[str, frozenset[str]], ...] = (
    ("SequentialLR", frozenset({"_milestones", "_schedulers"})),
    ("ChainedScheduler", frozenset({"_schedulers"})),
    ("ReduceLROnPlateau", frozenset({"patience", "num_bad_epochs"})),
    ("OneCycleLR", frozenset({"total_steps", "_schedule_phases"})),
    ("CyclicLR", frozenset({"max_lrs", "step_ratio"})),
    ("CosineAnnealingWarmRestarts", frozenset({"T_0", "T_mult"})),
    ("CosineAnnealingLR", frozenset({"T_max", "eta_min"})),
    ("LambdaLR or MultiplicativeLR", frozenset({"lr_lambdas"})),
    ("MultiStepLR", frozenset({"milestones", "gamma"})),
    ("StepLR", frozenset({"step_size", "gamma"})),
    ("PolynomialLR", frozenset({"total_iters", "power"})),
    ("LinearLR", frozenset({"start_factor", "end_factor"})),
    ("ConstantLR", frozenset({"factor", "total_iters"})),
    ("SWALR", frozenset({"anneal_epochs"})),
    ("ExponentialLR", frozenset({"gamma"})),
)
_SCALER = frozenset({"scale", "growth_factor", "backoff_factor", "growth_interval"})
_COUNTERS = frozenset({
    "epoch", "epochs", "current_epoch", "start_epoch", "last_epoch", "epoch_num", "step", "steps",
    "global_step", "n_iter", "iter", "iteration", "iterations", "it", "iter_num", "num_steps",
    "train_step", "trained_steps", "completed_steps",
})  # fmt: skip
_EPOCHS = frozenset({"epoch", "epochs", "current_epoch", "start_epoch", "last_epoch", "epoch_num"})
_LOADER_NAMES = ("loader", "sampler", "data_state", "dl_state")
_LOADER_KEYS = frozenset({
    "_snapshot", "_steps_since_snapshot", "_num_yielded", "_iterator_finished",
    "_sampler_iter_yielded", "_sampler_iter_state", "samples_seen", "batches_seen",
    "is_last_batch", "_batches_that_stepped",
})  # fmt: skip
_MOST = 64  # models, optimizers, schedulers of one file that are looked at
_LONG = 64  # a longer list of plain values holds no part of a training
_CPU_RNG = frozenset({5048, 5056})  # bytes of torch's state for the CPU, older and newer
_CUDA_RNG = frozenset({16, 24, 816})
_NUMPY_RNG = frozenset({"MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64"})


class SavedScheduler(Struct, frozen=True, kw_only=True, eq=False):
    path: str
    class_name: str  # as near as its settings say
    state: dict[str, Any]
    rates: tuple[float, ...] | None  # `_last_lr`: those it goes on from

    @property
    def last_epoch(self) -> float | None:
        return scalar(self.state.get("last_epoch"))


class SavedTraining(Struct, frozen=True, kw_only=True, eq=False):
    """All that a file keeps of a training."""

    models: tuple[StateDict, ...]
    optimizers: tuple[SavedOptimizer, ...]
    schedulers: tuple[SavedScheduler, ...]
    pickled: dict[str, str] = field(default_factory=dict)  # path → class of optimizers kept whole
    scalers: dict[str, Any] = field(default_factory=dict)  # by path
    random: dict[str, str] = field(default_factory=dict)  # path → whose random state
    loaders: tuple[str, ...] = ()
    counters: dict[str, float] = field(default_factory=dict)

    @property
    def is_training(self) -> bool:
        """True for what looks like more than weights."""
        kept = self.optimizers or self.schedulers or self.scalers or self.pickled or self.random
        return bool(kept) or bool(self.models and self.models[0].path and self.counters)

    @property
    def epochs(self) -> dict[str, float]:
        return {p: n for p, n in self.counters.items() if p.rpartition("/")[2] in _EPOCHS}


def saved_training(view: View) -> SavedTraining:
    """What the view keeps of a training; of a holdtrue checkpoint nothing, its parts say it all."""
    if view.format == "holdtrue":
        return SavedTraining(models=(), optimizers=(), schedulers=())
    optimizers: list[SavedOptimizer] = []
    schedulers: list[SavedScheduler] = []
    scalers: dict[str, Any] = {}
    loaders: list[str] = []
    pickled: dict[str, str] = {}
    random: dict[str, str] = {}
    counters: dict[str, float] = {}
    closed: str | None = None  # below it all has been dealt with; a parent comes before its parts
    for path, node in each_node(view.tree, view.path, repeats=0):
        if closed is not None and (not closed or path.startswith(closed + "/")):
            continue
        closed = path
        own = _random_state(path, node)
        if own is not None:
            random[path] = own
        elif isinstance(node, Record) and _is_optimizer_record(node):
            pickled[path] = node.class_name
        elif is_optimizer_state(node):
            optimizers += [saved_optimizer(path, node)] if len(optimizers) < _MOST else []
        elif isinstance(node, dict) and is_scheduler_state(node):
            schedulers += [_scheduler(path, node)] if len(schedulers) < _MOST else []
        elif isinstance(node, dict) and node.keys() >= _SCALER:
            scalers[path] = node
        elif isinstance(node, list | tuple) and len(node) > _LONG:
            continue
        else:
            closed = None
            if isinstance(node, dict):
                counters |= _counters(path, node)
                if _is_loader(path, node):
                    loaders.append(path)
    apart = {kept.path for kept in optimizers} | {kept.path for kept in schedulers}
    return SavedTraining(
        models=tuple(s for s in state_dicts(view)[:_MOST] if not _within(s.path, apart)),
        optimizers=tuple(optimizers),
        schedulers=tuple(schedulers),
        pickled=pickled,
        scalers=scalers,
        random=random,
        loaders=tuple(loaders),
        counters=counters,
    )


def _within(path: str, apart: set[str]) -> bool:
    """Whether a path is one of these, or lies below one."""
    names = path.split("/")
    return any("/".join(names[:n]) in apart for n in range(len(names) + 1))


def is_scheduler_state(node: dict[Any, Any]) -> bool:
    """A dict as the `state_dict()` of a learning rate scheduler makes it."""
    if "_schedulers" in node and "_last_lr" in node:
        return True
    if "last_epoch" not in node:
        return False
    marks = {"_last_lr", "base_lrs", "_step_count", "num_bad_epochs", "_get_lr_called_within_step"}
    return bool(marks & node.keys())


def scheduler_class(state: dict[str, Any]) -> str:
    for name, marks in _SCHEDULERS:
        if marks <= state.keys():
            return name
    return "an unknown class"


def _scheduler(path: str, node: dict[Any, Any]) -> SavedScheduler:
    state = {name_of(key): value for key, value in node.items()}
    rates = state.get("_last_lr")
    numbers = [scalar(r) for r in rates] if isinstance(rates, list | tuple) else [None]
    return SavedScheduler(
        path=path,
        class_name=scheduler_class(state),
        state=state,
        rates=tuple(n for n in numbers if n is not None) if None not in numbers else None,
    )


def _random_state(path: str, node: Any) -> str | None:
    """Whose random state a node is: "torch", "CUDA", "NumPy", "Python"; None where it is none."""
    if isinstance(node, LazyTensor):
        if node.dtype != "uint8" or len(node.shape) != 1:
            return None
        if node.shape[0] in _CPU_RNG:
            return "torch"
        named = any(word in path.lower() for word in ("cuda", "rng", "random", "gpu", "xpu"))
        return "CUDA" if named and node.shape[0] in _CUDA_RNG else None
    if isinstance(node, tuple | list) and node:
        if isinstance(node[0], str) and node[0] in _NUMPY_RNG:
            return "NumPy"
        inner = node[1] if len(node) == 3 else None
        if node[0] == 3 and isinstance(inner, tuple | list) and len(inner) == 625:
            return "Python"
    if isinstance(node, dict):
        kind = node.get("bit_generator")
        if isinstance(kind, str) and kind in _NUMPY_RNG:
            return "NumPy"
    return None


def _is_optimizer_record(node: Record) -> bool:
    state = node.state
    return isinstance(state, dict) and state.keys() >= {"state", "param_groups"}


def _is_loader(path: str, node: dict[Any, Any]) -> bool:
    name = path.rpartition("/")[2].lower()
    named = bool(node) and any(word in name for word in _LOADER_NAMES)
    return named or len(_LOADER_KEYS & node.keys()) >= 1


def _counters(path: str, node: dict[Any, Any]) -> dict[str, float]:
    """Epochs and steps: whole numbers, not too deep, under a name that says so."""
    if path.count("/") > 1:
        return {}
    return dict(_numbers(path, node))


def _numbers(path: str, node: dict[Any, Any]) -> Iterator[tuple[str, float]]:
    for key, value in node.items():
        if isinstance(key, str) and key.lower() in _COUNTERS:
            number = scalar(value)
            if number is not None and number >= 0:
                yield (f"{path}/{key}" if path else key), number
