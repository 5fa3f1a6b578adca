"""Plans the restore of values, objects, loaders and random states into what the caller holds."""

import reprlib
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdtrue.capture import loader as loaders
from holdtrue.capture.parts import has_own_state
from holdtrue.capture.rng import sources
from holdtrue.findings import Finding, grouped
from holdtrue.records.manifest import Part
from holdtrue.records.revival import Revival, set_state
from holdtrue.records.trust import class_name
from holdtrue.records.values import TAG, Decoding
from holdtrue.restore.fresh import Fresh, decode_value, unusable
from holdtrue.restore.memento import remember
from holdtrue.restore.plan import Action, Copy, Plan
from holdtrue.restore.scheduler import fit_scheduler

Undo = Callable[[], None]


def plan_value(name: str, part: Part, live: Any, plan: Plan, tensors: Fresh) -> None:
    """Add to the plan what puts a saved value into the live one.

    Objects get their state back, containers, arrays and tensors their content. A value that cannot
    be changed in place must be equal already.
    """
    if isinstance(live, Tensor) and _is_tensor(part.state):
        _plan_tensor(name, part.state["v"], live, plan, tensors)
        return
    value, decoding = decode_value(part.state, tensors, live, name)
    if isinstance(part.state, dict) and part.state.get(TAG) == "object" and value is not live:
        plan.found(other_class(name, part.state["class"], class_name(type(live))))
        return
    _plan_revivals(decoding, name, plan)
    if value is live or decoding.unmatched:
        return
    exchange = _exchange(live, value)
    if exchange is not None:
        plan.actions.append(Action(name, exchange))
    elif not equal(value, live):
        plan.found(_cannot_change(name, value, live))


def decode_into(node: Any, tensors: Fresh, live: Any, path: str, plan: Plan) -> Any:
    """The value of a node; objects in it that are live already get their state by the plan."""
    value, decoding = decode_value(node, tensors, live, path)
    _plan_revivals(decoding, path, plan)
    return value


def _plan_revivals(decoding: Decoding, path: str, plan: Plan) -> None:
    if decoding.unmatched:
        plan.found(_unknown_classes(decoding.unmatched))
        return
    for revival in decoding.revivals:
        where = revival.path or path
        if isinstance(revival.target, torch.optim.Optimizer):
            plan.found(_nested_optimizer(where, revival.target))
        if revival.via == "state_dict":
            _compare(where, revival, plan)
        fitted = fit_scheduler(where, revival, plan)
        do = _revive(fitted) if isinstance(fitted, Revival) else fitted
        plan.actions.append(Action(where, do))


def _compare(where: str, revival: Revival, plan: Plan) -> None:
    """Objects of ours say themselves how the state differs from what they are."""
    compare = getattr(type(revival.target), "__holdtrue_compare__", None)
    for finding in compare(revival.target, where, revival.state) if compare else ():
        plan.found(finding)


def _nested_optimizer(where: str, optimizer: torch.optim.Optimizer) -> Finding:
    own = not has_own_state(optimizer)
    return by_position(
        where,
        "the parameters of this optimizer are matched by their position",
        why="its class has a state_dict of its own, which numbers them"
        if own
        else "inside another value it is kept by its own state_dict, which numbers them",
        fix="build it with its parameters in the saved order"
        if own
        else "give it to save() and restore() as a part of its own, beside its model",
    )


def plan_loader(name: str, part: Part, live: Any, plan: Plan, tensors: Fresh) -> None:
    """A plain DataLoader: its generators are set, its settings compared."""
    if not loaders.is_plain_loader(live):
        plan.found(other_class(name, part.class_name or "?", class_name(type(live))))
        return
    generators = loaders.generators(live)
    value, decoding = decode_value(part.state, tensors, {"generators": generators}, name)
    if not isinstance(value, dict) or not all(
        isinstance(value.get(k), dict) for k in ("settings", "generators")
    ):
        raise unusable(name, "it is not the state of a data loader")
    here = loaders.settings(live)
    differing = [
        f"{name}.{key}: saved {saved!r}, here {here.get(key)!r}"
        for key, saved in value["settings"].items()
        if saved != here.get(key) and key != "workers"
    ]
    differing += [
        f"{name}.{place}.generator: {'saved' if place in value['generators'] else 'here'} only"
        for place in value["generators"].keys() ^ generators.keys()
    ]
    if differing:
        plan.found(
            grouped(
                "loader-changed",
                "error",
                "the data loader is not the one that was saved",
                differing,
                why="another order or size of batches makes another training",
                fix='build the loader as it was, or go on with this one: allow=["loader-changed"]',
            )
        )
    for revival in decoding.revivals:
        plan.actions.append(Action(revival.path, _revive(revival)))


def plan_rng(part: Part, plan: Plan, tensors: Fresh) -> None:
    """Python's, NumPy's and torch's global random states."""
    value, _ = decode_value(part.state, tensors, path="rng")
    if not isinstance(value, dict):
        raise unusable("rng", "its random states have no names")
    here = sources()
    absent = sorted(set(value) - set(here))
    if absent:
        plan.found(
            grouped(
                "rng-device-absent",
                "warning",
                "random states of devices that are not in use here are left out",
                absent,
                why="the checkpoint was written on other hardware; what draws random numbers "
                "there will draw others here",
            )
        )

    def setter(name: str, state: Any) -> Callable[[], Undo]:
        def do() -> Undo:
            before = here[name].get()
            here[name].set(_as_torch(state) if isinstance(state, bytes) else state)
            return lambda: here[name].set(before)

        return do

    for name, state in value.items():
        if name in here:
            plan.actions.append(Action(f"rng/{name}", setter(name, state)))


def _as_torch(state: bytes) -> Tensor:
    return torch.frombuffer(bytearray(state), dtype=torch.uint8)


def _is_tensor(node: Any) -> bool:
    return isinstance(node, dict) and node.get(TAG) == "tensor"


def _plan_tensor(name: str, key: str, live: Tensor, plan: Plan, tensors: Fresh) -> None:
    lazy = tensors.tensors[key]
    same = tuple(live.shape) == lazy.shape and str(live.dtype) == f"torch.{lazy.dtype}"
    if same and lazy.layout == "strided" and live.layout is torch.strided:
        plan.copies.append(Copy(lazy, live))
        return
    plan.found(
        Finding(
            code="shape-mismatch",
            severity="error",
            where=name,
            what="the tensor has another shape, dtype or layout here",
            why="a tensor that is a part of its own is filled as it is, never cut or converted",
            fix=f'take the saved one instead: ck["{name}"]',
            saved=f"{lazy.dtype} {list(lazy.shape)}",
            expected=f"{str(live.dtype).removeprefix('torch.')} {list(live.shape)}",
        )
    )


def _revive(revival: Revival) -> Callable[[], Undo]:
    def do() -> Undo:
        undo = remember(revival)
        try:
            set_state(revival.target, revival.via, revival.state, revival.items)
        except BaseException:
            undo()
            raise
        return undo

    return do


def _exchange(live: Any, value: Any) -> Callable[[], Undo] | None:
    """How to give a mutable container or array the content of another; None where none is."""
    if type(live) is not type(value):
        return None
    if type(live) in (dict, OrderedDict, defaultdict, set):
        return _swap(live, value, _refill)
    if type(live) in (list, bytearray):
        return _swap(live, value, lambda into, new: into.__setitem__(slice(None), new))
    if type(live) is deque and live.maxlen == value.maxlen:
        return _swap(live, value, lambda into, new: (into.clear(), into.extend(new)))
    if type(live) is np.ndarray and live.shape == value.shape and live.dtype == value.dtype:
        return _swap(live, value, np.copyto)
    return None


def _refill(into: Any, new: Any) -> None:
    into.clear()
    into.update(new)


def _swap(live: Any, value: Any, put: Callable[[Any, Any], Any]) -> Callable[[], Undo]:
    def do() -> Undo:
        before = live.copy()
        put(live, value)
        return lambda: put(live, before)

    return do


def equal(a: Any, b: Any) -> bool:
    """Equality that reaches through containers and arrays; NaN equals NaN."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return bool(a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b))
    if isinstance(a, np.ndarray):
        return bool(a.dtype == b.dtype and np.array_equal(a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(v, b[k]) for k, v in a.items())
    if isinstance(a, list | tuple | deque):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, float):
        return a == b or (a != a and b != b)
    return bool(a == b)


def _cannot_change(name: str, value: Any, live: Any) -> Finding:
    return Finding(
        code="value-differs",
        severity="error",
        where=name,
        what="the saved value differs, and this one cannot be changed in place",
        why=f"a {type(live).__name__} has no content that could be replaced",
        fix=f'take the saved one: ck["{name}"], or keep yours: allow=["value-differs"]',
        saved=short(value),
        expected=short(live),
    )


def short(value: Any) -> str:
    return reprlib.repr(value)  # bounded: lists that share one another print for ever


def other_class(name: str, saved: str, here: str) -> Finding:
    return Finding(
        code="part-kind-changed",
        severity="error",
        where=name,
        what="another kind of object was saved under this name",
        why="its state does not describe this one",
        fix="give the object that belongs to this part, or another name",
        saved=saved,
        expected=here,
    )


def by_position(where: str, what: str, why: str, fix: str) -> Finding:
    return Finding(
        code="optimizer-by-position",
        severity="warning",
        where=where,
        what=what,
        why=f"{why}; another order would put state on the wrong parameters",
        fix=fix,
    )


def _unknown_classes(unmatched: list[tuple[str, str]]) -> Finding:
    names = sorted({name for _, name in unmatched})
    return grouped(
        "class-not-trusted",
        "error",
        "the saved value holds objects whose classes nobody agreed to build",
        [f"{path}: {name}" for path, name in unmatched],
        why="a file alone never makes holdtrue build an object",
        fix=f"trust=[{', '.join(n.rpartition('.')[2] for n in names)}], if you know the classes",
    )
