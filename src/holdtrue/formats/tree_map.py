"""A tree with every lazy tensor replaced; what was shared stays shared, records stay inert."""

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from holdtrue.formats.pickle_source import over_budget
from holdtrue.formats.view import LazyTensor
from holdtrue.limits import limits
from holdtrue.records.inert import InertKey, NamedReference, Record


def map_tensors(
    tree: Any,
    build: Callable[[LazyTensor], Any],
    where: str,
    revive: Callable[[Any], Any] = lambda inert: inert,
) -> Any:
    """A copy of the tree in which `build` has made something of each tensor, once for each.

    `revive` may make something of records and references; by default they stay inert.
    Raises OpenError for a tree that is nested deeper than the limits allow.
    """
    return _Mapping(build, revive, where).map(tree, 0)


class _Mapping:
    def __init__(
        self, build: Callable[[LazyTensor], Any], revive: Callable[[Any], Any], where: str
    ) -> None:
        self.build, self.revive, self.where = build, revive, where
        self.made: dict[int, Any] = {}

    def map(self, node: Any, depth: int) -> Any:
        if node is None or isinstance(node, str | int | float | bytes | bool):
            return node
        if id(node) in self.made:
            return self.made[id(node)]
        if depth > limits().value_depth:
            raise over_budget(self.where, "value_depth", limits().value_depth, "levels of nesting")
        made = self._container(node, depth + 1)
        self.made.setdefault(id(node), made)
        return made

    def _container(self, node: Any, depth: int) -> Any:
        if isinstance(node, LazyTensor):
            return self.build(node)
        if isinstance(node, dict):
            return self._dict(node, depth)
        if isinstance(node, list | deque):
            made: Any = [] if isinstance(node, list) else deque(maxlen=node.maxlen)
            self.made[id(node)] = made  # before its contents: it may contain itself
            made.extend(self.map(v, depth) for v in node)
            return made
        if type(node) in (tuple, set, frozenset):
            return type(node)(self.map(v, depth) for v in node)
        if isinstance(node, Record):
            mapped = replace(
                node,
                args=tuple(self.map(v, depth) for v in node.args),
                kwargs={k: self.map(v, depth) for k, v in node.kwargs.items()},
                state=self.map(node.state, depth),
                items=self.map(node.items, depth),
            )
            return self.revive(mapped)
        return self.revive(node) if isinstance(node, NamedReference) else node

    def _dict(self, node: dict[Any, Any], depth: int) -> Any:
        made: Any
        if isinstance(node, defaultdict):
            made = defaultdict(node.default_factory)
        else:
            made = next(k for k in (OrderedDict, Counter, dict) if isinstance(node, k))()
        self.made[id(node)] = made
        for key, value in node.items():
            new = key if not isinstance(key, InertKey | tuple) else self._key(key, depth)
            made[new] = self.map(value, depth)
        attributes = getattr(node, "__dict__", None)
        if attributes:
            made.__dict__.update({k: self.map(v, depth) for k, v in attributes.items()})
        return made

    def _key(self, key: Any, depth: int) -> Any:
        # Inert records and tensors are not hashable; they stay wrapped, equal to themselves only.
        if isinstance(key, InertKey):
            return InertKey(self.map(key.value, depth))
        return tuple(self._key(k, depth) if isinstance(k, InertKey | tuple) else k for k in key)
