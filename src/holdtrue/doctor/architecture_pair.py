"""Two architecture records side by side, and how their values look in a finding."""

from typing import Any

from msgspec import Struct

from holdtrue.limits import limits
from holdtrue.records.architecture import Architecture, Kind
from holdtrue.records.values import TAG

_SHOWN = 100  # characters of one value


class Pair(Struct, frozen=True, eq=False):
    """Two records, and the modules that stand in both."""

    part: str
    saved: Architecture
    here: Architecture
    paths: dict[str, str]  # path here → path in the saved record, where there is one in both

    def kinds(self, path: str) -> tuple[Kind, Kind]:
        """What stands at a path that is in both: (saved, here)."""
        saved, here = self.saved, self.here
        return (
            saved.kinds[saved.modules[self.paths[path]]],
            here.kinds[here.modules[path]],
        )

    def where(self, path: str) -> str:
        return f"{self.part}/{path}" if path else self.part


def resolved(node: Any, record: Architecture, depth: int = 0) -> Any:
    """A node with the objects it refers to put in, so that nodes of two records can be compared.

    Past the depth that the format allows, and inside itself, a node is cut off.
    """
    if depth > limits().value_depth:
        return {TAG: "cut"}
    if isinstance(node, list):
        return [resolved(item, record, depth + 1) for item in node]
    if not isinstance(node, dict):
        return node
    if node.get(TAG) == "shared":
        position = node.get("v")
        if not isinstance(position, int) or not 0 <= position < len(record.objects):
            return {TAG: "cut"}
        # Each level of objects costs much of the depth: those that refer to each other end soon.
        return resolved(record.objects[position], record, depth + limits().value_depth // 6)
    return {key: resolved(item, record, depth + 1) for key, item in node.items()}


def short(name: str) -> str:
    """The last component of a full name, and what it is local to."""
    return name.partition("#")[0].rpartition(".")[2]


def shown(node: Any) -> str:
    """A node as a person would write the value."""
    text = _shown(node, 0)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def _shown(node: Any, depth: int) -> str:
    if depth > 6:
        return "…"
    if isinstance(node, list):
        return "[" + ", ".join(_shown(n, depth + 1) for n in node) + "]"
    if not isinstance(node, dict):
        return repr(node)
    kind = node.get(TAG)
    value = node.get("v")
    if kind is None:
        return "{" + ", ".join(f"{k!r}: {_shown(v, depth + 1)}" for k, v in node.items()) + "}"
    if kind in ("tuple", "set", "frozenset", "deque", "size") and isinstance(value, list):
        inner = ", ".join(_shown(v, depth + 1) for v in value)
        return (
            f"({inner}{',' if len(value) == 1 else ''})" if kind == "tuple" else f"{kind}({inner})"
        )
    if kind in ("function", "callable", "class"):
        return short(str(value))
    if kind == "dtype":
        return f"torch.{value}"
    if kind == "enum":
        return f"{short(str(node.get('class')))}.{node.get('name')}"
    if kind == "array":
        return f"a tensor {node.get('dtype')} {node.get('shape')}"
    if kind == "object":
        return f"{short(str(node.get('class')))}({_shown(value, depth + 1)})"
    if kind == "module":
        return f"{short(str(node.get('class')))} with {node.get('parameters')} parameters"
    if kind == "float":
        return str(value).partition(":")[0]
    if kind == "partial" and isinstance(value, list) and value:
        return f"partial({', '.join(_shown(v, depth + 1) for v in value)})"
    return f"{kind} {short(str(node['class']))}" if "class" in node else f"{kind} {value}"


def call_text(kind: Kind) -> str:
    """A module as in `print(model)`: Conv2d(in_channels=3, …)"""
    inside = ", ".join(
        f"{name}={_shown(node, 4)}"
        for name, node in kind.attributes.items()
        if not name.startswith("_")
    )
    text = f"{short(kind.class_name)}({inside})"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 2] + "…)"
