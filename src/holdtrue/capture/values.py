"""Plain values and objects to value nodes. The counterpart of `records/values.py`.

Nothing is pickled: an object is asked for its `state_dict()`, `__getstate__()` or attributes, and
what it answers is encoded in turn. What cannot be kept becomes a finding with its path.
"""

import argparse
import random
import reprlib
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from datetime import datetime, time
from enum import Enum
from functools import partial
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from holdtrue.capture.arrays import add_array
from holdtrue.capture.leaves import LEAVES, generator_node
from holdtrue.capture.objects import take_state
from holdtrue.capture.tensors import TensorSet, add_tensor
from holdtrue.findings import Finding
from holdtrue.limits import limits
from holdtrue.records.arrays import describe_dtype
from holdtrue.records.leaf_nodes import b64, is_unicode, random_node, scalar_node
from holdtrue.records.trust import class_name
from holdtrue.records.values import FACTORIES, TAG, join

_FACTORY_NAMES = {factory: name for name, factory in FACTORIES.items()}
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, np.ufunc, partial)


class ValueEncoder:
    """Encodes the values of one part; gathers tensors and findings in its `TensorSet`."""

    def __init__(self, tensors: TensorSet) -> None:
        self.tensors = tensors
        self._seen: dict[int, Any] = {}  # id of a mutable value → its node
        self._open: set[int] = set()  # tuples being encoded
        self._shared: dict[int, int] = {}  # id of a node → the number it is shared under
        self._held: list[Any] = []  # keeps temporaries alive, so that no id is used twice

    def encode(self, value: Any, path: str) -> Any:
        """The node of a value, complete in itself."""
        return self._whole(value, path, inside_object=False)

    def encode_state(self, state: Any, path: str) -> Any:
        """The node of an object's own state, where named functions may stand."""
        return self._whole(state, path, inside_object=True)

    def encode_apart(self, state: Any, path: str) -> Any:
        # Kept in another tree, which cannot refer into this one.
        return ValueEncoder(self.tensors).encode_state(state, path)

    def _whole(self, value: Any, path: str, inside_object: bool) -> Any:
        try:
            node = self._encode(value, path, 0, inside_object)
            return self._number_shared(node) if self._shared else node
        except RecursionError:  # within the format's bound, but past what the caller's stack left
            return self._too_deep(path)

    def _too_deep(self, path: str) -> None:
        return self._refuse(
            path,
            f"nested deeper than {limits().value_depth} levels, or than the stack allows",
            "the format bounds its depth",
            "flatten the value",
        )

    def _encode(self, value: Any, path: str, depth: int, inside_object: bool) -> Any:
        kind = type(value)
        if value is None or kind is bool:
            return value
        if depth > limits().value_depth:
            return self._too_deep(path)
        leaf = LEAVES.get(kind)
        if leaf is not None:
            return leaf(value)
        if id(value) in self._seen:
            return self._reference(id(value))
        container = _CONTAINERS.get(kind)
        if container is not None:
            return container(self, value, path, depth, inside_object)
        return self._encode_other(value, path, depth, inside_object)

    def _encode_other(self, value: Any, path: str, depth: int, inside_object: bool) -> Any:
        if isinstance(value, Tensor):
            key = add_tensor(self.tensors, value, path, encode=self.encode_apart)
            return {TAG: "tensor", "v": key}
        if type(value) is np.ndarray:
            if value.dtype.hasobject:
                return self._refuse(
                    path,
                    "a NumPy array of Python objects",
                    "its elements have no fixed bytes",
                    "save array.tolist()",
                )
            return self._array(value, path)
        if isinstance(value, np.generic) and not value.dtype.hasobject:
            return scalar_node(value)
        if isinstance(value, np.dtype) and not value.hasobject:
            return {TAG: "np.dtype", "v": describe_dtype(value)}
        if isinstance(value, Enum):
            inner = self._encode(value.value, path, depth + 1, inside_object)
            return {TAG: "enum", "class": class_name(type(value)), "name": value.name, "v": inner}
        if isinstance(value, tuple) and hasattr(type(value), "_fields"):
            cls: Any = type(value)
            names: tuple[str, ...] = cls._fields
            fields = self._pairs(dict(zip(names, value, strict=True)), path, depth, inside_object)
            return {TAG: "namedtuple", "class": class_name(type(value)), "v": fields}
        if isinstance(value, type):
            return {TAG: "class", "v": class_name(value)}
        if isinstance(value, _FUNCTIONS):
            return self._function(value, path, inside_object)
        if isinstance(value, np.random.Generator | np.random.RandomState | np.random.BitGenerator):
            return self._numpy_random(value, path, depth)
        return self._object(value, path, depth)

    # -- containers -----------------------------------------------------------------------------

    def _list(self, value: Any, path: str, depth: int, inside: bool) -> Any:
        node: list[Any] = []
        self._remember(value, node)
        for i, item in enumerate(value):
            node.append(self._encode(item, f"{path}[{i}]", depth + 1, inside))
        return node

    def _tuple(self, value: Any, path: str, depth: int, inside: bool) -> Any:
        if id(value) in self._open:
            return self._refuse(
                path,
                "a tuple that contains itself",
                "it cannot be built again, since tuples are made whole",
                "break the cycle, or use a list",
            )
        if depth < limits().value_depth and all(type(item) is int for item in value):
            # As the 625 numbers of Python's random state are: a step each would show in a stall.
            nodes = [LEAVES[int](item) for item in value]
            return {TAG: "size" if type(value) is torch.Size else "tuple", "v": nodes}
        self._open.add(id(value))
        nodes = [self._encode(v, f"{path}[{i}]", depth + 1, inside) for i, v in enumerate(value)]
        self._open.discard(id(value))
        if type(value) is torch.Size:
            return {TAG: "size", "v": nodes}
        return {TAG: "tuple", "v": nodes}

    def _set(self, value: Any, path: str, depth: int, inside: bool) -> Any:
        node: dict[str, Any] = {TAG: type(value).__name__, "v": []}
        if type(value) is set:
            self._remember(value, node)
        nodes = [self._encode(v, f"{path}{{{reprlib.repr(v)}}}", depth + 1, inside) for v in value]
        if not any(isinstance(n, dict) for n in nodes):
            nodes.sort(key=msgspec.json.encode)  # the same set gives the same bytes
        node["v"] = nodes
        return node

    def _deque(self, value: Any, path: str, depth: int, inside: bool) -> Any:
        node: dict[str, Any] = {TAG: "deque", "v": []}
        if value.maxlen is not None:
            node["maxlen"] = value.maxlen
        self._remember(value, node)
        for i, item in enumerate(value):
            node["v"].append(self._encode(item, f"{path}[{i}]", depth + 1, inside))
        return node

    def _dict(self, value: Any, path: str, depth: int, inside: bool) -> Any:
        if all(type(k) is str and k[:1] != TAG and is_unicode(k) for k in value):
            node: dict[str, Any] = {}
            self._remember(value, node)
            for key, item in value.items():
                node[key] = self._encode(item, join(path, key), depth + 1, inside)
            return node
        return self._mapping(value, path, depth, inside)

    def _mapping(self, value: Any, path: str, depth: int, inside: bool) -> Any:
        name: dict[Any, str] = {
            OrderedDict: "odict",
            Counter: "counter",
            defaultdict: "defaultdict",
        }
        node: dict[str, Any] = {TAG: name.get(type(value), "dict")}
        self._remember(value, node)
        if type(value) is defaultdict:
            factory = value.default_factory
            node["factory"] = _FACTORY_NAMES.get(factory) if _hashable(factory) else None
            if node["factory"] is None:
                node["factory"] = self._encode(factory, f"{path}.default_factory", depth + 1, True)
        node["v"] = self._pairs(value, path, depth, inside)
        # A state_dict carries its modules' versions as an attribute, `_metadata`.
        attributes = getattr(value, "__dict__", None)
        if attributes:
            node["attributes"] = self._encode(attributes, f"{path}.__dict__", depth + 1, inside)
        return node

    def _pairs(self, value: Any, path: str, depth: int, inside: bool) -> list[Any]:
        return [
            [
                self._encode(k, f"{path} key", depth + 1, inside),
                self._encode(v, join(path, k), depth + 1, inside),
            ]
            for k, v in value.items()
        ]

    def _array(self, value: Any, path: str) -> Any:
        node: dict[str, Any] = {TAG: "tensor", "v": add_array(self.tensors, value, path)}
        if value.dtype.names is not None:
            node["dtype"] = describe_dtype(value.dtype)  # the file itself has bytes only
            self._remember(value, node)
        return node

    def _simple(self, value: Any, path: str, depth: int, inside: bool) -> Any:
        # Leaves that can change: two references to one must stay one.
        node = _CHANGING[type(value)](value)
        self._remember(value, node)
        return node

    def _namespace(self, value: Any, path: str, depth: int, inside: bool) -> Any:
        node: dict[str, Any] = {TAG: "namespace"}
        if type(value) is types.SimpleNamespace:
            node["simple"] = True
        self._remember(value, node)
        node["v"] = self._encode(dict(vars(value)), path, depth + 1, inside)
        return node

    def _parts(self, value: Any, path: str, depth: int, inside: bool) -> Any:
        names = ("start", "stop", "step")
        parts = [self._encode(getattr(value, n), f"{path}.{n}", depth + 1, inside) for n in names]
        return {TAG: type(value).__name__, "v": parts}

    def _moment(self, value: Any, path: str, depth: int, inside: bool) -> Any:
        plain = value.replace(tzinfo=None, fold=0).isoformat()
        node: dict[str, Any] = {TAG: type(value).__name__, "v": plain}
        if value.fold:
            node["fold"] = value.fold
        if value.tzinfo is not None:
            node["tz"] = self._encode(value.tzinfo, f"{path}.tzinfo", depth + 1, inside)
        return node

    # -- objects --------------------------------------------------------------------------------

    def _object(self, value: Any, path: str, depth: int) -> Any:
        node: dict[str, Any] = {TAG: "object", "class": class_name(type(value))}
        self._remember(value, node)
        try:
            parts = take_state(value)
        except Exception as error:  # the object's own code, or the interpreter's refusal
            return self._refuse(
                path,
                f"a {class_name(type(value))} cannot be kept",
                f"it gives no state: {error}",
                "give it state_dict() and load_state_dict(), or "
                "__getstate__ and __setstate__, or leave it out",
            )
        node["via"] = parts.via
        self._held.append(parts)
        if parts.args:
            node["args"] = [
                self._encode(a, f"{path}.args[{i}]", depth + 1, True)
                for i, a in enumerate(parts.args)
            ]
        state_path = path if isinstance(parts.state, dict) else f"{path}.state"
        node["state"] = self._encode(parts.state, state_path, depth + 1, True)
        if parts.items is not None:
            node["items"] = self._encode(parts.items, path, depth + 1, True)
        return node

    def _function(self, value: Any, path: str, inside_object: bool) -> Any:
        name = class_name(value)
        local = "<" in name or isinstance(value, partial | types.MethodType)
        if inside_object and not local:
            return {TAG: "callable", "v": name}
        return self._refuse(
            path,
            f"a function, {name}",
            "code is not kept as a value; a lambda or local function has no name "
            "by which to find it again",
            "keep what the function depends on, and build it again in code",
        )

    def _numpy_random(self, value: Any, path: str, depth: int) -> Any:
        bits = getattr(value, "bit_generator", None) or getattr(value, "_bit_generator", value)
        node: dict[str, Any] = {
            TAG: "np.random",
            "class": type(value).__name__,
            "bits": type(bits).__name__,
        }
        self._remember(value, node)
        state = (
            value.get_state(legacy=False) if type(value) is np.random.RandomState else bits.state
        )
        node["v"] = self._encode(state, path, depth + 1, False)
        return node

    # -- sharing --------------------------------------------------------------------------------

    def _remember(self, value: Any, node: Any) -> None:
        self._seen[id(value)] = node
        self._held.append(value)

    def _reference(self, identity: int) -> Any:
        node = self._seen[identity]
        number = self._shared.setdefault(id(node), len(self._shared) + 1)
        return {TAG: "ref", "id": number}

    def _number_shared(self, node: Any) -> Any:
        """Wrap the nodes that are referred to, now that it is known which they are."""
        number = self._shared.get(id(node))
        if isinstance(node, list):
            inner = [self._number_shared(n) for n in node]
            return inner if number is None else {TAG: "list", "id": number, "v": inner}
        if not isinstance(node, dict):
            return node
        if number is not None and TAG not in node:
            pairs = [[k, self._number_shared(n)] for k, n in node.items()]
            return {TAG: "dict", "id": number, "v": pairs}
        made = {k: self._number_shared(n) for k, n in node.items()}
        return made if number is None else {**made, "id": number}

    def _refuse(self, path: str, what: str, why: str, fix: str) -> None:
        self.tensors.findings.append(
            Finding(
                code="value-unsupported",
                severity="error",
                where=f"{self.tensors.part}/{path}",
                what=f"this value cannot be kept: {what}",
                why=why,
                fix=fix,
            )
        )


def _hashable(value: Any) -> bool:
    return isinstance(value, type) or value is None


_CHANGING: dict[type, Callable[[Any], dict[str, Any]]] = {
    bytearray: lambda value: {TAG: "bytearray", "v": b64(value)},
    torch.Generator: generator_node,
    random.Random: random_node,
}
_CONTAINERS: dict[type, Callable[[ValueEncoder, Any, str, int, bool], Any]] = {
    list: ValueEncoder._list,
    tuple: ValueEncoder._tuple,
    torch.Size: ValueEncoder._tuple,
    set: ValueEncoder._set,
    frozenset: ValueEncoder._set,
    dict: ValueEncoder._dict,
    OrderedDict: ValueEncoder._mapping,
    Counter: ValueEncoder._mapping,
    defaultdict: ValueEncoder._mapping,
    deque: ValueEncoder._deque,
    range: ValueEncoder._parts,
    slice: ValueEncoder._parts,
    datetime: ValueEncoder._moment,
    time: ValueEncoder._moment,
    argparse.Namespace: ValueEncoder._namespace,
    types.SimpleNamespace: ValueEncoder._namespace,
    **dict.fromkeys(_CHANGING, ValueEncoder._simple),
}
