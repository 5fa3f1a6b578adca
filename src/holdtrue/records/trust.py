"""Which classes a caller agrees to have built. A file alone never causes an import or a call."""

import sys
from collections.abc import Iterable
from types import ModuleType
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
    if not covers(agreed, name):
        return None
    found = find_imported(name)
    return found if issubclass(type(found), type) and _own_name(found) == name else None


def covers(agreed: Trust, name: str) -> bool:
    """Whether the name lies in a package that the caller trusts."""
    return any(name == p or name.startswith(p + ".") for p in agreed.packages)


def find_imported(name: str) -> Any:
    """What an imported module holds under this name; None where it is not imported.

    Nothing of what is looked at gets to run: namespaces are read past `__getattr__`, properties and
    metaclasses, and only those of modules and classes are entered.
    """
    parts = name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        found: Any = sys.modules.get(".".join(parts[:cut]))
        if found is not None:
            for part in parts[cut:]:
                found = _namespace(found).get(part)
            return found
    return None


def _namespace(found: Any) -> Any:
    # type(), not isinstance(): that asks the object for its __class__, which may be a property.
    if issubclass(type(found), ModuleType):
        return object.__getattribute__(found, "__dict__")
    if issubclass(type(found), type):
        return type.__dict__["__dict__"].__get__(found)
    return {}


def _own_name(cls: type) -> str:
    """`class_name` of a class whose metaclass may run code when asked."""
    own = _namespace(cls)
    return f"{own.get('__module__')}.{type.__dict__['__qualname__'].__get__(cls)}"


def class_name(cls: Any) -> str:
    """The full name of a class or function: module and qualified name, joined by a dot."""
    module = getattr(cls, "__module__", None) or ""
    name = getattr(cls, "__qualname__", None) or getattr(cls, "__name__", "") or repr(type(cls))
    return f"{module}.{name}" if module else name
