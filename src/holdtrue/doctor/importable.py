"""Whether a class that a file names could be found on this machine. Nothing is imported for it."""

import re
from functools import cache
from importlib.util import find_spec
from typing import Literal

from holdtrue.doctor.installed_source import beside, defines

_NUMPY_2 = re.compile(r"numpy\._core\b")

# "beside": a module of the current directory has it; "beside-absent": that module has not.
Found = Literal["here", "script", "package-missing", "older", "absent", "beside", "beside-absent"]


def findable(name: str) -> Found:
    """Whether the package at the top of a dotted name is installed, and speaks of the name.

    Its text is read for that: to look further would import it, because a file says so.
    """
    top = name.partition(".")[0]
    if top in ("__main__", "__mp_main__"):
        return "script"
    if not top.isidentifier():
        return "package-missing"
    if not _installed(top):
        if beside(top) is None:
            return "package-missing"
        return "beside-absent" if defines(name) is False else "beside"
    if _NUMPY_2.match(name) and _major("numpy") < 2:
        return "older"
    return "absent" if defines(name) is False else "here"


@cache
def installed_version(distribution: str) -> str | None:
    """The version of an installed distribution; None where it is not installed."""
    # Imported here: few files name a class, and this takes as long as reading one.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(distribution)
    except (PackageNotFoundError, ValueError):  # a name that a file made up: "", say
        return None


def distribution_of(top: str) -> str | None:
    """The distribution that a top-level package comes from, where one says so."""
    from importlib.metadata import packages_distributions

    found = packages_distributions().get(top)
    return found[0] if found else None


@cache
def _installed(top: str) -> bool:
    try:
        return find_spec(top) is not None
    except (ImportError, ValueError):  # a module without a spec, or one that is half imported
        return False


def _major(distribution: str) -> int:
    number = (installed_version(distribution) or "").partition(".")[0]
    return int(number) if number.isdecimal() else 0
