"""Names that a file and a model do not share: renamed, missing, left over."""

import re
from collections.abc import Iterable, Iterator

from holdtrue.doctor.amounts import counted
from holdtrue.doctor.fit.comparison import facts, matched, missing, renamed, unexpected
from holdtrue.doctor.fit.spellings import QUANTISED, is_quantised
from holdtrue.doctor.subjects import Fit
from holdtrue.findings import Finding, several

_NUMBERED = re.compile(r"^(.*?\.)?\d+\.")
_RUNNING = re.compile(r"(^|\.)running_(mean|var)$")
# Constants and counters that the model makes itself, or that change no output.
_IDLE = re.compile(
    r"(^|\.)(num_batches_tracked|position_ids|token_type_ids|masked_bias|inv_freq|"
    r"relative_position_index|attn_mask|causal_mask|original_inv_freq)$|\.(attn|attention)\.bias$"
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
    said = ", ".join(f"{old!r} → {new!r}" for old, new in list(pattern.items())[:2])
    said += ", …" if len(pattern) > 2 else ""
    yield Finding(
        code="names-differ",
        severity="error",
        where=f"{fit.part}/{next(iter(changed))}",
        what=f"{counted(len(changed), 'tensor')} of the file "
        f"{'has another name' if len(changed) == 1 else 'have other names'} in the model",
        why=f"equal shapes, names that are alike{order}; {matched(fit)}",
        fix=f"rename them: {said}" if said else 'map them with rename={"old.*": "new.*"}',
        command=_command(fit),
        confidence=fit.confidence,
        saved=next(iter(changed)),
        expected=next(iter(changed.values())),
        places=_places(fit, [f"{old} → {new}" for old, new in changed.items()]),
    )


def several_models(fit: Fit) -> Iterator[Finding]:
    """Two models of one architecture side by side, each under its own prefix."""
    if fit.rivals:
        shown = ", ".join(map(repr, fit.rivals[:6]))
        yield Finding(
            code="state-dict-ambiguous",
            severity="error",
            where=fit.part,
            what=f"{len(fit.rivals)} models in the file could be meant for {fit.part!r}",
            why=f"each of the prefixes {shown} covers the whole model",
            fix=f'say which one: rename={{"{fit.rivals[0]}*": "*"}}, allow=["unexpected-keys"]',
            command=_command(fit),
            confidence="hint",
            places=tuple(f"{fit.part}: {prefix}*" for prefix in fit.rivals),
        )


def nothing_in_common(fit: Fit) -> Iterator[Finding]:
    """Not one tensor of the file is one of the model."""
    if not _is_nothing(fit) or fit.rivals:
        return
    names = list(fit.standing.values())
    adapter = bool(names) and all(_ADAPTER.search(n) for n in names)
    yield Finding(
        code="adapter-only" if adapter else "nothing-restored",
        severity="error",
        where=f"{fit.view.path}: {names[0]}" if names else fit.part,
        what="the file holds an adapter (LoRA) alone, not the model that it belongs to"
        if adapter
        else f"none of the file's {counted(len(names), 'tensor')} is one of the model's "
        f"{len(fit.needed)}",
        why="PEFT saves the adapter without the base model; its names are those of the model "
        "wrapped by get_peft_model"
        if adapter
        else "no name and no shape in the same place: they are of two architectures",
        fix="load the base model, then PeftModel.from_pretrained(model, folder); a model that is "
        "wrapped already can be restored into"
        if adapter
        else "compare what the file holds (holdtrue inspect) with the model that was built",
        saved=", ".join(names[:3])[:200],
        expected=", ".join(group[0] for group in fit.needed[:3])[:200],
    )


def _is_nothing(fit: Fit) -> bool:
    known = facts(fit)
    shared = any(name in known for name in fit.standing.values())
    return bool(fit.needed) and not (fit.names or fit.rewrites or shared)


def quantised(fit: Fit) -> Iterator[Finding]:
    """Quantised weights for a model of floating-point ones, or the other way round."""
    left = [n for n in unexpected(fit) if QUANTISED.search(n)]
    lacking = [n for n in missing(fit) if QUANTISED.search(n)]
    for names, saved, here in (
        (left, "quantised", "floating point"),
        (lacking, "floating point", "quantised"),
    ):
        if is_quantised(names):
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
    if _is_nothing(fit) or fit.rivals:
        return
    explained = _quantised_modules(fit)
    here = facts(fit)
    names = [n for n in missing(fit) if _module(n) not in explained and not _is_counter(fit, n)]
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
        (rest, "tensors", _layers(fit, rest) or _where_from(rest)),
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


def _is_counter(fit: Fit, name: str) -> bool:
    """BatchNorm's count of batches, which restore keeps by itself."""
    return name.rpartition(".")[2] == "num_batches_tracked" and not facts(fit)[name].parameter


def unexpected_keys(fit: Fit) -> Iterator[Finding]:
    """What the model has no place for."""
    if _is_nothing(fit) or fit.rivals:
        return
    explained = is_quantised([n for n in unexpected(fit) if QUANTISED.search(n)])
    names = [n for n in unexpected(fit) if not (explained and QUANTISED.search(n))]
    adapters = [n for n in names if _ADAPTER.search(n)]
    idle = [n for n in names if _IDLE.search(n)]
    rest = [n for n in names if n not in {*adapters, *idle}]
    for group, what, why in (
        (adapters, ": adapter weights (LoRA)",
         "the model was not wrapped by PEFT; without them it computes what the base model does"),
        (idle, ": buffers that models make themselves", "they hold constants or counters, no "
         "weights: nothing is lost by leaving them out"),
        (rest, "", _layers(fit, rest)
         or "the file was written by another architecture, or with more around the model"),
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
    if proposal is None or fit.rivals:  # which of them is meant is not known
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


def _quantised_modules(fit: Fit) -> set[str]:
    names = [n for n in unexpected(fit) if QUANTISED.search(n)]
    lacking = [n for n in missing(fit) if QUANTISED.search(n)]
    if not (is_quantised(names) or is_quantised(lacking)):
        return set()
    return {_module(n.partition("._packed_params")[0] + ".x") for n in [*names, *lacking]} | {
        _module(n) for n in [*names, *lacking]
    }


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _layers(fit: Fit, names: list[str]) -> str:
    """Whole layers more or fewer, as a clause; "" where it is something else."""
    found: set[str] = set()
    for name in names:
        match = _NUMBERED.match(name)
        if match is None:
            return ""
        found.add(match[1] or "")
    saved = {head: _indices(head, fit.standing.values()) for head in found}
    here = {head: _indices(head, facts(fit)) for head in found}
    if any(not saved[head] or not here[head] or saved[head] == here[head] for head in found):
        return ""
    counts = [
        f"{len(saved[head])} layers below {head!r}, the model {len(here[head])}"
        for head in sorted(found)
    ]
    return f"another depth: the file has {' and '.join(counts)}"


def _indices(head: str, names: Iterable[str]) -> set[str]:
    return {n[len(head) :].partition(".")[0] for n in names if n.startswith(head)}


def _where_from(names: list[str]) -> str:
    tops = list(dict.fromkeys(n.partition(".")[0] for n in names))
    shown = ", ".join(tops[:4]) + (", …" if len(tops) > 4 else "")
    return f"all of them below {shown}; they would keep the values they happen to have"


def _command(fit: Fit) -> str:
    return fit.proposal.command if fit.proposal else ""


def _places(fit: Fit, names: list[str]) -> tuple[str, ...]:
    return several(f"{fit.part}/{name}" for name in names)
