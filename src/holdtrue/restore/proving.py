"""At save time: a recipe counts only once a module built from it has proved to be the same."""

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import msgspec
from torch import nn

from holdtrue.capture.likeness import Difference, Pair
from holdtrue.capture.module import unwrap
from holdtrue.capture.recipe import Candidate, candidates
from holdtrue.capture.recipe_nodes import RecipeEncoder
from holdtrue.errors import RestoreError
from holdtrue.records.architecture import Architecture
from holdtrue.records.manifest import Part
from holdtrue.records.recipe import Rebuild, Recipe
from holdtrue.records.trust import Trust
from holdtrue.restore.build import construct

_MOST_CHANGES = 200  # made to a model after its constructor, before it is called another model


def rebuild(module: nn.Module) -> Rebuild:
    """A recipe that has been tried, or why there is none. Never raises."""
    module = unwrap(module)
    reasons: list[str] = []
    try:
        for found in candidates(module):
            if isinstance(found, str):
                reasons.append(found)
                continue
            recipe, reason = _prove(module, found)
            if recipe is not None:
                return Rebuild(recipe=recipe)
            reasons.append(reason)
    except Exception as error:  # the model's own code; a save must not fail for a convenience
        reasons.append(f"{type(error).__name__}: {error}")
    return Rebuild(reason="; ".join(dict.fromkeys(reasons))[:1000])


def with_recipes(parts: Mapping[str, Part], live: Mapping[str, Any]) -> dict[str, Part]:
    """The parts, those that are modules with what is known of how to build them."""
    return {
        name: msgspec.structs.replace(part, rebuild=_known(live[name], part.architecture))
        if part.kind == "module"
        else part
        for name, part in parts.items()
    }


# A proof takes as long as building the model, and a run saves one model many times.
_proved: WeakKeyDictionary[nn.Module, tuple[Architecture, Rebuild]] = WeakKeyDictionary()


def _known(module: nn.Module, architecture: Architecture | None) -> Rebuild:
    """What was found at an earlier save, while the module is described as it was then."""
    earlier = _proved.get(module)
    if earlier is not None and earlier[0] == architecture:
        return earlier[1]
    found = rebuild(module)
    # Values set after the constructor may be some that the description only mentions.
    if architecture is not None and not (found.recipe and found.recipe.attributes):
        _proved[module] = architecture, found
    return found


def _prove(module: nn.Module, found: Candidate) -> tuple[Recipe | None, str]:
    recipe, named = Recipe(via=found.via, node=found.node), dict(found.named)
    # Replacing a module may bring its own differences to light, so a few rounds.
    for _ in range(4):
        try:
            built = construct(recipe, _trust(named), "")
        except RestoreError as error:
            first = error.report.findings[0]
            return None, f"{first.what}: {first.why}"
        differences = list(Pair(module, built).differences())
        if not differences:
            return recipe, ""
        if len(differences) > _MOST_CHANGES:
            return None, f"{len(differences)} places differ from the constructor's"
        amended, reason = _amend(module, recipe, named, differences)
        if amended is None:
            return None, reason
        recipe = amended
    return None, _say(differences[0])


def _amend(
    module: nn.Module, recipe: Recipe, named: dict[str, Any], differences: list[Difference]
) -> tuple[Recipe | None, str]:
    """The recipe with what was changed after the constructor ran: layers replaced, values set."""
    modules, attributes = dict(recipe.modules), {k: dict(v) for k, v in recipe.attributes.items()}
    for difference in differences:
        at, name = difference.path, difference.attribute
        owner = _find(module, at)
        if name is not None and owner is not None and name in vars(owner):
            encoder = _ValueEncoder()
            node = encoder.encode_state(vars(owner)[name], name)
            if encoder.refused() or name in attributes.get(at, {}):
                return None, f"{_say(difference)} ({encoder.refused() or 'it does not stay set'})"
            named.update(encoder.named)
            attributes.setdefault(at, {})[name] = node
        elif name is None and at and at not in modules:
            node, reason = _replacement(owner, named)
            if reason:
                return None, f"{_say(difference)}; {reason}"
            modules[at] = node
        else:
            return None, _say(difference)
    amended = msgspec.structs.replace(recipe, modules=modules, attributes=attributes)
    return amended, ""


def _replacement(owner: nn.Module | None, named: dict[str, Any]) -> tuple[Any, str]:
    if owner is None:
        return None, ""
    reasons = []
    for found in candidates(owner):
        if isinstance(found, Candidate):
            named.update(found.named)
            return found.node, ""
        reasons.append(found)
    return None, "; ".join(reasons)


def _find(module: nn.Module, path: str) -> nn.Module | None:
    found: nn.Module | None = module
    for name in path.split(".") if path else ():
        found = found._modules.get(name) if found is not None else None
        found = unwrap(found) if found is not None else None
    return found


def _trust(named: dict[str, Any]) -> Trust:
    classes = {name: value for name, value in named.items() if isinstance(value, type)}
    functions = tuple(name for name, value in named.items() if not isinstance(value, type))
    return Trust(classes, functions)


def _say(difference: Difference) -> str:
    return f"{difference.path or 'the model itself'}: {difference.what}"


class _ValueEncoder(RecipeEncoder):
    """Encodes what an attribute holds: tensors by value; layers not registered not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.inline = True

    def encode_module(self, module: nn.Module, path: str = "", depth: int = 0) -> Any:
        self.refuse(
            path, f"a {type(module).__name__} in a plain attribute, whose weights no file has"
        )
