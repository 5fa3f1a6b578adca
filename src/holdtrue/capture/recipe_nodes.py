"""Constructor arguments to the value nodes of a recipe; `records/recipe.py` lists their kinds."""

import base64
import functools
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from holdtrue.capture.raw import dtype_name, raw_bytes
from holdtrue.capture.tensors import tensor_set
from holdtrue.capture.values import ValueEncoder
from holdtrue.records.recipe import TORCH_FUNCTIONS
from holdtrue.records.trust import class_name
from holdtrue.records.values import TAG

INLINE_BYTES = 1 << 16  # of one tensor or array in a recipe; larger ones belong into buffers
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType)


class RecipeEncoder(ValueEncoder):
    """Encodes what a constructor takes; gathers what it names and what it refuses.

    `module_node` says how a module among the values is built; while a constructor runs nobody can
    say that yet, and with `live` modules are held as they are, to be encoded when saving.
    """

    def __init__(
        self, module_node: Callable[[nn.Module], Any] | None = None, *, live: bool = False
    ) -> None:
        super().__init__(tensor_set("argument"))
        self.named: dict[str, Any] = {}  # classes and functions by full name
        self._module_node, self._live = module_node, live
        self._built: dict[int, Any] = {}  # id of a module → its node
        self._again = 0
        self.inline = False  # keep small tensors by value, not only their shape
        self._recorded = 1 << 30  # numbers of recorded nodes, far from those given here

    def refused(self) -> str:
        """Why some value cannot stand in a recipe; "" when all can."""
        found = self.tensors.findings
        return f"{found[0].where}: {found[0].what}" if found else ""

    def refuse(self, path: str, what: str) -> None:
        self._refuse(path, what, "", "")

    def encode_module(self, module: nn.Module, path: str = "", depth: int = 0) -> Any:
        """The node of a module among the arguments; the same module again is a reference."""
        if id(module) in self._built:
            held = self._built[id(module)]["v"]
            self._again += 1
            return {TAG: "again", "v": held.setdefault("id", self._again)}
        if self._live or self._module_node is None:
            return {TAG: "live", "v": module}
        node: dict[str, Any] = {TAG: "build"}
        self._built[id(module)] = node
        node["v"] = self._module_node(module)
        return node

    def name(self, value: Any) -> str:
        """The full name of a class or function, which the recipe then depends on."""
        name = class_name(value)
        self.named[name] = value
        return name

    def resolve_live(self, node: Any, renumbered: dict[int, int] | None = None) -> Any:
        """A recorded node with the modules in it encoded; what was shared in it stays shared.

        It was numbered on its own, so its numbers are exchanged for some that are free here.
        """
        ids = {} if renumbered is None else renumbered
        if isinstance(node, list):
            return [self.resolve_live(n, ids) for n in node]
        if not isinstance(node, dict):
            return node
        if node.get(TAG) == "live":
            return self.encode_module(node["v"])
        made = {key: self.resolve_live(n, ids) for key, n in node.items()}
        if TAG in node and type(node.get("id")) is int:
            if node["id"] not in ids:
                self._recorded += 1
                ids[node["id"]] = self._recorded
            made["id"] = ids[node["id"]]
        return made

    def finished(self, node: Any) -> Any:
        """The node of a root, once all that it shares is known."""
        return self._number_shared(node) if self._shared else node

    def _encode_other(self, value: Any, path: str, depth: int, inside_object: bool) -> Any:
        if isinstance(value, nn.Module):
            return self.encode_module(value, path, depth)
        if isinstance(value, Tensor):
            return self._tensor(value, path)
        if type(value) is np.ndarray:
            return self._array(value, path)
        if isinstance(value, functools.partial):
            return self._partial(value, path, depth)
        if isinstance(value, _FUNCTIONS):
            return self._named_function(value, path)
        if is_config(value):
            said = value.to_dict()
            if vars(value).get("transformers_version") is None:
                said.pop("transformers_version", None)  # added by to_dict itself
            values = self._encode(said, path, depth + 1, True)
            return {TAG: "config", "v": {"class": self.name(type(value)), "values": values}}
        if isinstance(value, type):
            return {TAG: "class", "v": self.name(value)}
        self.name(type(value))
        return super()._encode_other(value, path, depth, True)

    def _tensor(self, value: Tensor, path: str) -> Any:
        shape = list(value.shape)
        if value.layout is not torch.strided or value.is_quantized:
            return self._refuse(path, f"a {value.layout} tensor as an argument", "", "")
        if self.inline:
            if value.numel() * value.itemsize > INLINE_BYTES or value.device.type == "meta":
                return self._refuse(
                    path, "a tensor that is neither parameter nor buffer: no file holds it", "", ""
                )
            data = base64.b64encode(raw_bytes(value.detach())).decode()
            return {
                TAG: "inline",
                "v": {"dtype": dtype_name(value.dtype), "shape": shape, "data": data},
            }
        kept = {"dtype": dtype_name(value.dtype), "shape": shape}
        return {TAG: "empty", "v": {**kept, "parameter": isinstance(value, nn.Parameter)}}

    def _array(self, value: "np.ndarray[Any, Any]", path: str) -> Any:
        if value.dtype.hasobject or value.nbytes > INLINE_BYTES:
            return self._refuse(path, f"an array of {value.nbytes:,} bytes", "", "")
        data = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
        return {TAG: "inline", "v": {"numpy": value.dtype.str, "shape": list(value.shape),
                                     "data": data}}  # fmt: skip

    def _partial(self, value: "functools.partial[Any]", path: str, depth: int) -> Any:
        return {
            TAG: "partial",
            "v": {
                "of": self._encode(value.func, f"{path}.func", depth + 1, True),
                "args": self._encode(list(value.args), f"{path}.args", depth + 1, True),
                "kwargs": self._encode(dict(value.keywords), f"{path}.keywords", depth + 1, True),
            },
        }

    def _named_function(self, value: Any, path: str) -> Any:
        name = function_name(value)
        if name is None:
            return self._refuse(
                path,
                f"the function {getattr(value, '__qualname__', value)!r} has no name to find it by",
                "",
                "",
            )
        self.named[name] = value
        return {TAG: "function", "v": name}


def function_name(value: Any) -> str | None:
    """The name under which a function is found again; None for lambdas and local functions."""
    short = getattr(value, "__name__", "")
    if vars(functional).get(short) is value:
        return f"torch.nn.functional.{short}"
    if f"torch.{short}" in TORCH_FUNCTIONS and vars(torch).get(short) is value:
        return f"torch.{short}"
    module = sys.modules.get(getattr(value, "__module__", None) or "")
    if module is None or vars(module).get(short) is not value:
        return None
    return class_name(value)


def is_config(value: Any) -> bool:
    """A configuration of transformers: by the names of its bases, so that nothing is imported."""
    return any(
        class_name(c)
        in (
            "transformers.configuration_utils.PretrainedConfig",
            "transformers.configuration_utils.PreTrainedConfig",
        )
        for c in type(value).__mro__
    )
