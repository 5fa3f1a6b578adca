"""NumPy for modules that need it for some files only.

Most files are told about without a number of theirs being read, and importing NumPy takes longer
than that. `sys.modules` is left alone, so that imports elsewhere stay what they are.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as numpy
    import numpy.typing as npt
else:

    class _OnDemand:
        """A module that is imported when something of it is first asked for."""

        def __init__(self, name: str) -> None:
            self.__name__ = name

        def __getattr__(self, attribute: str) -> Any:
            from importlib import import_module

            value = getattr(import_module(self.__name__), attribute)
            setattr(self, attribute, value)
            return value

    numpy = _OnDemand("numpy")
    npt = _OnDemand("numpy.typing")

__all__ = ["npt", "numpy"]
