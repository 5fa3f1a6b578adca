"""What is installed code and what is the user's own: told from where its file stands."""

import functools
import os
import re
import sys
import sysconfig
import types
from importlib import metadata
from typing import Any

_LIBRARIES = tuple(
    os.path.realpath(sysconfig.get_path(name)) + os.sep
    for name in ("stdlib", "platstdlib", "purelib", "platlib")
)
_INSTALLED = re.compile(r"[\\/](site|dist)-packages[\\/]")


def is_installed_module(module: types.ModuleType) -> bool:
    home = getattr(module, "__file__", None)
    if home is None:  # __main__ of a shell is the user's; what is built in is not
        return module.__name__ != "__main__"
    return _in_library(home)


def is_installed(item: Any) -> bool:
    """True for a class or function of the standard library or of an installed package."""
    if isinstance(item, types.FunctionType):
        path = item.__code__.co_filename
        if not path.startswith("<"):
            return _in_library(path)
    module = sys.modules.get(getattr(item, "__module__", None) or "")
    return module is not None and is_installed_module(module)


@functools.cache
def _in_library(path: str) -> bool:
    real = os.path.realpath(path)
    return bool(_INSTALLED.search(real)) or real.startswith(_LIBRARIES)


@functools.cache
def distribution_of(package: str) -> tuple[str, str] | None:
    """(distribution, version) of an installed top-level package."""
    try:
        return package, metadata.version(package)
    except metadata.PackageNotFoundError:
        pass
    # Reads the file lists of all distributions, so only for packages that are called otherwise.
    names = metadata.packages_distributions().get(package)
    return (names[0], metadata.version(names[0])) if names else None
