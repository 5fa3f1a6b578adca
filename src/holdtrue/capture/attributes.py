"""Plain attributes of a module as nodes that can be compared, on any machine.

Like value nodes, but nothing is refused: what has no plain value is named by its class. Where a
thing stands (devices, absolute paths) and what the environment holds is left out.
"""

import functools
import os
import re
import types
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import PurePath
from typing import Any

import msgspec
import numpy as np
import torch
import xxhash
from torch import Tensor, nn

from holdtrue.capture.installed import is_installed
from holdtrue.capture.leaves import leaf_node
from holdtrue.capture.raw import raw_bytes
from holdtrue.capture.source_code import SourceCode
from holdtrue.records.architecture import masked_digest
from holdtrue.records.trust import class_name
from holdtrue.records.values import TAG

_DEPTH = 12
_ITEMS = 1000  # of one container; more are kept as a digest
_TEXT = 4096  # characters of one string; a longer one is kept as a digest
_EXACT = 1 << 53
_WHOLE, _WITHIN = 6, 12  # characters from which a string is taken for one of the environment's
_DIGESTED_BYTES = 1 << 20  # of a plain tensor: above it, its values are not compared
_DEVICE = re.compile(r"(cpu|cuda|mps|xpu|meta|npu|hpu|tpu)(:\d+)?\Z")
_ABSOLUTE = re.compile(r"(~?/[^\s:]*/|[A-Za-z]:[\\/]|\\\\)\S*\Z")
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, np.ufunc)
# What a transformers config says of where and by whom it was made, and in which process: Python's
# hashes of strings are others in each.
_VOLATILE = frozenset({"_name_or_path", "name_or_path", "transformers_version", "_commit_hash",
                       "architectures", "torch_dtype", "dtype", "model_type",
                       "_original_object_hash"})  # fmt: skip


class Attributes:
    """Describes the attributes of one model; gathers the objects that several modules share."""

    def __init__(self, code: SourceCode, paths: Mapping[int, str], held: Mapping[int, str]) -> None:
        self.code = code
        self._paths, self._held = paths, held  # id(module) → path, id(tensor) → name
        self.objects: list[Any] = []
        self._positions: dict[int, int] = {}
        self._texts: dict[str, Any] = {}
        self._kept: list[Any] = []  # keeps what was seen alive, so that no id is used twice
        values = set(os.environ.values())
        self._environment = {v for v in values if len(v) >= _WHOLE}
        self._within = [v for v in values if len(v) >= _WITHIN]

    @property
    def environment(self) -> tuple[frozenset[str], frozenset[str]]:
        """The values of environment variables that are masked, whole and within a text."""
        return frozenset(self._environment), frozenset(self._within)

    def node(self, value: Any, depth: int = 0) -> Any:
        """The node of a value."""
        kind = type(value)
        # Nearly all attributes are one of these, and a large model has tens of thousands.
        if value is None or kind is bool or (kind is int and -_EXACT < value < _EXACT):
            return value
        if kind is str:
            node = self._texts.get(value)
            if node is None:
                node = self._texts[value] = self._text(value)
            return node
        if depth > _DEPTH:
            return {TAG: "opaque", "class": class_name(kind)}
        if kind is list or kind is tuple or kind is set or kind is frozenset or kind is deque:
            return self._sequence(value, depth)
        if isinstance(value, tuple):  # torch.Size, named tuples
            return {TAG: "tuple", "v": [self.node(v, depth + 1) for v in value]}
        if isinstance(value, Mapping) and type(value) is not type(os.environ):
            return self._mapping(value, depth)
        return self._other(value, depth)

    def _text(self, value: str) -> Any:
        if value in self._environment or any(part in value for part in self._within):
            return {TAG: "masked", "v": masked_digest(value)}
        if _DEVICE.match(value):
            return {TAG: "device"}
        if _ABSOLUTE.match(value):
            return {TAG: "path", "v": ["str", re.split(r"[\\/]", value.rstrip("\\/"))[-1]]}
        return leaf_node(value) if len(value) <= _TEXT else _digest("str", len(value), value)

    def _sequence(self, value: Any, depth: int) -> Any:
        nodes = [self.node(v, depth + 1) for v in value]
        if isinstance(value, set | frozenset):
            nodes.sort(key=msgspec.json.encode)
        if len(nodes) > _ITEMS:
            return _digest(type(value).__name__, len(nodes), nodes)
        return nodes if type(value) is list else {TAG: type(value).__name__, "v": nodes}

    def _mapping(self, value: Mapping[Any, Any], depth: int) -> Any:
        if len(value) > _ITEMS:
            pairs = [[self.node(k, depth + 1), self.node(v, depth + 1)] for k, v in value.items()]
            return _digest("dict", len(pairs), pairs)
        if all(type(k) is str and k[:1] != TAG for k in value):
            return {k: self.node(v, depth + 1) for k, v in value.items()}
        pairs = [[self.node(k, depth + 1), self.node(v, depth + 1)] for k, v in value.items()]
        return {TAG: "dict", "v": pairs}

    def _other(self, value: Any, depth: int) -> Any:
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, nn.Module):
            return self._module(value)
        if isinstance(value, torch.device | torch.Generator):
            return {TAG: type(value).__name__}
        if isinstance(value, np.ndarray):
            return _array(str(value.dtype), value.shape, value.tobytes, value.nbytes)
        if isinstance(value, functools.partial):
            inner = [value.func, list(value.args), dict(value.keywords)]
            return {TAG: "partial", "v": [self.node(v, depth + 1) for v in inner]}
        if isinstance(value, _FUNCTIONS):
            return self._function(value)
        if isinstance(value, type):
            return {TAG: "class", "v": class_name(value)}
        if isinstance(value, PurePath):
            return {TAG: "path", "v": ["path", value.name if value.is_absolute() else str(value)]}
        if isinstance(value, Enum):
            return {TAG: "enum", "class": class_name(type(value)), "name": value.name}
        leaf = leaf_node(value.item() if isinstance(value, np.generic) else value)
        return self._object(value, depth) if leaf is msgspec.UNSET else leaf

    def _tensor(self, value: Tensor) -> Any:
        if id(value) in self._held:
            return {TAG: "registered", "v": self._held[id(value)]}
        dtype, plain = (
            str(value.dtype).removeprefix("torch."),
            type(value) in (Tensor, nn.Parameter),
        )
        readable = plain and value.layout is torch.strided and value.device.type != "meta"
        nbytes = value.numel() * value.element_size() if readable else _DIGESTED_BYTES + 1
        node = _array(dtype, tuple(value.shape), lambda: raw_bytes(value), nbytes)
        return {**node, "requires_grad": True} if value.requires_grad else node

    def _module(self, value: nn.Module) -> Any:
        if id(value) in self._paths:
            return {TAG: "registered", "v": self._paths[id(value)]}
        count = sum(p.numel() for p in value.parameters())
        return {TAG: "module", "class": class_name(type(value)), "parameters": count}

    def _function(self, value: Any) -> Any:
        function = getattr(value, "__func__", value)
        key = self.code.add_function(function)
        if key is None:
            return {TAG: "callable", "v": class_name(value)}
        return {TAG: "function", "v": key}

    def _object(self, value: Any, depth: int) -> Any:
        if id(value) in self._positions:
            return {TAG: "shared", "v": self._positions[id(value)]}
        content = _content(value)
        if content is None:
            return {TAG: "opaque", "class": class_name(type(value))}
        position = self._positions[id(value)] = len(self.objects)
        self._kept.append(value)
        self.objects.append(None)  # its place, should it refer to itself
        node = {TAG: "object", "class": class_name(type(value))}
        self.objects[position] = {**node, "v": self._mapping(content, depth + 1)}
        return {TAG: "shared", "v": position}


def _content(value: Any) -> dict[str, Any] | None:
    """The fields of a config or of an object of user code; None for an installed class's others.

    A tokenizer, a trainer or a lock says nothing of the function, and may hold half the process.
    """
    cls = type(value)
    # Before dataclasses, which transformers' configs are from version 5 on.
    if any(c.__name__ in ("PretrainedConfig", "PreTrainedConfig") for c in cls.__mro__):
        held = {k: v for k, v in vars(value).items() if k not in _VOLATILE}
        # A tuple comes back from a config file as a list.
        held = {k: list(v) if type(v) is tuple else v for k, v in held.items()}
        kernel = "_attn_implementation_internal"
        return {"attn_implementation" if k == kernel else k: v for k, v in held.items()}
    if is_dataclass(value):
        return {f.name: getattr(value, f.name, None) for f in fields(value)}
    if isinstance(value, types.SimpleNamespace) or cls.__name__ in (
        "Namespace",
        "GenerationConfig",
    ):
        return {k: v for k, v in vars(value).items() if k not in _VOLATILE}
    if isinstance(value, msgspec.Struct):
        return {name: getattr(value, name) for name in value.__struct_fields__}
    dump = getattr(cls, "model_dump", None)  # pydantic
    if dump is not None and hasattr(cls, "model_fields"):
        return {name: getattr(value, name, None) for name in cls.model_fields}
    if not is_installed(cls) and isinstance(getattr(value, "__dict__", None), dict):
        return dict(vars(value))
    return None


def _array(dtype: str, shape: Any, read: Callable[[], Any], nbytes: int) -> dict[str, Any]:
    node: dict[str, Any] = {TAG: "array", "dtype": dtype, "shape": list(shape)}
    if nbytes <= _DIGESTED_BYTES:
        node["digest"] = xxhash.xxh3_128_hexdigest(read())
    return node


def _digest(cls: str, length: int, content: Any) -> dict[str, Any]:
    """A long text or container: equal ones have equal digests."""
    digest = xxhash.xxh3_128_hexdigest(msgspec.json.encode(content))
    return {TAG: "long", "class": cls, "length": length, "digest": digest}
