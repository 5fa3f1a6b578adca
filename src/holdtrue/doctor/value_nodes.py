"""The tree of a view to the value nodes of a manifest: what `capture.values` does with live values.

Records stay records: they are written with their class's name and come back inert. What has no
node is entered as left out, with its path.
"""

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any

import numpy as np

from holdtrue.doctor.keeping import Kept, keep_tensor, update_record
from holdtrue.formats.pickle_context import ArgumentsError
from holdtrue.formats.pickle_numpy import dtype_of as numpy_dtype_of
from holdtrue.formats.pickle_source import over_budget
from holdtrue.formats.view import LazyTensor
from holdtrue.limits import limits
from holdtrue.records.arrays import describe_dtype
from holdtrue.records.dtypes import DTYPES
from holdtrue.records.inert import InertKey, NamedReference, Record
from holdtrue.records.leaf_nodes import LEAVES, b64, is_unicode, scalar_node
from holdtrue.records.values import FACTORIES, TAG, join

_FACTORY_NAMES = {factory: name for name, factory in FACTORIES.items()}
_LAYOUTS = ("strided", "sparse_coo", "sparse_csr", "sparse_csc", "sparse_bsr", "sparse_bsc")
_MEMORY_FORMATS = ("contiguous_format", "preserve_format", "channels_last", "channels_last_3d")
_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")


class TreeEncoder:
    """Encodes the values of one part; gathers tensors, and what is left out, in `kept`."""

    def __init__(self, kept: Kept, part: str, tree: Any) -> None:
        self.kept, self.part = kept, part
        self._shared = _repeated(tree)  # id of a value → its number, 0 before it is written
        self._numbers = 0
        self._open: set[int] = set()
        self._nodes, self._text = limits().entries, limits().manifest_bytes

    def encode(self, value: Any, path: str = "", depth: int = 0, *, tensors: bool = True) -> Any:
        """The node of a value. Raises OpenError for a tree that unfolds past the budgets."""
        self._spend(value)
        if value is None or type(value) is bool:
            return value
        if depth > limits().value_depth:
            return self._leave_out(path, f"nested deeper than {limits().value_depth}")
        leaf = LEAVES.get(type(value))
        if leaf is not None:
            return leaf(value)
        if type(value) is bytearray:
            return {TAG: "bytearray", "v": b64(bytes(value))}
        if id(value) in self._open:
            return self._leave_out(path, "it contains itself")
        number = self._shared.get(id(value))
        if number:
            return {TAG: "ref", "id": number}
        return self._encode_once(value, path, depth, tensors, number is not None)

    def _encode_once(self, value: Any, path: str, depth: int, tensors: bool, shared: bool) -> Any:
        # A list, dict or set can be referred to from inside itself; what is made whole cannot.
        early = shared and isinstance(value, (list, dict, set, deque))
        if early:
            self._number(value)
        else:
            self._open.add(id(value))
        node = self._node(value, path, depth + 1, tensors)
        self._open.discard(id(value))
        if not shared or node is None:
            return node
        if not early and node[TAG] in _NO_ID:
            return node
        if not early:
            self._number(value)
        number = self._shared[id(value)]
        if isinstance(node, list):
            return {TAG: "list", "id": number, "v": node}
        if TAG not in node:
            return {TAG: "dict", "id": number, "v": [[k, v] for k, v in node.items()]}
        return {**node, "id": number}

    def _number(self, value: Any) -> None:
        self._numbers += 1
        self._shared[id(value)] = self._numbers

    def _node(self, value: Any, path: str, depth: int, tensors: bool) -> Any:
        if isinstance(value, LazyTensor):
            return self._tensor(value, path, depth, tensors)
        if isinstance(value, Record):
            return self._record(value, path, depth, tensors)
        if isinstance(value, NamedReference):
            return _reference(value.name)
        if isinstance(value, dict):
            return self._mapping(value, path, depth, tensors)
        if isinstance(value, (list, tuple, set, frozenset, deque)):
            return self._sequence(value, path, depth, tensors)
        if isinstance(value, (range, slice)):
            parts = [self.encode(v, path, depth) for v in (value.start, value.stop, value.step)]
            return {TAG: type(value).__name__, "v": parts}
        if isinstance(value, np.generic) and not value.dtype.hasobject:
            return scalar_node(value)
        if isinstance(value, np.dtype) and not value.hasobject:
            return {TAG: "np.dtype", "v": describe_dtype(value)}
        return self._leave_out(path, f"a {type(value).__name__} has no place in a manifest")

    def _tensor(self, value: LazyTensor, path: str, depth: int, tensors: bool) -> Any:
        if not tensors:
            return self._leave_out(path, "a tensor among the attributes of a tensor")
        key = keep_tensor(self.kept, self.part, path, value)
        if key is None:
            return None
        self.keep_attributes(key, value, path, depth)
        return {TAG: "tensor", "v": key}

    def keep_attributes(self, key: str, tensor: LazyTensor, path: str, depth: int = 0) -> None:
        """Enter the attributes of a tensor subclass into its record."""
        state = tensor.state
        if tensor.layout == "subclass" and isinstance(state, dict):
            state = {k: v for k, v in state.items() if not isinstance(v, LazyTensor)}
        known = self.kept.records[key].state is not None
        if state and not known and not tensor.layout.startswith("sparse"):
            node = self.encode(state, f"{path}#attributes", depth, tensors=False)
            update_record(self.kept, key, state=node)

    def _sequence(self, value: Any, path: str, depth: int, tensors: bool) -> Any:
        kind = next(k for k in (list, tuple, set, frozenset, deque) if isinstance(value, k))
        items = list(value)
        if kind in (set, frozenset):
            items = [v for v in items if self._is_key(v, path)]
        nodes = [
            self.encode(v, f"{path}/{i}" if path else str(i), depth, tensors=tensors)
            for i, v in enumerate(items)
        ]
        if kind is list:
            return nodes
        node: dict[str, Any] = {TAG: kind.__name__, "v": nodes}
        if kind is deque and value.maxlen is not None:
            node["maxlen"] = value.maxlen
        return node

    def _mapping(self, value: Any, path: str, depth: int, tensors: bool) -> Any:
        def inner(key: Any, item: Any) -> Any:
            return self.encode(item, join(path, key), depth, tensors=tensors)

        pairs = [(k, v) for k, v in value.items() if self._is_key(k, path)]
        plain = all(type(k) is str and k[:1] != TAG and is_unicode(k) for k, _ in pairs)
        if type(value) is dict and plain:
            return {k: inner(k, v) for k, v in pairs}
        kinds: dict[type, str] = {
            OrderedDict: "odict",
            Counter: "counter",
            defaultdict: "defaultdict",
        }
        node: dict[str, Any] = {TAG: kinds.get(type(value), "dict")}
        if type(value) is defaultdict:
            node["factory"] = _FACTORY_NAMES.get(value.default_factory, "none")
        node["v"] = [[self.encode(k, path, depth), inner(k, v)] for k, v in pairs]
        attributes = getattr(value, "__dict__", None)
        if attributes:
            node["attributes"] = self.encode(attributes, f"{path}.__dict__", depth, tensors=tensors)
        return node

    def _record(self, record: Record, path: str, depth: int, tensors: bool) -> Any:
        known = _known_record(record)
        if known is not None:
            return known
        if not is_unicode(record.class_name):
            return self._leave_out(path, "the name of its class is no text")
        plain = record.state is None or isinstance(record.state, (dict, tuple))
        node: dict[str, Any] = {
            TAG: "object",
            "class": record.class_name,
            "via": "dict" if plain else "setstate",
        }
        if record.args:
            node["args"] = [
                self.encode(v, f"{path}/args.{i}" if path else f"args.{i}", depth, tensors=tensors)
                for i, v in enumerate(record.args)
            ]
        if record.kwargs:
            node["kwargs"] = self.encode(record.kwargs, path, depth, tensors=tensors)
        node["state"] = self.encode(record.state, path, depth, tensors=tensors)
        if record.items is not None:
            node["items"] = self.encode(record.items, path, depth, tensors=tensors)
        return node

    def _is_key(self, key: Any, path: str) -> bool:
        """Whether a dict key or set member can be one again: a record cannot be hashed."""
        pending = [key]
        while pending:
            item = pending.pop()
            if isinstance(item, (InertKey, Record, LazyTensor)):
                self._leave_out(join(path, "key"), "an object is a key")
                return False
            if isinstance(item, (tuple, frozenset)):
                pending += item
        return True

    def _leave_out(self, path: str, why: str) -> None:
        self.kept.left_out.setdefault(f"{self.part}/{path}" if path else self.part, why)

    def _spend(self, value: Any) -> None:
        self._nodes -= 1
        self._text -= len(value) if isinstance(value, (str, bytes, bytearray)) else 8
        if self._nodes < 0:
            raise over_budget(self.part, "entries", limits().entries, "values in one part")
        if self._text < 0:
            raise over_budget(
                self.part, "manifest_bytes", limits().manifest_bytes, "bytes of plain values"
            )


# Nodes that say all of what they are: written again where they are referred to.
_NO_ID = frozenset({"device", "size", "path"})


def _reference(name: str) -> Any:
    package, _, last = name.rpartition(".")
    if package == "torch":
        kinds: dict[str, Callable[[str], bool]] = {
            "dtype": DTYPES.__contains__,
            "layout": _LAYOUTS.__contains__,
            "memory_format": _MEMORY_FORMATS.__contains__,
        }
        for kind, holds in kinds.items():
            if holds(last):
                return {TAG: kind, "v": last}
    return {TAG: "class", "v": name}


def _known_record(record: Record) -> Any:
    """Objects that have a node of their own kind."""
    args = record.args
    if record.class_name == "numpy.dtype":
        try:
            return {TAG: "np.dtype", "v": describe_dtype(numpy_dtype_of(record))}
        except (ArgumentsError, TypeError):
            return None
    if record.state is not None or record.items is not None or record.kwargs or not args:
        return None
    if record.class_name == "torch.Size" and len(args) == 1 and isinstance(args[0], tuple):
        sizes = list(args[0])
        return {TAG: "size", "v": sizes} if all(type(n) is int for n in sizes) else None
    if record.class_name == "torch.device" and type(args[0]) is str:
        if len(args) == 1 or (len(args) == 2 and type(args[1]) is int):
            return {TAG: "device", "v": ":".join(str(a) for a in args)}
        return None
    package, _, name = record.class_name.rpartition(".")
    texts = [a for a in args if type(a) is str and is_unicode(a)]
    if package in ("pathlib", "pathlib._local") and name in _PATHS and len(texts) == len(args):
        return {TAG: "path", "v": [name, "/".join(texts).replace("//", "/", 1)]}
    return None


def _repeated(tree: Any) -> dict[int, int]:
    """The ids of what stands in several places and can be referred to, each with 0."""
    seen: set[int] = set()
    again: dict[int, int] = {}
    pending = [tree]
    while pending:
        value = pending.pop()
        if not isinstance(value, (dict, list, tuple, set, frozenset, deque, Record)):
            continue
        if id(value) in seen:
            if not isinstance(value, (tuple, frozenset)):
                again[id(value)] = 0
            continue
        seen.add(id(value))
        if isinstance(value, Record):
            pending += [*value.args, value.kwargs, value.state, value.items]
        elif isinstance(value, dict):
            pending += value.values()
            pending += [key for key in value if isinstance(key, tuple)]
            pending.append(getattr(value, "__dict__", None))
        else:
            pending += value
    return again
