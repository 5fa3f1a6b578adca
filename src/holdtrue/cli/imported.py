"""What the person at the command line names, and thereby agrees to run."""

import importlib.util
import sys
import traceback
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from holdtrue.errors import OpenError, fail
from holdtrue.findings import Finding


def imported(name: str, option: str = "--model") -> Any:
    """`package.module:name`, or `path/to/file.py:name`. Raises OpenError where there is none."""
    module, _, attribute = name.rpartition(":")
    if not module or not attribute:
        raise _unavailable(name, option, "it names no function: package.module:function")
    try:
        found: Any = _module(module)
    except Exception as error:  # the module's own code
        raise _unavailable(name, option, _told(error)) from error
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            near = [n for n in vars(found) if not n.startswith("_")] if _has_names(found) else []
            shown = f"; it has {', '.join(near[:12])}" if near else ""
            raise _unavailable(name, option, f"{error}{shown}") from None
    return found


def _module(name: str) -> ModuleType:
    if not name.endswith(".py"):
        sys.path.insert(0, "")
        return import_module(name)
    path = Path(name).resolve()
    # What stands beside the file is imported by it as when it is run.
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"there is no file {name}")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)
    return module


def _has_names(value: Any) -> bool:
    return hasattr(value, "__dict__")


def _told(error: Exception) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
    own = [f for f in frames if not f.filename.startswith("<") and "importlib" not in f.filename]
    at = f", at {own[-1].filename}:{own[-1].lineno}" if own else ""
    return f"{type(error).__name__}: {str(error)[:500]}{at}"


def _unavailable(name: str, option: str, why: str) -> OpenError:
    return fail(
        OpenError,
        f"{option} {name}",
        Finding(
            code="model-unavailable",
            severity="error",
            where=f"{option} {name}",
            what="what this names cannot be imported",
            why=why,
            fix="name a class or function as package.module:name, from the directory that the "
            "package is in, or as path/to/file.py:name",
        ),
    )
