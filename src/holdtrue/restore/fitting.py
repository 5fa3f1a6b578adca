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
from holdtrue.doctor.fit.boxes import of_one_element
from holdtrue.doctor.fit.comparison import facts, missing
from holdtrue.doctor.fit.layouts import Rewrite, find_rewrites
from holdtrue.doctor.fit.matching import Matching, match
from holdtrue.doctor.fit.parametrised import find_parametrised
from holdtrue.doctor.fit.patterns import renaming
from holdtrue.doctor.fit.roles import set_apart
from holdtrue.doctor.fit.wrappers import covers
from holdtrue.doctor.state_dicts import StateDict, state_dicts
from holdtrue.doctor.subjects import Fit, Proposal
from holdtrue.findings import Finding, Severity
from holdtrue.formats.view import LazyTensor
from holdtrue.records.architecture import Architecture
from holdtrue.restore.places import Places
from holdtrue.restore.proposing import errors, propose, proposed
from holdtrue.restore.request import Planned, Request, plan_request

# What the plan finds by names and shapes, and the rules say with its cause.
_SAID_BY_RULES = frozenset({"missing-keys", "unexpected-keys", "shape-mismatch",
                            "nothing-restored"})  # fmt: skip
# What load_state_dict(torch.load(…)) takes; of safetensors, load_file.
_PLAIN = frozenset({"torch-zip", "torch-legacy", "safetensors"})
# Formats that keep the order in which the tensors were saved.
_ORDERED = frozenset({"torch-zip", "torch-legacy", "torch-tar", "plain-pickle", "torchscript"})


def explained(request: Request, planned: Planned) -> list[Finding]:
    """The findings of a plan with errors, by their causes, each with what mends it."""
    found = with_source(request, planned, list(planned.plan.findings))
    for fit in gather(request, planned):
        said = [f for f in examine(fit, fit.part) if f.severity == "error"]
        found = together(found, said, fit)
    return found


def together(found: list[Finding], said: list[Finding], fit: Fit) -> list[Finding]:
    """The plan's findings and those of the rules, no cause twice, each error with the call."""
    # What the caller allows is a note, and so is what is done by itself beside an error.
    allowed = {f.code for f in found if f.severity == "note"}
    allowed -= {f.code for f in found if f.severity == "error"}
    said = [f for f in said if f.severity != "error" or f.code not in allowed]
    if any(f.severity == "error" for f in said):
        found = [f for f in found if not _covered(f, fit)]
    if any(f.code == "quantisation-differs" for f in said):
        # Numbers that need their scales lose their meaning by a cast, whatever it keeps of them.
        found = [f for f in found if f.code != "dtype-widened"]
    return [_with_call(f, fit.proposal) for f in (*found, *said)]


def with_source(request: Request, planned: Planned, found: list[Finding]) -> list[Finding]:
    """Where one of several state dicts has to be named, the call that names the first of them."""
    open_ones = planned.foreign.undecided if planned.foreign is not None else {}
    if not open_ones:
        return found
    named = replace(request, source={**request.source, **open_ones})
    if errors(plan_request(named, dry=True)):
        return found
    command = proposed(named, {}, request.choice.allow, True, "hint").command
    return [
        replace(f, command=command, confidence="hint") if f.where in open_ones else f for f in found
    ]


def _with_call(finding: Finding, proposal: Proposal | None) -> Finding:
    if proposal is None or finding.command:
        return finding
    mended = finding.severity == "error" and finding.code in proposal.allow
    return replace(finding, command=proposal.command) if mended else finding


def beside(request: Request, planned: Planned) -> list[Fit]:
    """A fit for each module among the targets, without a proposal."""
    states = {part: _state(request, planned, part) for part in request.targets}
    return [
        _fit(request, planned, part, target, state)
        for part, target in request.targets.items()
        if isinstance(target, nn.Module) and (state := states[part]) is not None
    ]


def gather(request: Request, planned: Planned) -> Iterator[Fit]:
    """A fit for each module among the targets, with a proposal where the plan has errors."""
    fits = beside(request, planned)
    proposal = None
    if errors(planned) and fits:
        proposal = propose(request, planned, fits)
    elif fits and not all(_loads_plainly(fit) for fit in fits):
        proposal = proposed(request, {}, request.choice.allow, True, "certain")
    for fit in fits:
        yield replace(fit, proposal=proposal)


def _loads_plainly(fit: Fit) -> bool:
    """Whether torch's own load_state_dict would take it as it is."""
    state = fit.state
    as_named = all(old == new for old, new in fit.standing.items())
    whole = state.class_name is not None or state.path != ""
    here = all(t.device in ("cpu", "meta") for t in state.names.values())
    shapes = {name: tensor.shape for name, tensor in facts(fit).items()}
    alike = all(shapes.get(n, t.shape) in (None, t.shape) for n, t in state.names.items())
    complete = alike and not missing(fit)
    return as_named and not whole and here and complete and fit.view.format in _PLAIN


def _state(request: Request, planned: Planned, part: str) -> StateDict | None:
    if planned.foreign is not None:
        chosen = planned.foreign.chosen.get(part)
        return None if chosen is None else chosen.state
    return next((s for s in state_dicts(request.view) if s.path == part), None)


def _fit(request: Request, planned: Planned, part: str, target: nn.Module, state: StateDict) -> Fit:
    places = Places.of(target)
    standing = _standing(request, planned, part, state)
    tensors = {standing[old]: lazy for old, lazy in state.names.items()}
    if request.manifest is None:
        tensors |= of_one_element(tensors, places.shapes)
    rivals = () if request.choice.rename else _rivals(tensors, places)
    matching = Matching()
    if not rivals:
        matching = _matching(tensors, places, request.view.format in _ORDERED)
    after = {matching.pairs.get(name, name): lazy for name, lazy in tensors.items()}
    parametrised = find_parametrised({n: t.shape for n, t in after.items()}, places.shapes)
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
        parametrised=tuple(parametrised),
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


def _covered(finding: Finding, fit: Fit) -> bool:
    """Whether the rules say the same with its cause."""
    severity: Severity = "error"
    if finding.code not in _SAID_BY_RULES or finding.severity != severity:
        return False
    if finding.code == "nothing-restored":
        return finding.where == fit.part
    known = {f"{fit.part}/{n}" for n in (*fit.standing.values(), *facts(fit))}
    places = finding.places or (finding.where,)
    return all(place.partition(": saved ")[0] in known for place in places)
