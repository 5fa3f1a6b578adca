"""What is between a file and a live model, and the call that makes it fit, tried before it is told.

The rules of `doctor/rules` say what they see in a `Fit`; here it is gathered, and each proposal is
planned without carrying it out.
"""

from collections.abc import Iterator
from typing import Any

from msgspec.structs import replace
from torch import nn

from holdtrue.capture.architecture import capture_architecture, describe_tensors
from holdtrue.doctor.examining import examine
from holdtrue.doctor.fit.comparison import filled_elements, missing, unexpected
from holdtrue.doctor.fit.layouts import LAYOUTS, Rewrite, find_rewrites
from holdtrue.doctor.fit.matching import Matching, match
from holdtrue.doctor.fit.patterns import compress, renaming
from holdtrue.doctor.fit.roles import set_apart
from holdtrue.doctor.fit.spellings import is_quantised
from holdtrue.doctor.fit.wrappers import covers
from holdtrue.doctor.state_dicts import StateDict, state_dicts
from holdtrue.doctor.subjects import Fit, Proposal
from holdtrue.findings import Finding, Severity
from holdtrue.formats.view import LazyTensor
from holdtrue.records.architecture import Architecture
from holdtrue.restore.places import Places
from holdtrue.restore.plan import ALLOWABLE
from holdtrue.restore.request import Planned, Request, plan_request

# What the plan finds by names and shapes, and the rules say with its cause.
_SAID_BY_RULES = frozenset({"missing-keys", "unexpected-keys", "shape-mismatch",
                            "nothing-restored"})  # fmt: skip
# What is done by itself, and needs no more than the call.
_HANDLED = frozenset({"nested-key", "prefix-removed", "prefix-added"})
# What load_state_dict(torch.load(…)) takes; of safetensors, load_file.
_PLAIN = frozenset({"torch-zip", "torch-legacy", "safetensors"})
# Formats that keep the order in which the tensors were saved.
_ORDERED = frozenset({"torch-zip", "torch-legacy", "torch-tar", "plain-pickle", "torchscript"})
_LEAST_MATCHED = 0.05  # of the model's elements: with fewer, a call would be no mending


def explained(request: Request, planned: Planned) -> list[Finding]:
    """The findings of a plan with errors, by their causes, each with what mends it."""
    found = with_source(request, planned, list(planned.plan.findings))
    for fit in gather(request, planned):
        said = [f for f in examine(fit, fit.part) if f.severity == "error"]
        found = together(found, said, fit)
    return found


def together(found: list[Finding], said: list[Finding], fit: Fit) -> list[Finding]:
    """The plan's findings and those of the rules, no cause twice, each error with the call."""
    allowed = {f.code for f in found if f.severity == "note"}
    said = [f for f in said if f.severity != "error" or f.code not in allowed]
    if any(f.severity == "error" for f in said):
        found = [f for f in found if not _covered(f, fit)]
    return [_with_call(f, fit.proposal) for f in (*found, *said)]


def with_source(request: Request, planned: Planned, found: list[Finding]) -> list[Finding]:
    """Where one of several state dicts has to be named, the call that names the first of them."""
    open_ones = planned.foreign.undecided if planned.foreign is not None else {}
    if not open_ones:
        return found
    named = replace(request, source={**request.source, **open_ones})
    if _errors(plan_request(named, dry=True)):
        return found
    command = _proposal(named, {}, request.choice.allow, True, "hint").command
    return [
        replace(f, command=command, confidence="hint") if f.where in open_ones else f for f in found
    ]


def _with_call(finding: Finding, proposal: Proposal | None) -> Finding:
    if proposal is None or finding.command:
        return finding
    mended = finding.severity == "error" and finding.code in proposal.allow
    if mended or finding.code in _HANDLED:
        return replace(finding, command=proposal.command)
    return finding


def gather(request: Request, planned: Planned) -> Iterator[Fit]:
    """A fit for each module among the targets, with a proposal where the plan has errors."""
    fits = []
    for part, target in request.targets.items():
        state = _state(request, planned, part)
        if isinstance(target, nn.Module) and state is not None:
            fits.append(_fit(request, planned, part, target, state))
    proposal = None
    if _errors(planned) and fits:
        proposal = _propose(request, planned, fits)
    elif fits and not all(_loads_plainly(fit) for fit in fits):
        proposal = _proposal(request, {}, request.choice.allow, True, "certain")
    for fit in fits:
        yield replace(fit, proposal=proposal)


def _loads_plainly(fit: Fit) -> bool:
    """Whether torch's own load_state_dict would take it as it is."""
    state = fit.state
    as_named = all(old == new for old, new in fit.standing.items())
    whole = state.class_name is not None or state.path != ""
    here = all(t.device in ("cpu", "meta") for t in state.names.values())
    return as_named and not whole and here and fit.view.format in _PLAIN


def _state(request: Request, planned: Planned, part: str) -> StateDict | None:
    if planned.foreign is not None:
        chosen = planned.foreign.chosen.get(part)
        return None if chosen is None else chosen.state
    return next((s for s in state_dicts(request.view) if s.path == part), None)


def _fit(request: Request, planned: Planned, part: str, target: nn.Module, state: StateDict) -> Fit:
    places = Places.of(target)
    standing = _standing(request, planned, part, state)
    tensors = {standing[old]: lazy for old, lazy in state.names.items()}
    rivals = () if request.choice.rename else _rivals(tensors, places)
    matching = Matching()
    if not rivals:
        matching = _matching(tensors, places, request.view.format in _ORDERED)
    after = {matching.pairs.get(name, name): lazy for name, lazy in tensors.items()}
    rewrites: list[Rewrite] = []
    if request.manifest is None:
        rewrites = find_rewrites(
            after,
            places.shapes,
            conv1d=places.conv1d,
            matrices=places.matrices,
            parameters=places.parameters,
        )
    return Fit(
        view=request.view,
        part=part,
        state=state,
        standing=standing,
        names={old: matching.pairs[new] for old, new in standing.items() if new in matching.pairs},
        target=_architecture(target),
        needed=places.needed,
        by_order=tuple(matching.by_order),
        rivals=rivals,
        confidence=matching.confidence,
        rewrites=tuple(r for r in rewrites if r.code not in request.choice.allow),
    )


def _rivals(tensors: dict[str, LazyTensor], places: Places) -> tuple[str, ...]:
    """Prefixes of which each alone covers the whole model, where there are several."""
    found = []
    shapes = {name: lazy.shape for name, lazy in tensors.items()}
    if covers(shapes, places.shapes, places.needed):
        return ()
    heads = dict.fromkeys(
        ".".join(name.split(".")[:depth]) + "."
        for name in tensors
        for depth in (1, 2, 3)
        if name.count(".") >= depth
    )
    for head in list(heads)[:64]:
        inside = {n[len(head) :]: s for n, s in shapes.items() if n.startswith(head)}
        if covers(inside, places.shapes, places.needed):
            found.append(head)
    return tuple(found) if len(found) > 1 else ()


def _standing(request: Request, planned: Planned, part: str, state: StateDict) -> dict[str, str]:
    """The names that the tensors have in the plan: after what is done by itself, and by request."""
    naming = (
        planned.foreign.chosen[part].naming if planned.foreign is not None else lambda name: name
    )
    return {old: _renamed(request, part)(naming(old)) for old in state.names}


def _renamed(request: Request, part: str) -> Any:
    return renaming(request.choice.rename, set(), part)


def _matching(tensors: dict[str, LazyTensor], places: Places, ordered: bool) -> Matching:
    file = {name: lazy.shape for name, lazy in tensors.items()}
    here, there = set_apart(file, places.shapes)
    return match(here, there, ordered=ordered)


def _architecture(target: nn.Module) -> Architecture:
    try:
        return capture_architecture(target).record
    except Exception:  # descriptors and attributes of the model's own classes
        return describe_tensors(target)


def _propose(request: Request, planned: Planned, fits: list[Fit]) -> Proposal | None:
    """The shortest call that gives no error; without loss before with it."""
    if request.choice.only or any(_quantisation_differs(fit) for fit in fits):
        return None
    several = len(fits) > 1
    if len(fits) == 1 and fits[0].rivals and not request.choice.rename:
        pattern = {f"{fits[0].rivals[0]}*": "*"}
        allow = request.choice.allow | {"unexpected-keys"}
        choice = replace(request.choice, rename=pattern, allow=allow)
        if _errors(plan_request(replace(request, choice=choice), dry=True)):
            return None
        return _proposal(request, pattern, allow, False, "hint")
    rename: dict[str, str] = dict(request.choice.rename)
    codes: set[str] = set()
    sure: list[Any] = []
    for fit in fits:
        changed = {
            fit.standing[old]: new for old, new in fit.names.items() if fit.standing[old] != new
        }
        head = f"{fit.part}/" if several else ""
        if not request.choice.rename:
            # What another layout uses up, or the model has no place for, goes by any name.
            known = frozenset(_target_names(fit))
            free = [n for n in fit.standing.values() if n not in changed and n not in known]
            names = [n for n in fit.standing.values() if n not in free]
            patterns = compress(changed, names, free, known)
            rename |= {head + old: head + new for old, new in patterns.items()}
        codes |= {r.code for r in fit.rewrites}
        sure += [fit.confidence] if changed else []
        sure += ["likely" if r.sure else "hint" for r in fit.rewrites]
    asked = request.choice.allow
    choice = replace(request.choice, rename=rename, allow=asked | codes)
    confidence = max(sure, key=["certain", "likely", "hint"].index, default="certain")
    if (rename, choice.allow) != (dict(request.choice.rename), asked):
        again = plan_request(replace(request, choice=choice), dry=True)
        if not _errors(again):
            return _proposal(request, rename, choice.allow, True, confidence)
    else:
        again = planned
    left = _errors(again)
    if not left <= ALLOWABLE.keys() - LAYOUTS or _share(fits) < _LEAST_MATCHED:
        return None
    choice = replace(choice, allow=choice.allow | left)
    if _errors(plan_request(replace(request, choice=choice), dry=True)):
        return None
    # What both lack of each other makes it two architectures, of which some names are the same.
    two = {"missing-keys", "unexpected-keys"} <= left
    weak = "hint" if two or confidence == "hint" or _share(fits) < 0.5 else "likely"
    return _proposal(request, rename, choice.allow, False, weak)


def _quantisation_differs(fit: Fit) -> bool:
    """Then no call makes it fit: numbers and scales would have to be computed anew."""
    return is_quantised(unexpected(fit)) or is_quantised(missing(fit))


def _errors(planned: Planned) -> frozenset[str]:
    return frozenset(f.code for f in planned.plan.findings if f.severity == "error")


def _share(fits: list[Fit]) -> float:
    """Of the models' elements, the part that the files would fill."""
    done, total = map(sum, zip(*map(filled_elements, fits), strict=True))
    return done / total if total else 0.0


def _proposal(
    request: Request, rename: dict[str, str], allow: frozenset[str], lossless: bool, sure: Any
) -> Proposal:
    more = [f"{name}={name}" for name in request.targets]
    if request.source:
        more.append(f"source={_literal(dict(request.source))}")
    if rename:
        more.append(f"rename={_literal(rename)}")
    if allow:
        more.append(f"allow=[{', '.join(_quoted(code) for code in sorted(allow))}]")
    return Proposal(
        command=f"holdtrue.open({_quoted(request.given)}).restore({', '.join(more)})",
        rename=rename,
        allow=tuple(sorted(allow)),
        lossless=lossless,
        confidence=sure,
    )


def _literal(rename: dict[str, str]) -> str:
    return "{" + ", ".join(f"{_quoted(a)}: {_quoted(b)}" for a, b in rename.items()) + "}"


def _quoted(text: str) -> str:
    """As Python source, in double quotes where that is as short."""
    plain = text.isprintable() and '"' not in text and "\\" not in text
    return f'"{text}"' if plain else repr(text)


def _covered(finding: Finding, fit: Fit) -> bool:
    """Whether the rules say the same with its cause."""
    severity: Severity = "error"
    if finding.code not in _SAID_BY_RULES or finding.severity != severity:
        return False
    if finding.code == "nothing-restored":
        return finding.where == fit.part
    known = {f"{fit.part}/{n}" for n in (*fit.standing.values(), *_target_names(fit))}
    places = finding.places or (finding.where,)
    return all(place.partition(": saved ")[0] in known for place in places)


def _target_names(fit: Fit) -> Iterator[str]:
    for path, position in fit.target.modules.items():
        for name in fit.target.kinds[position].tensors:
            yield f"{path}.{name}" if path else name
