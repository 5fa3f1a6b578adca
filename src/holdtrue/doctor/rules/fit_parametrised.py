"""weight_norm and spectral_norm on one side only."""

from collections.abc import Iterator

from holdtrue.doctor.fit.comparison import clashes, matched, missing, renamed, unexpected
from holdtrue.doctor.fit.parametrised import Parametrised
from holdtrue.doctor.subjects import Fit
from holdtrue.findings import Finding, several

_KEEPS = {
    "weight_norm": "weight_norm keeps a direction and a length (`weight_g`, `weight_v`, or "
    "`parametrizations.weight.original0`, `original1`) and computes the weight from them",
    "spectral_norm": "spectral_norm keeps the matrix and two vectors (`weight_orig`, `weight_u`, "
    "`weight_v`, or `parametrizations.weight.original`, `0._u`, `0._v`) and divides by its norm",
}


def parametrised(fit: Fit) -> Iterator[Finding]:
    """One finding for each normalisation that one side lacks."""
    for kind in _KEEPS:
        for in_file in (True, False):
            found = [p for p in fit.parametrised if p.kind == kind and p.in_file is in_file]
            if not found:
                continue
            places = [f"{', '.join(p.sources)} → {', '.join(p.places)}" for p in found]
            with_it, without = ("file", "model") if in_file else ("model", "file")
            mend = (
                f"apply {kind} to the model, restore, and take it off: the weight is computed then"
                if in_file
                else f"take {kind} off the model, restore, and apply it again before the optimizer "
                "is built"
            )
            yield Finding(
                code="parametrisation-differs",
                severity="error",
                where=f"{fit.part}/{found[0].places[0]}",
                what=f"{len(found)} weight{'s' if len(found) > 1 else ''} of the {with_it} under "
                f"{kind}, plain in the {without}",
                why=f"{_KEEPS[kind]}; {matched(fit)} as they stand",
                fix=mend,
                command=_command(fit, found) if len(found) == len(fit.parametrised) else "",
                saved=", ".join(found[0].sources),
                expected=", ".join(found[0].places),
                confidence="certain" if kind == "weight_norm" else "likely",
                places=several(f"{fit.part}/{p}" for p in places),
            )


def _command(fit: Fit, found: list[Parametrised]) -> str:
    """The line that does it; none where more than this is in the way."""
    other = fit.rewrites or clashes(fit) or missing(fit) or unexpected(fit)
    first = found[0]
    if other or renamed(fit):
        return ""
    if any((p.old, p.name, p.dim) != (first.old, first.name, first.dim) for p in found):
        return ""
    part = fit.part
    each = f"for m in {[p.module for p in found]!r}"
    module = f"{part}.get_submodule(m)"
    dim = f", dim={first.dim}" if first.kind == "weight_norm" and first.dim != 0 else ""
    if first.old:
        put = f"torch.nn.utils.{first.kind}({module}, {first.name!r}{dim})"
        off = f"torch.nn.utils.remove_{first.kind}({module}, {first.name!r})"
    else:
        put = f"torch.nn.utils.parametrizations.{first.kind}({module}, {first.name!r}{dim})"
        off = f"torch.nn.utils.parametrize.remove_parametrizations({module}, {first.name!r})"
    before, after = (put, off) if first.in_file else (off, put)
    still = f"{part}.eval(); " if first.kind == "spectral_norm" else ""
    return (
        f"{still}[{before} {each}]; "
        f"holdtrue.open({fit.view.path!r}).restore({part}={part}); "
        f"[{after} {each}]"
    )
