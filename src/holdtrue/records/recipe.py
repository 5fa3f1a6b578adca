"""How to build a module again, as data: a class by name, and arguments as value nodes.

Beside the kinds of `records/values.py`, these stand in a recipe:

| `$` | `v` | value |
|---|---|---|
| `build` | `{"class", "args", "kwargs", "id"}` | a module: the class called with the arguments |
| `again` | number | the module whose node has this `id`, once more |
| `config` | `{"class", "values"}` | a transformers configuration from its dict |
| `function` | full name | a function, found among those that are already imported |
| `partial` | `{"of", "args", "kwargs"}` | a functools.partial |
| `empty` | `{"dtype", "shape", "parameter"}` | a tensor whose values come from the checkpoint |
| `inline` | `{"dtype", "shape", "data"}` | a small tensor that is no part of the state, base64 |
"""

from collections.abc import Iterator
from typing import Any, Literal

from msgspec import Struct, field

from holdtrue.limits import limits
from holdtrue.records.values import TAG, NodeError

Via = Literal["buildable", "config", "hparams", "signature"]
Need = Literal["module", "config", "class", "object", "function"]


class Recipe(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A root module's node, and what was changed on the model after its constructor ran.

    `modules` replaces or adds submodules by path (null removes one), `attributes` sets plain
    attributes by module path and name. Modules are replaced first, in order.
    """

    via: Via
    node: Any
    modules: dict[str, Any] = field(default_factory=dict)
    attributes: dict[str, dict[str, Any]] = field(default_factory=dict)


class Rebuild(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Whether a module can be built again without the caller's code for it: how, or why not."""

    recipe: Recipe | None = None
    reason: str = ""


def needs(recipe: Recipe) -> dict[str, Need]:
    """Every class and function that a recipe names, and what it is needed as.

    Raises NodeError when the recipe is deeper or larger than the limits allow.
    """
    found: dict[str, Need] = {}
    left = limits().entries
    pending: list[tuple[Any, int]] = [(recipe.node, 0)]
    pending += [(node, 0) for node in recipe.modules.values()]
    pending += [(node, 0) for nodes in recipe.attributes.values() for node in nodes.values()]
    while pending:
        node, depth = pending.pop()
        left -= 1
        if left < 0 or depth > limits().value_depth:
            raise NodeError("the recipe is larger or deeper than the limits allow")
        if isinstance(node, dict):
            for name, need in _named(node):
                # A name that is needed as two things is held to the stricter one.
                found[name] = "module" if found.get(name) == "module" else need
            pending += [(n, depth + 1) for n in node.values() if isinstance(n, dict | list)]
        elif isinstance(node, list):
            pending += [(n, depth + 1) for n in node if isinstance(n, dict | list)]
    return found


_BY_KIND: dict[str, Need] = {
    "build": "module",
    "config": "config",
    "class": "class",
    "object": "object",
    "enum": "object",
    "namedtuple": "object",
    "function": "function",
    "callable": "function",
}


def _named(node: dict[str, Any]) -> Iterator[tuple[str, Need]]:
    need = _BY_KIND.get(str(node.get(TAG)))
    if need is None:
        return
    held = node.get("v")
    if need in ("module", "config"):
        name = held.get("class") if isinstance(held, dict) else None
    else:
        name = held if need in ("class", "function") else node.get("class")
    if not isinstance(name, str):
        raise NodeError(f"a {node[TAG]} node names no class")
    yield name, need


def trusted_by_itself(name: str) -> bool:
    """Names that a recipe may use without anybody's word: torch's own layers and activations."""
    return name.startswith("torch.nn.") or name in TORCH_FUNCTIONS


# Elementwise functions of torch itself that models hold as activations. A list, since `torch.` also
# has `load`.
TORCH_FUNCTIONS = frozenset(
    f"torch.{name}"
    for name in (
        "relu", "tanh", "sigmoid", "sin", "cos", "exp", "abs", "square", "sqrt", "rsqrt", "erf",
        "softmax", "log_softmax", "selu", "celu", "rrelu", "prelu", "atan", "sinh", "cosh",
        "clamp", "add", "mul", "maximum", "minimum", "mean", "sum", "amax", "max", "logsumexp",
    )
)  # fmt: skip
