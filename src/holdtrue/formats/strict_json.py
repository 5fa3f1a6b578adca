"""JSON from elsewhere: no name twice, no NaN, and no more values than the budget."""

import json
from itertools import pairwise
from typing import Any

from holdtrue.limits import limits


def strict_json(raw: bytes) -> Any:
    """The value of a JSON text. Raises ValueError, whatever is wrong with it."""
    if too_many(raw):
        raise ValueError(f"it has more than {limits().entries:,} values")
    try:
        return strict_decoder.decode(raw.decode("utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def too_many(raw: bytes) -> bool:
    """Counted before parsing: a few bytes of text become a hundred of Python objects."""
    return raw.count(b",") + raw.count(b"[") + raw.count(b"{") > limits().entries


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = sorted(name for name, _ in pairs)
        twice = next(a for a, b in pairwise(names) if a == b)
        raise ValueError(f"the name {twice[:80]!r} stands in it twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


strict_decoder = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)
