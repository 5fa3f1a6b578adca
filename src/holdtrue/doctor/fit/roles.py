"""Query, key and value by their names: apart in one of the two, together in the other."""

import re
from collections.abc import Mapping
from typing import TypeVar

from holdtrue.doctor.fit.spellings import canonical
from holdtrue.doctor.fit.wrappers import Shape

FUSED = re.compile(r"(?:^|[._])(c_attn|(?:to_|w|W)?_?qkv(?:_proj|_lin)?|in_proj|query_key_value|"
                   r"attn_qkv)(?=[._](?:weight|bias)$)")  # fmt: skip
_ROLE = re.compile(r"(?:^|[._])(?:to_|w|linear_|lin_)?(q|k|v|query|key|value)"
                   r"(?:_?(?:proj|lin|linear|layer))?(?=[._](?:weight|bias)$)")  # fmt: skip
GATE_UP = re.compile(r"(?:^|[._])(gate_up(?:_proj)?|gate_and_up(?:_proj)?|w12|w13)"
                     r"(?=[._](?:weight|bias)$)")  # fmt: skip
_GATE_AND_UP = (("gate_proj", "up_proj"), ("gate", "up"), ("w1", "w3"), ("w1", "w2"))
_S = TypeVar("_S", Shape, Shape | None)


def triples(names: Mapping[str, object]) -> dict[str, tuple[str, str, str]]:
    """Query, key and value side by side: name without the role → their names in that order."""
    found: dict[str, dict[str, str]] = {}
    for name in names:
        plain = canonical(name)
        match = _ROLE.search(plain)
        if match:
            start, end = match.span(1)
            found.setdefault(f"{plain[:start]}*{plain[end:]}", {})[match[1][0]] = name
    return {k: (g["q"], g["k"], g["v"]) for k, g in found.items() if len(g) == 3}


def gate_and_up(fused: str, names: Mapping[str, object]) -> tuple[str, ...]:
    """The two that stand where a fused name stands, the gate first; () where they are not there."""
    match = GATE_UP.search(fused)
    if match is None:
        return ()
    start, end = match.span(1)
    for pair in _GATE_AND_UP:
        found = tuple(f"{fused[:start]}{part}{fused[end:]}" for part in pair)
        if all(name in names for name in found):
            return found
    return ()


def set_apart(
    file: Mapping[str, Shape], target: Mapping[str, Shape | None]
) -> tuple[dict[str, Shape], dict[str, Shape | None]]:
    """Both without what can only be a layout of its own: else a query is taken for any matrix."""
    return _without(file, target), _without(target, file)


def _without(names: Mapping[str, _S], others: Mapping[str, object]) -> dict[str, _S]:
    left = dict(names)
    if not triples(others):
        for group in triples(names).values():
            for name in group:
                left.pop(name, None)
    if not any(FUSED.search(name) for name in others):
        left = {name: shape for name, shape in left.items() if not FUSED.search(name)}
    if any(GATE_UP.search(name) for name in names) or any(GATE_UP.search(n) for n in others):
        pairs = {p for name in others for p in gate_and_up(name, names)}
        whole = {name for name in names if gate_and_up(name, others)}
        left = {name: shape for name, shape in left.items() if name not in pairs | whole}
    # A name that both have is no riddle.
    return left | {name: shape for name, shape in names.items() if name in others}
