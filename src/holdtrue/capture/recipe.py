"""Candidates for how a live module could be built again, the most reliable first."""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from holdtrue.capture.buildable import ARGUMENTS
from holdtrue.capture.module import unwrap
from holdtrue.capture.recipe_nodes import RecipeEncoder, is_config
from holdtrue.capture.signatures import Arguments, NoRecipeError, match_signature
from holdtrue.records.recipe import Via
from holdtrue.records.trust import class_name

_PRETRAINED = "transformers.modeling_utils.PreTrainedModel"
_MOST_NESTED = 64  # modules inside one another in one recipe; each costs several stack frames


class Candidate:
    """A node that may build a module; `named` are the live classes and functions it names."""

    def __init__(self, via: Via, node: Any, named: dict[str, Any]) -> None:
        self.via, self.node, self.named = via, node, named


def candidates(module: nn.Module) -> Iterator[Candidate | str]:
    """Ways to build a module, to be proved in this order; for each that fails, why."""
    module = unwrap(module)
    for via in _sources(module):
        encoder = _ModuleEncoder()
        try:
            node = encoder.encode_root(module, via)
        except NoRecipeError as error:
            yield str(error)
            continue
        if encoder.refused():
            yield encoder.refused()
        else:
            yield Candidate(via, encoder.finished(node), encoder.named)


class _ModuleEncoder(RecipeEncoder):
    """Encodes modules by the first source that each has."""

    def __init__(self) -> None:
        super().__init__(self._first)
        self._nested = 0

    def encode_root(self, module: nn.Module, via: Via) -> Any:
        node: dict[str, Any] = {"$": "build"}
        self._built[id(module)] = node
        node["v"] = {}  # until it is known
        node["v"] = self._by(module, via)
        return node

    def _first(self, module: nn.Module) -> Any:
        return self._by(unwrap(module), _sources(module)[0])

    def _by(self, module: nn.Module, via: Via) -> Any:
        self._nested += 1
        if self._nested > _MOST_NESTED:
            raise NoRecipeError(f"modules are nested deeper than {_MOST_NESTED} constructors")
        try:
            name = self.name(type(module))
            if via == "buildable":
                recorded: dict[str, Any] = vars(module)[ARGUMENTS]
                if recorded["refused"]:
                    raise NoRecipeError(recorded["refused"])
                self.named.update(recorded["named"])
                return {"class": name, **self.resolve_live(recorded["node"])}
            found = _BY_SOURCE[via](module)
            args = [self._encode(v, f"args[{i}]", 0, True) for i, v in enumerate(found.args)]
            kwargs = {k: self._encode(v, k, 0, True) for k, v in found.kwargs.items()}
            return {"class": name, "args": args, "kwargs": kwargs}
        finally:
            self._nested -= 1


def _sources(module: nn.Module) -> list[Via]:
    found: list[Via] = []
    if ARGUMENTS in vars(module):
        found.append("buildable")
    pretrained = any(class_name(c) == _PRETRAINED for c in type(module).__mro__)
    if pretrained and is_config(vars(module).get("config")):
        found.append("config")
    if callable(getattr(type(module), "save_hyperparameters", None)):
        found.append("hparams")
    return [*found, "signature"]


def _from_config(module: nn.Module) -> Arguments:
    return Arguments([vars(module)["config"]], {})


def _from_hparams(module: Any) -> Arguments:
    """Lightning's own record of the constructor's arguments."""
    values = module.hparams
    if not isinstance(values, Mapping):
        raise NoRecipeError("hparams is not a mapping")
    kwargs = {str(k): v for k, v in values.items()}
    parameters = inspect.signature(type(module).__init__).parameters.values()
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        kwargs = {k: v for k, v in kwargs.items() if k in {p.name for p in parameters}}
    return Arguments([], kwargs)


_BY_SOURCE = {"config": _from_config, "hparams": _from_hparams, "signature": match_signature}
