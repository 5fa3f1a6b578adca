"""Names that a file and a model do not share: renamed, missing, left over."""

import re
from collections.abc import Iterator

from holdtrue.doctor.fit.comparison import facts, matched, missing, renamed, unexpected
from holdtrue.doctor.subjects import Fit
from holdtrue.findings import Finding

_RUNNING = re.compile(r"(^|\.)running_(mean|var)$")
# Constants and counters that the model makes itself, or that change no output.
_IDLE = re.compile(
    r"(^|\.)(num_batches_tracked|position_ids|token_type_ids|masked_bias|inv_freq|"
    r"relative_position_index|attn_mask|causal_mask|original_inv_freq)$|\.(attn|attention)\.bias$"
)
_QUANTISED = re.compile(
    r"(^|\.)(_packed_params(\._packed_params|\.dtype)?|scale|zero_point|absmax|nested_absmax|"
    r"quant_map|nested_quant_map|SCB|qweight|qzeros|scales|g_idx|weight_scale|"
    r"quant_state\.[\w.]+)$"
)
_ADAPTER = re.compile(r"(^|\.)lora_(A|B|embedding_A|embedding_B|magnitude_vector)(\.|$)")


def names_differ(fit: Fit) -> Iterator[Finding]:
    """The same tensors under other names."""
    changed = renamed(fit)
    if not changed:
        return
    order = ""
    if fit.by_order:
        order = (
            f"; {len(fit.by_order)} of them have equal shapes and are told apart by their order "
            "only: compare an output before you rely on it"
        )
    pattern = fit.proposal.rename if fit.proposal else {}
    said = ", ".join(f"{old!r} → {new!r}" for old, new in list(pattern.items())[:4])
    yield Finding(
        code="names-differ",
        severity="error",
        where=f"{fit.part}/{next(iter(changed))}",
        what=f"{len(changed)} tensors of the file have other names in the model",
        why=f"equal shapes, names that are alike{order}; {matched(fit)}",
        fix=f"rename them: {said}" if said else 'map them with rename={"old.*": "new.*"}',
        command=_command(fit),
        confidence=fit.confidence,
        saved=next(iter(changed)),
        expected=next(iter(changed.values())),
        places=_places(fit, [f"{old} → {new}" for old, new in changed.items()]),
    )


def quantised(fit: Fit) -> Iterator[Finding]:
    """Quantised weights for a model of floating-point ones, or the other way round."""
    left = [n for n in unexpected(fit) if _QUANTISED.search(n)]
    lacking = [n for n in missing(fit) if _QUANTISED.search(n)]
    for names, saved, here in (
        (left, "quantised", "floating point"),
        (lacking, "floating point", "quantised"),
    ):
        if _is_quantised(names):
            yield Finding(
                code="quantisation-differs",
                severity="error",
                where=f"{fit.part}/{names[0]}",
                what=f"the weights are {saved} in the file and {here} in the model",
                why="scales, zero points and packed numbers stand beside or instead of the "
                "weights; they mean nothing to the other kind of module",
                fix="quantise the model in the same way before restoring, or save the weights "
                "before they are quantised",
                saved=saved,
                expected=here,
                places=_places(fit, names),
            )


def missing_keys(fit: Fit) -> Iterator[Finding]:
    """What the file lacks: parameters, statistics that matter, counters that do not."""
    explained = _quantised_modules(fit)
    names = [n for n in missing(fit) if _module(n) not in explained]
    here = facts(fit)
    total = len(fit.needed)
    adapters = [n for n in names if _ADAPTER.search(n)]
    statistics = [n for n in names if _RUNNING.search(n)]
    idle = [n for n in names if _IDLE.search(n) and not here[n].parameter]
    told = {*adapters, *statistics, *idle}
    rest = [n for n in names if n not in told]
    for group, what, why in (
        (adapters, "adapter weights (LoRA)", "the file holds a model without its adapter"),
        (statistics, "running statistics of normalisation",
         "they are state that evaluation computes with: fresh ones (0 and 1) give other outputs"),
        (idle, "buffers that the model makes itself",
         "constants or counters that a fresh model has right: nothing is lost by keeping them"),
        (rest, "tensors", _where_from(rest)),
    ):  # fmt: skip
        if group:
            yield Finding(
                code="missing-keys",
                severity="error",
                where=f"{fit.part}/{group[0]}",
                what=f"the file lacks {len(group)} of the {total} tensors of the model"
                + ("" if group is rest else f": {what}"),
                why=f"{why}; {matched(fit)}",
                fix='keep the model\'s own values: allow=["missing-keys"]',
                command=_command(fit),
                places=_places(fit, group),
            )


def unexpected_keys(fit: Fit) -> Iterator[Finding]:
    """What the model has no place for."""
    explained = _is_quantised([n for n in unexpected(fit) if _QUANTISED.search(n)])
    names = [n for n in unexpected(fit) if not (explained and _QUANTISED.search(n))]
    adapters = [n for n in names if _ADAPTER.search(n)]
    idle = [n for n in names if _IDLE.search(n)]
    rest = [n for n in names if n not in {*adapters, *idle}]
    for group, what, why in (
        (adapters, ": adapter weights (LoRA)",
         "the model was not wrapped by PEFT; without them it computes what the base model does"),
        (idle, ": buffers that models make themselves", "they hold constants or counters, no "
         "weights: nothing is lost by leaving them out"),
        (rest, "", "the file was written by another architecture, or with more around the model"),
    ):  # fmt: skip
        if group:
            yield Finding(
                code="unexpected-keys",
                severity="error",
                where=f"{fit.part}/{group[0]}",
                what=f"the model has no place for {len(group)} of the {len(fit.standing)} tensors "
                f"of the file{what}",
                why=f"{why}; {matched(fit)}",
                fix='leave them out: allow=["unexpected-keys"]',
                command=_command(fit),
                places=_places(fit, group),
            )


def restore_call(fit: Fit) -> Iterator[Finding]:
    """The call that makes it fit, tried before it is told."""
    proposal = fit.proposal
    if proposal is None or not (proposal.rename or proposal.allow):
        return
    cost = "nothing is lost" if proposal.lossless else matched(fit)
    yield Finding(
        code="restore-call",
        severity="note",
        where=fit.part,
        what="this call fits the file to the model"
        + ("" if proposal.lossless else ", and leaves something out"),
        why=f"tried without touching the model, it gave no errors; {cost}",
        command=proposal.command,
        confidence=proposal.confidence,
    )


def _is_quantised(names: list[str]) -> bool:
    """A `scale` alone is a parameter that many models have."""
    telling = [n for n in names if not re.search(r"(^|\.)(scale|scales)$", n)]
    return bool(telling)


def _quantised_modules(fit: Fit) -> set[str]:
    names = [n for n in unexpected(fit) if _QUANTISED.search(n)]
    lacking = [n for n in missing(fit) if _QUANTISED.search(n)]
    if not (_is_quantised(names) or _is_quantised(lacking)):
        return set()
    return {_module(n.partition("._packed_params")[0] + ".x") for n in [*names, *lacking]} | {
        _module(n) for n in [*names, *lacking]
    }


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _where_from(names: list[str]) -> str:
    tops = list(dict.fromkeys(n.partition(".")[0] for n in names))
    shown = ", ".join(tops[:4]) + (", …" if len(tops) > 4 else "")
    return f"all of them below {shown}; they would keep the values they happen to have"


def _command(fit: Fit) -> str:
    return fit.proposal.command if fit.proposal else ""


def _places(fit: Fit, names: list[str]) -> tuple[str, ...]:
    return tuple(f"{fit.part}/{name}" for name in names) if len(names) > 1 else ()
