"""Which state dict of a file is meant for which module, where there may be several.

The one that fits most of the module's names and shapes; among equals the one whose name fits the
target's. What is left undecided is an error: to take the first in the file was rejected, since the
others are just as likely what was meant.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from msgspec import Struct

from holdtrue.doctor.fit.wrappers import Naming, covers, is_known, namings
from holdtrue.doctor.state_dicts import StateDict
from holdtrue.findings import Finding
from holdtrue.formats.view import LazyTensor

# What lies below these has the names and shapes of weights, and is none.
_BESIDE_WEIGHTS = re.compile(
    r"state|optim(izer)?s?|optimizer_.*|.*_optim(izer)?|(.*_)?grad(ient)?s?|exp_avg.*|"
    r"momentum(_buffer)?s?"
)
_GENERIC = re.compile(r"[_.]?(state_?dict|weights|params|sd)$", re.IGNORECASE)
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|[0-9]+")


class Candidate(Struct, frozen=True, eq=False):
    """A state dict weighed against one module."""

    state: StateDict
    naming: Naming  # what is taken out of its names, or put on
    named: int  # names that are the module's
    fitting: int  # of these, with the module's shapes
    keyword: int  # how well its name fits the target's: 3 is the same, 0 not at all

    @property
    def path(self) -> str:
        return self.state.path

    @property
    def of_weights(self) -> bool:
        """False below an optimizer, gradients and the like."""
        return not any(_BESIDE_WEIGHTS.fullmatch(p) for p in self.path.lower().split("/"))


class Chosen(Struct, frozen=True, eq=False):
    """A candidate, and what decided for it."""

    candidate: Candidate
    why: str


class Undecided(Struct, frozen=True, eq=False):
    """Why there is none, and one that the caller could name."""

    finding: Finding
    source: str


def weigh(
    target: str,
    state: StateDict,
    shapes: Mapping[str, tuple[int, ...] | None],
    rename: Callable[[str], str],
    needed: Collection[tuple[str, ...]],
) -> Candidate:
    """The state dict under the names that make it fit best; of equals the least changed.

    Known wrappers are taken off for that alone; any other prefix where the whole target is covered:
    of each group of names in `needed`, which are one tensor, one.
    """
    keyword = _keyword(target, state.path)
    tensors = {name: tensor.shape for name, tensor in state.names.items()}

    def under(naming: Naming) -> Candidate | None:
        def new(name: str) -> str:
            return rename(naming(name))

        named = {new(name): shape for name, shape in tensors.items()}
        if naming.changes and len(named) < len(tensors):  # two names would become one
            return None
        if not is_known(naming) and not covers(named, shapes, needed):
            return None
        both = named.keys() & shapes.keys()
        fitting = sum(shapes[n] in (None, named[n]) for n in both)
        return Candidate(state, naming, len(both), fitting, keyword)

    ways = [c for naming in namings(tensors, shapes) if (c := under(naming)) is not None]
    return max(ways, key=lambda c: (c.fitting, c.named))


def assign(
    weighed: Mapping[str, Sequence[Candidate]], source: Mapping[str, str]
) -> dict[str, Chosen | Undecided]:
    """For each target the candidate that is meant, or why there is none.

    Those that the caller names come first, then those whose own name fits; what one target took is
    for no other while another candidate is left.
    """
    taken: set[str] = set()
    decided: dict[str, Chosen | Undecided] = {}

    def certainty(target: str) -> tuple[bool, int]:
        return target in source, max(c.keyword for c in _best(weighed[target]))

    for target in sorted(weighed, key=certainty, reverse=True):
        candidates = weighed[target]
        if target in source:
            decided[target] = _named(target, source[target], candidates)
        else:
            decided[target] = _decide(target, candidates, taken)
        made = decided[target]
        if isinstance(made, Chosen):
            taken.add(made.candidate.path)
    return {target: decided[target] for target in weighed}


def memory(lazy: LazyTensor) -> Any:
    """Equal for tensors that are one memory."""
    if len(lazy.pieces) != 1 or not lazy.pieces[0].storage.nbytes:
        return id(lazy)
    piece = lazy.pieces[0]
    return piece.storage.key, piece.offset, piece.stride, piece.shape, lazy.dtype


def _best(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those of weights, while one of them has a name of the module; else the others too."""
    named = [c for c in candidates if c.named]
    return [c for c in named if c.of_weights] or named or list(candidates)


def _decide(target: str, candidates: Sequence[Candidate], taken: set[str]) -> Chosen | Undecided:
    eligible = _best(candidates)
    pool = [c for c in eligible if c.path not in taken] or eligible
    top = max((c.fitting, c.named) for c in pool)
    equals = [c for c in pool if (c.fitting, c.named) == top]
    strongest = max(c.keyword for c in equals)
    meant = [c for c in equals if c.keyword == strongest]
    # One that is called like the target and fits less well may be the one, in another version.
    rivals = [c for c in pool if c.keyword > max(strongest, 1) and 2 * c.fitting >= top[0]]
    if rivals or not all(_same(meant[0], other) for other in meant[1:]):
        return _ambiguous(target, [*meant, *rivals])
    only = f"{top[0]} of its {len(meant[0].state.names)} tensors have the target's names and shapes"
    if len(candidates) == 1:
        return Chosen(meant[0], f"it is the only state dict in the file; {only}")
    if len(equals) > len(meant):
        return Chosen(meant[0], f"{only}, as in {len(equals) - 1} others; its name fits {target!r}")
    if len(meant) > 1:
        return Chosen(meant[0], f"{only}; {len(meant) - 1} others are the same tensors")
    rest = "no other of weights has any" if len(pool) == 1 else "no other has as many"
    if len(pool) < len(eligible):
        rest = "what other targets took was left out"
    return Chosen(meant[0], f"{only}; {rest}")


def _named(target: str, wanted: str, candidates: Sequence[Candidate]) -> Chosen | Undecided:
    found = [c for c in candidates if c.path == wanted]
    found = found or [c for c in candidates if c.state.label == wanted]
    if len(found) == 1:
        return Chosen(found[0], f"source names it for {target!r}")
    if found:
        return _ambiguous(target, found)
    return _undecided(
        candidates[0],
        code="source-missing",
        severity="error",
        where=target,
        what=f"the file has no state dict {wanted[:80]!r}",
        why=f"it has these: {_paths(candidates)}",
        fix=f'name one of them: source={{"{target}": "{candidates[0].path}"}}',
    )


def _ambiguous(target: str, candidates: Sequence[Candidate]) -> Undecided:
    return _undecided(
        candidates[0],
        code="state-dict-ambiguous",
        severity="error",
        where=target,
        what=f"{len(candidates)} state dicts of the file could be meant for {target!r}",
        why=f"nothing tells which: {_paths(candidates)}",
        fix=f'say which one: source={{"{target}": "{candidates[0].path}"}}',
    )


def _undecided(first: Candidate, **finding: Any) -> Undecided:
    return Undecided(Finding(**finding), first.path)


def _paths(candidates: Sequence[Candidate]) -> str:
    shown = ", ".join(repr(c.path) for c in candidates[:10])
    return shown + (f", and {len(candidates) - 10} more" if len(candidates) > 10 else "")


def _same(one: Candidate, other: Candidate) -> bool:
    """Whether both are the same tensors, kept twice in the file."""
    mine, theirs = one.state.names, other.state.names
    return mine.keys() == theirs.keys() and all(
        tensor is theirs[name] or memory(tensor) == memory(theirs[name])
        for name, tensor in mine.items()
    )


def _keyword(target: str, path: str) -> int:
    """3 for the same name, 2 but for "_state_dict" and the like, 1 where it is a word of it."""
    names = [part for part in path.split("/") if part]
    if not names:
        return 0
    wanted, last = target.lower(), names[-1]
    if last.lower() == wanted:
        return 3
    bare = [b for b in (_GENERIC.sub("", name) for name in names) if b]
    if not bare:
        return 0
    if bare[-1].lower() == wanted:
        return 2
    long_enough = len(wanted) > 2 and wanted in bare[-1].lower()
    return int(long_enough or wanted in [word.lower() for word in _WORD.findall(bare[-1])])
