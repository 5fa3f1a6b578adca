"""Weights that one side keeps as they are and the other as what it computes them from.

weight_norm keeps a direction and a length, spectral_norm the matrix and two vectors. No layout
brings them together: the module has to be given the same form first.
"""

import re
from collections.abc import Mapping

from msgspec import Struct

from holdtrue.doctor.fit.wrappers import Shape

_OLD = re.compile(r"^(?P<head>.*\.)?(?P<name>\w+)_(?P<part>g|v|orig|u)$")
_NEW = re.compile(r"^(?P<head>.*\.)?parametrizations\.(?P<name>\w+)\.(?P<part>original0|original1|"
                  r"original|0\._u|0\._v)$")  # fmt: skip
_NEW_PARTS = {"original0": "g", "original1": "v", "original": "orig", "0._u": "u", "0._v": "v"}
# The parts of each, the one with the shape of the weight first.
_KINDS = {"weight_norm": ("v", "g"), "spectral_norm": ("orig", "u", "v")}


class Parametrised(Struct, frozen=True, kw_only=True):
    """One weight of a module that one side keeps in parts."""

    kind: str  # of _KINDS
    in_file: bool  # the parts are in the file, the weight in the model; else the other way round
    old: bool  # by torch.nn.utils.weight_norm, not by torch.nn.utils.parametrizations
    module: str
    name: str  # the weight's in the module
    parts: tuple[str, ...]
    dim: int | None = 0  # that weight_norm keeps lengths for

    @property
    def plain(self) -> str:
        return f"{self.module}.{self.name}" if self.module else self.name

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the file."""
        return self.parts if self.in_file else (self.plain,)

    @property
    def places(self) -> tuple[str, ...]:
        """Names of the model."""
        return (self.plain,) if self.in_file else self.parts


def find_parametrised(
    file: Mapping[str, Shape], target: Mapping[str, Shape | None]
) -> list[Parametrised]:
    """Among what has no partner of its name on the other side."""
    mine = {n: s for n, s in file.items() if n not in target}
    theirs = {n: s for n, s in target.items() if n not in file}
    return [*_in_parts(mine, theirs, True), *_in_parts(theirs, mine, False)]


def _in_parts(
    parted: Mapping[str, Shape | None], plain: Mapping[str, Shape | None], in_file: bool
) -> list[Parametrised]:
    weights: dict[tuple[str, str, bool], dict[str, str]] = {}
    for full in parted:
        for pattern, old in ((_NEW, False), (_OLD, True)):
            match = pattern.match(full)
            if match:
                part = match["part"] if old else _NEW_PARTS[match["part"]]
                key = ((match["head"] or "").rstrip("."), match["name"], old)
                weights.setdefault(key, {})[part] = full
    found = []
    for (module, name, old), parts in weights.items():
        weight = f"{module}.{name}" if module else name
        for kind, wanted in _KINDS.items():
            if parts.keys() != set(wanted) or weight not in plain:
                continue
            shape = parted[parts[wanted[0]]]
            if shape is not None and shape == plain[weight]:
                lengths = parted[parts["g"]] if kind == "weight_norm" else None
                found.append(
                    Parametrised(
                        kind=kind,
                        in_file=in_file,
                        old=old,
                        module=module,
                        name=name,
                        parts=tuple(parts[p] for p in wanted),
                        dim=_dimension(lengths),
                    )
                )
    return found


def _dimension(lengths: Shape | None) -> int | None:
    """The dimension that has a length for each of its rows; None for one length in all."""
    if lengths is None:
        return 0
    return next((i for i, n in enumerate(lengths) if n > 1), 0) if lengths else None
