"""The state that a training step can reach beside the parts of its run.

Found by following what the step refers to: globals that its code names, closures, default
arguments, the object that it is a method of, and the parts' own attributes that no checkpoint has.
"""

import functools
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from msgspec import Struct
from torch import Tensor, nn

from holdtrue.capture.installed import is_installed, is_installed_module
from holdtrue.capture.module import INTERNALS, entries
from holdtrue.runs.held_state import (
    MISSING,
    Held,
    is_opaque_iterator,
    named,
    process_settings,
    same,
    single,
)
from holdtrue.runs.hooks import hooks_of, hooks_of_all

_MOST = 20_000  # objects that are looked at
_BYTES = 256 << 20  # of tensors that are copied
_LEAVES = (type(None), bool, int, float, complex, str, bytes, range, torch.dtype, torch.device)
# Objects of these hold nothing that decides what is computed, and are not to be tampered with.
_LEFT_ALONE = frozenset(
    {"holdtrue", "logging", "threading", "concurrent", "multiprocessing", "asyncio", "subprocess"}
    | {"weakref", "queue", "socket", "tqdm", "rich", "wandb", "tensorboard", "abc", "typing"}
)
GRADIENTS = "gradients"
_Found = tuple[Any, str, str | None]  # an object, its path, what it belongs to


class Unit(Struct, frozen=True, eq=False):
    """One state that changed: what it was, what it is now."""

    held: Held
    key: str
    then: Any
    now: Any

    @property
    def path(self) -> str:
        return self.held.path + self.held.name(self.key)

    @property
    def group(self) -> str:
        return self.held.group or self.path


class Outside(Struct, frozen=True, eq=False):
    """All outside state as it was at one moment."""

    states: list[tuple[Held, dict[str, Any]]]
    complete: bool  # False: there was more than is looked at

    def changed(self) -> list[Unit]:
        """What is no longer as it was."""
        found = []
        for held, then in self.states:
            now = held.take()
            for key in {**then, **now}:
                before, after = then.get(key, MISSING), now.get(key, MISSING)
                if not same(before, after):
                    found.append(Unit(held, key, before, after))
        return found

    def put_back(self, wanted: Callable[[Unit], bool] = lambda unit: True) -> list[Unit]:
        """Make it as it was, the inmost first; returns what could not be put back."""
        left = []
        for unit in reversed(self.changed()):
            if not wanted(unit):
                continue
            try:
                if unit.held.put is None:
                    raise ValueError(unit.path)
                unit.held.put(unit.key, unit.then)
            except Exception:  # the objects' own code
                left.append(unit)
        return left


def look_outside(train_step: Callable[..., Any], parts: Mapping[str, Any]) -> Outside:
    """Take all state that the step can reach and no part has."""
    walk = _Walk(parts)
    states = [(held, held.take()) for held in (*process_settings(), *walk.gradients())]
    states += [(held, held.take()) for held in walk.follow(train_step)]
    return Outside(states, walk.complete)


class _Walk:
    def __init__(self, parts: Mapping[str, Any]) -> None:
        self.parts = parts
        self.complete = True
        self._bytes = 0
        self._seen: set[int] = set()
        self._kept: list[Any] = []  # so that no id is used twice
        self.parameters: dict[str, Tensor] = {}
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                own = {f"run.parts['{name}'].{e.name}": e.tensor for e in entries(part)}
                self.parameters |= own
            elif isinstance(part, Tensor):
                self.parameters[f"run.parts['{name}']"] = part
        for tensor in self.parameters.values():
            self._see(tensor)

    def gradients(self) -> Iterator[Held]:
        for path, tensor in self.parameters.items():
            if tensor.requires_grad and tensor.is_leaf:
                yield Held(path, GRADIENTS, *_gradient(tensor), lambda key: ".grad")

    def follow(self, train_step: Callable[..., Any]) -> Iterator[Held]:
        name = getattr(train_step, "__name__", type(train_step).__name__)
        todo: deque[_Found] = deque([(train_step, name, None)])
        # A restore puts an object back as a whole, so it counts as one; a module has attributes
        # that a restore leaves alone.
        for key, part in self.parts.items():
            at = f"run.parts['{key}']"
            todo.append((part, at, None if isinstance(part, nn.Module) else at))
        for helds, hooks in self._hooks():
            yield from helds
            todo += hooks
        looked = 0
        while todo:
            value, path, group = todo.popleft()
            if isinstance(value, _LEAVES) or not self._see(value):
                continue
            looked += 1
            if looked > _MOST:
                self.complete = False
                return
            helds, children = self._open(value, path, group)
            yield from helds
            todo += children

    def _hooks(self) -> Iterator[tuple[list[Held], list[_Found]]]:
        """Those of the process, and of the parts' parameters, which are not looked into else."""
        yield _opened(hooks_of_all())
        for path, tensor in self.parameters.items():
            yield _opened(hooks_of(tensor, path))

    def _see(self, value: Any) -> bool:
        if id(value) in self._seen:
            return False
        self._seen.add(id(value))
        self._kept.append(value)
        return True

    def _open(self, value: Any, path: str, group: str | None) -> tuple[list[Held], list[_Found]]:
        """What an object holds of its own, and what it leads to."""
        if isinstance(value, types.FunctionType):
            return ([], []) if _is_left_alone(value) else _function(value, path, group)
        if isinstance(value, types.MethodType):
            owner = (value.__self__, f"{path}.__self__", group)
            return [], [(value.__func__, path, group), owner]
        if isinstance(value, functools.partial):
            names = ("func", "args", "keywords")
            return [], [(getattr(value, name), f"{path}.{name}", group) for name in names]
        if isinstance(value, staticmethod | classmethod):
            return [], [(value.__func__, path, group)]
        if isinstance(value, property):
            return [], [(value.fget, path, group)]
        if isinstance(value, types.ModuleType):
            if is_installed_module(value):
                return [], []
            return _namespace(value, path, group, _public(vars(value)))
        if isinstance(value, type):
            if is_installed(value):
                return [], []
            return _namespace(value, path, group, _public(vars(value)))
        if _is_left_alone(type(value)):
            return [], []
        if isinstance(value, Tensor):
            self._bytes += value.nbytes
            if self._bytes > _BYTES or value.layout is not torch.strided:
                self.complete = False
                return [], []
        return self._object(value, path, group)

    def _object(self, value: Any, path: str, group: str | None) -> tuple[list[Held], list[_Found]]:
        helds, children = _opened(hooks_of(value, path))
        if any(part is value for part in self.parts.values()) and isinstance(
            value, torch.optim.Optimizer
        ):
            return helds, children  # its state is kept in full
        own = single(value, path, group or path)
        if own is not None:
            helds.append(own)
        children += [(v, f"{path}{at}", group or path) for at, v in _items(value)]
        if isinstance(value, functools._lru_cache_wrapper):
            children.append((value.__wrapped__, path, group))
        attributes = getattr(value, "__dict__", None)
        if isinstance(attributes, dict) and not isinstance(value, functools._lru_cache_wrapper):
            names = _attribute_names(value)
            more, inner = _namespace(value, path, group, names)
            helds, children = [*helds, *more], [*children, *inner]
        if isinstance(value, nn.Module):
            for name, child in value._modules.items():
                children.append((child, f"{path}.{name}", group))
            for name, tensor in (*value._parameters.items(), *value._buffers.items()):
                children.append((tensor, f"{path}.{name}", group or path))
        if not is_installed(type(value)):
            children.append((type(value), f"type({path})", group))
        return helds, children


def _opened(
    found: Iterable[tuple[Held, list[tuple[Any, str]]]],
) -> tuple[list[Held], list[_Found]]:
    """Each hook stands for itself, whatever it hangs on."""
    helds: list[Held] = []
    children: list[_Found] = []
    for held, hooks in found:
        helds.append(held)
        children += [(hook, at, _belongs(hook, at, None)) for hook, at in hooks]
    return helds, children


def _gradient(tensor: Tensor) -> tuple[Callable[[], dict[str, Any]], Callable[[str, Any], None]]:
    def take() -> dict[str, Any]:
        return {"": None if tensor.grad is None else tensor.grad.clone()}

    def put(key: str, gradient: Any) -> None:
        tensor.grad = None if gradient is None else gradient.clone()

    return take, put


def _function(
    value: types.FunctionType, path: str, group: str | None
) -> tuple[list[Held], list[_Found]]:
    if is_installed(value):
        return [], []
    scope, names = value.__globals__, set(_names_in(value.__code__))
    helds: list[Held] = []
    children: list[_Found] = []

    def bind(key: str, state: Any) -> None:
        if state is MISSING:
            scope.pop(key, None)
        else:
            scope[key] = state

    helds.append(
        named(
            path,
            group,
            lambda: {name: scope[name] for name in names if name in scope},
            bind,
            ".__globals__['{}']",
        )
    )
    for name in sorted(names & scope.keys()):
        at = f"{path}.__globals__['{name}']"
        children.append((scope[name], at, _belongs(scope[name], at, group)))
    cells = dict(zip(value.__code__.co_freevars, value.__closure__ or (), strict=True))
    helds.append(
        named(
            path,
            group,
            lambda: {name: _content(cell) for name, cell in cells.items()},
            lambda key, state: setattr(cells[key], "cell_contents", state),
            ".__closure__['{}']",
        )
    )
    for name, cell in cells.items():
        at = f"{path}.__closure__['{name}']"
        children.append((_content(cell), at, _belongs(_content(cell), at, group)))
    count = value.__code__.co_argcount
    defaults = value.__defaults__ or ()
    arguments = value.__code__.co_varnames[count - len(defaults) : count]
    given = {**dict(zip(arguments, defaults, strict=True)), **(value.__kwdefaults__ or {})}
    for name, default in given.items():
        at = f"{path}.__defaults__['{name}']"
        children.append((default, at, group or at))
    own = value.__dict__
    if own or group is None:
        more, inner = _namespace(value, path, group, lambda: own.keys() - {"__wrapped__"})
        helds, children = [*helds, *more], [*children, *inner]
    if "__wrapped__" in own:
        children.append((own["__wrapped__"], path, group))
    return helds, children


def _belongs(value: Any, path: str, group: str | None) -> str | None:
    """What the state of a value counts as. Code and objects of the user's own classes have several
    states that stand for themselves; all else is one, whatever it holds inside."""
    if group is not None and not isinstance(value, types.FunctionType | types.MethodType):
        return group
    several = (types.FunctionType, types.MethodType, types.ModuleType, functools.partial, nn.Module)
    if isinstance(value, (*several, type)) or _is_own(value):
        return None
    return group or path


def _is_own(value: Any) -> bool:
    return not is_installed(type(value)) and not hasattr(type(value), "__next__")


def _names_in(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names_in(constant)


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return MISSING


def _namespace(
    value: Any, path: str, group: str | None, names: Callable[[], Iterable[str]]
) -> tuple[list[Held], list[_Found]]:
    """The attributes of an object, class or module."""

    def put(key: str, state: Any) -> None:
        if isinstance(value, type):
            delattr(value, key) if state is MISSING else setattr(value, key, state)
        elif state is MISSING:
            vars(value).pop(key, None)
        else:
            vars(value)[key] = state

    def take() -> dict[str, Any]:
        own = vars(value)
        return {name: own[name] for name in names() if name in own}

    children: list[_Found] = []
    for key, item in take().items():
        children.append((item, f"{path}.{key}", _belongs(item, f"{path}.{key}", group)))
    return [named(path, group, take, put, owner=value)], children


def _public(scope: Mapping[str, Any]) -> Callable[[], list[str]]:
    return lambda: [name for name in scope if not name.startswith("__")]


def _attribute_names(value: Any) -> Callable[[], list[str]]:
    left = INTERNALS if isinstance(value, nn.Module) else frozenset[str]()
    return lambda: [name for name in vars(value) if isinstance(name, str) and name not in left]


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    """What stands in a container, or an iterator that lets itself be looked into."""
    if isinstance(value, dict):
        yield from ((f"[{key!r}]"[:60], item) for key, item in tuple(value.items()))
    elif isinstance(value, list | tuple | deque):
        yield from ((f"[{i}]", item) for i, item in enumerate(tuple(value)))
    elif isinstance(value, types.GeneratorType):
        frame = value.gi_frame
        if frame is not None:  # what it draws from may well let itself be put back
            yield from ((f".gi_frame.f_locals['{k}']", v) for k, v in frame.f_locals.items())
    elif is_opaque_iterator(value):
        held = single(value, "", "")
        state = held.take()[""] if held is not None else ()
        if isinstance(state, tuple) and state and isinstance(state[0], tuple):
            yield from ((".__reduce__()", item) for item in state[0])


def _is_left_alone(item: Any) -> bool:
    return str(getattr(item, "__module__", "")).partition(".")[0] in _LEFT_ALONE
