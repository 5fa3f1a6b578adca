"""NumPy dtypes as JSON: a plain one is its string, a structured one says where each field lies.

`dtype.descr` was rejected: it renames padding to fields and loses nested offsets and titles.
"""

import re
from typing import Any

from holdtrue.on_demand import numpy as np

# Only what `dtype.str` can give. NumPy's own parser also takes "i4,(2,3)f8" and Python objects.
_PLAIN = re.compile(r"[<>|=][biufcmMSUV]\d{1,9}(\[\d{0,9}[A-Za-zμ]{1,7}(/\d{1,9})?\])?|<M8|<m8")
_DEPTH = 32


def describe_dtype(dtype: "np.dtype[Any]") -> Any:
    """A dtype as JSON."""
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return {"base": describe_dtype(base), "shape": list(shape)}
    if dtype.names is None or dtype.fields is None:
        return dtype.str
    fields = [dtype.fields[name] for name in dtype.names]
    node: dict[str, Any] = {
        "names": list(dtype.names),
        "formats": [describe_dtype(field[0]) for field in fields],
        "offsets": [field[1] for field in fields],
        "itemsize": dtype.itemsize,
    }
    if any(len(field) > 2 for field in fields):
        node["titles"] = [field[2] if len(field) > 2 else None for field in fields]
    if dtype.isalignedstruct:
        node["align"] = True
    return node


def dtype_of(node: Any, depth: int = 0) -> "np.dtype[Any]":
    """The dtype of its JSON. Raises ValueError for anything that `describe_dtype` cannot give."""
    if depth > _DEPTH:
        raise ValueError("a dtype nested too deeply")
    try:
        if isinstance(node, str):
            if not _PLAIN.fullmatch(node):
                raise ValueError(f"{node[:40]!r} is no dtype of plain numbers")
            return np.dtype(node)
        if "base" in node:
            return np.dtype((dtype_of(node["base"], depth + 1), tuple(node["shape"])))
        made: np.dtype[Any] = np.dtype(_fields(node, depth), align=node.get("align", False))
        return made
    except (TypeError, KeyError, AttributeError, SyntaxError, OverflowError) as error:
        raise ValueError(f"it is no NumPy dtype: {error}") from None


def _fields(node: dict[str, Any], depth: int) -> Any:
    fields: dict[str, Any] = {k: node[k] for k in ("names", "offsets", "itemsize")}
    fields["formats"] = [dtype_of(f, depth + 1) for f in node["formats"]]
    if "titles" in node:
        fields["titles"] = node["titles"]
    return fields
