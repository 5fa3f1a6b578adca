"""A package that a caller trusts, full of things that run code when they are touched."""

from os import system  # noqa: F401  merely imported: not this package's own

from torch import nn

RAN: list[str] = []


class Plain:
    """Not a module: its constructor must never be called for a recipe."""

    def __init__(self, *args: object) -> None:
        RAN.append("__init__")


class Meta(type):
    def __call__(cls, *args: object, **kwargs: object) -> object:
        RAN.append("metaclass __call__")
        return super().__call__(*args, **kwargs)

    def __getattr__(cls, name: str) -> object:
        RAN.append("metaclass __getattr__")
        raise AttributeError(name)

    def __instancecheck__(cls, instance: object) -> bool:
        RAN.append("__instancecheck__")
        return True

    def __subclasscheck__(cls, subclass: type) -> bool:
        RAN.append("__subclasscheck__")
        return True


class WithMeta(metaclass=Meta):
    pass


class Item:
    def __class_getitem__(cls, item: object) -> object:
        RAN.append("__class_getitem__")
        return cls


class Lurking:
    __slots__ = ()

    def __getattr__(self, name: str) -> object:
        RAN.append("__getattr__")
        return nn.Linear

    @property
    def __class__(self) -> type:
        RAN.append("__class__")
        return type


class Holder(nn.Module):
    @property
    def touched(self) -> object:
        RAN.append("property")
        return nn.Linear

    def __init__(self, value: object = None) -> None:
        super().__init__()
        self.value = value
        self.layer = nn.Linear(2, 2)

    @classmethod
    def factory(cls) -> object:
        RAN.append("factory")
        return cls()


lurking = Lurking()


def function() -> None:
    RAN.append("function")


def __getattr__(name: str) -> object:
    RAN.append(f"module __getattr__ {name}")
    return nn.Linear
