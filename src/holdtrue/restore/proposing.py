"""The call that makes a file fit a model: the shortest that gives no error, tried on paper."""

from typing import Any

from msgspec.structs import replace

from holdtrue.doctor.fit.comparison import facts, filled_elements, missing, unexpected
from holdtrue.doctor.fit.layouts import LAYOUTS
from holdtrue.doctor.fit.patterns import compress
from holdtrue.doctor.fit.spellings import is_quantised
from holdtrue.doctor.rules.fit_storage import library_layouts
from holdtrue.doctor.subjects import Fit, Proposal
from holdtrue.restore.plan import ALLOWABLE
from holdtrue.restore.request import Planned, Request, plan_request

_LEAST_MATCHED = 0.05  # of the model's elements: with fewer, a call would be no mending


def propose(request: Request, planned: Planned, fits: list[Fit]) -> Proposal | None:
    """The shortest call that gives no error; without loss before with it."""
    if request.choice.only or any(_is_computed(fit) for fit in fits):
        return None
    several = len(fits) > 1
    if len(fits) == 1 and fits[0].rivals and not request.choice.rename:
        pattern = {f"{fits[0].rivals[0]}*": "*"}
        allow = request.choice.allow | {"unexpected-keys"}
        choice = replace(request.choice, rename=pattern, allow=allow)
        if errors(plan_request(replace(request, choice=choice), dry=True)):
            return None
        return proposed(request, pattern, allow, False, "hint")
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
            known = frozenset(facts(fit))
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
        if not errors(again):
            return proposed(request, rename, choice.allow, True, confidence)
    else:
        again = planned
    left = errors(again)
    if not left <= ALLOWABLE.keys() - LAYOUTS or _share(fits) < _LEAST_MATCHED:
        return None
    choice = replace(choice, allow=choice.allow | left)
    if errors(plan_request(replace(request, choice=choice), dry=True)):
        return None
    # What both lack of each other makes it two architectures, of which some names are the same.
    two = {"missing-keys", "unexpected-keys"} <= left
    weak = "hint" if two or confidence == "hint" or _share(fits) < 0.5 else "likely"
    return proposed(request, rename, choice.allow, False, weak)


def _is_computed(fit: Fit) -> bool:
    """Then no call makes it fit: weights would have to be computed from what the file keeps."""
    quantised = is_quantised(unexpected(fit)) or is_quantised(missing(fit))
    return quantised or bool(fit.parametrised) or any(library_layouts(fit))


def errors(planned: Planned) -> frozenset[str]:
    """The codes of what a restore would stop at."""
    return frozenset(f.code for f in planned.plan.findings if f.severity == "error")


def _share(fits: list[Fit]) -> float:
    """Of the models' elements, the part that the files would fill."""
    done, total = map(sum, zip(*map(filled_elements, fits), strict=True))
    return done / total if total else 0.0


def proposed(
    request: Request, rename: dict[str, str], allow: frozenset[str], lossless: bool, sure: Any
) -> Proposal:
    """The call with these renamings, accepting these codes."""
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
