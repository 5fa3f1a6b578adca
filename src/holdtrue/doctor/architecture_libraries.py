"""Versions of the packages that a model's classes come from."""

import re

from msgspec import Struct

from holdtrue.doctor.architecture_pair import Pair, short
from holdtrue.findings import Finding


class Effect(Struct, frozen=True):
    """What a version changed for the outputs of models that were built for an earlier one."""

    distribution: str
    since: tuple[int, ...]
    names: tuple[str, ...]  # classes and functions, by their last names
    what: str


# Changes that the libraries' own release notes tell of.
EFFECTS = (
    Effect("torch", (1, 3), ("grid_sample", "affine_grid"), "align_corners is False by default"),
    Effect(
        "torch",
        (1, 6),
        ("Upsample", "interpolate"),
        "interpolate uses scale_factor as it is given, instead of computing it from the sizes",
    ),
    Effect("torchvision", (0, 17), ("Resize", "resize"), "antialias is on by default"),
)


def compare_libraries(pair: Pair) -> list[Finding]:
    """A warning where a version is known to change a class or function that the model uses."""
    findings = []
    used = _names(pair)
    for name in sorted(pair.saved.distributions.keys() & pair.here.distributions.keys()):
        saved, here = pair.saved.distributions[name], pair.here.distributions[name]
        one, other = _numbers(saved), _numbers(here)
        if one == other:
            continue
        low, high = sorted((one, other))
        known = [
            e
            for e in EFFECTS
            if e.distribution == name and low < e.since <= high and used & set(e.names)
        ]
        findings.append(
            Finding(
                code="library-changed",
                severity="warning" if known else "note",
                where=f"{pair.part}: {name}",
                what=f"{name} has another version"
                + (", with a known effect on this model" if known else ""),
                why="; ".join(f"since {_text(e.since)}: {e.what}" for e in known)
                or "no effect on the classes of this model is known to us",
                fix=f"pip install {name}=={saved.partition('+')[0]}" if known else "",
                confidence="certain" if known else "hint",
                saved=saved,
                expected=here,
            )
        )
    return findings


def _names(pair: Pair) -> set[str]:
    names = {short(name) for name in pair.saved.classes}
    for function in pair.saved.functions.values():
        names |= {short(target) for target in function.references.values()}
    return names


def _numbers(version: str) -> tuple[int, ...]:
    """2.13.0+cpu → (2, 13, 0): builds of one version are one version."""
    return tuple(int(n) for n in re.findall(r"\d{1,9}", version.partition("+")[0])[:4])


def _text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
