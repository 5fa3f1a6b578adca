"""Inert stand-ins for what a file names but nobody has agreed to build."""

from typing import Any

from msgspec import Struct, field


class Record(Struct, frozen=True, kw_only=True, omit_defaults=True, eq=False):
    """An object as data: its class by name, and what it would be built from.

    Nothing is imported or called to make one. `state` is what `__setstate__` or `__dict__` would
    receive; `items` are the (key, value) pairs or the elements of a dict or list subclass.

    Equal only to itself, so that it can be a key: comparing contents was rejected, since a small
    file of records that refer to one another could make one comparison last for ever.
    """

    class_name: str  # "package.module.QualName"
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    state: Any = None
    items: Any = None

    def __repr__(self) -> str:
        return f"<record of {self.class_name}>"


class NamedReference(Struct, frozen=True):
    """A class or function that a file names, never looked up."""

    name: str  # "package.module.QualName"

    def __repr__(self) -> str:
        return f"<reference to {self.name}>"


class InertKey(Struct, frozen=True, eq=False):
    """A record or tensor as a dict key or set member, equal only to itself.

    Hashing the record itself would fail on its lists and dicts, and change when its state comes.
    """

    value: Any

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, InertKey) and self.value is other.value

    def __repr__(self) -> str:
        return f"<key {self.value!r}>"
