"""Which classes a caller agrees to have built. A file alone never causes an import or a call."""

import sys
from collections.abc import Iterable
from typing import Any

from msgspec import Struct, field


class Trust(Struct, frozen=True):
    """Classes by their own name, and packages whose *already imported* classes are trusted too."""

    classes: dict[str, type] = field(default_factory=dict)
    packages: tuple[str, ...] = ()


def trust(agreed: Iterable[type | str]) -> Trust:
    """From what a caller passes: classes, full class names, or package names."""
    classes: dict[str, type] = {}
    packages: list[str] = []
    for item in agreed:
        if isinstance(item, type):
            classes[class_name(item)] = item
        elif isinstance(item, str):
            packages.append(item)
        else:
            raise TypeError(f"trust takes classes and names, not {type(item).__name__}")
    return Trust(classes, tuple(packages))


def find_class(name: str, agreed: Trust) -> type | None:
    """The trusted class of this name, or None. Looks only at modules that are already imported."""
    if name in agreed.classes:
        return agreed.classes[name]
    if not any(name == p or name.startswith(p + ".") for p in agreed.packages):
        return None
    parts = name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        module = sys.modules.get(".".join(parts[:cut]))
        if module is not None:
            # Read through __dict__: a module's or metaclass's __getattr__ may run code.
            found: Any = module
            for part in parts[cut:]:
                found = vars(found).get(part) if hasattr(found, "__dict__") else None
            return found if isinstance(found, type) and class_name(found) == name else None
    return None


def class_name(cls: Any) -> str:
    """The full name of a class or function: module and qualified name, joined by a dot."""
    module = getattr(cls, "__module__", None) or ""
    name = getattr(cls, "__qualname__", None) or getattr(cls, "__name__", "") or repr(type(cls))
    return f"{module}.{name}" if module else name
