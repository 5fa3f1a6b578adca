"""Layouts of a library's own that restore leaves alone: named, so that its converter is used."""

import re
from collections.abc import Iterator

from holdtrue.doctor.fit.comparison import missing, unexpected
from holdtrue.doctor.subjects import Fit
from holdtrue.findings import Finding, several

_INTERLEAVED = re.compile(r"(^|\.)query_key_value\.(weight|bias)$")
_QUERY = re.compile(r"(^|[._])(q|query)(_?(proj|lin|linear))?\.(weight|bias)$")
_EXPERT = re.compile(r"(^|\.)experts\.\d+\.(w[123]|gate_proj|up_proj|down_proj)\.weight$")
_STACK = re.compile(r"(^|\.)experts\.(gate_up_proj|down_proj|w[123]|gate_proj|up_proj)(\.weight)?$")

_ATTENTION = ("query, key and value head by head in one tensor",
              "three tensors for query, key and value",
              "GPT-NeoX, BLOOM and Falcon keep query, key and value of each head next to each "
              "other; how many heads there are is not in the shapes")  # fmt: skip
_EXPERTS = ("a tensor for each expert", "all experts stacked in one tensor",
            "libraries stack the experts of a mixture, and put gate and up projection into one; "
            "in which order is not in the shapes")  # fmt: skip


def library_layouts(fit: Fit) -> Iterator[Finding]:
    """The weights are there, in another arrangement of heads or experts."""
    left, lacking = unexpected(fit), missing(fit)
    for (one, other, why), first, second in (
        (_ATTENTION, _INTERLEAVED, _QUERY),
        (_EXPERTS, _EXPERT, _STACK),
    ):
        for has, wants, saved, here in (
            (first, second, one, other),
            (second, first, other, one),
        ):
            mine = [n for n in left if has.search(n)]
            theirs = [n for n in lacking if wants.search(n)]
            if mine and theirs:
                yield Finding(
                    code="layout-differs",
                    severity="error",
                    where=f"{fit.part}/{theirs[0]}",
                    what=f"the file has {saved}, the model {here}",
                    why=why,
                    fix="do not leave them out: load the file with the library that wrote it "
                    "(from_pretrained converts on loading), then save the model's state dict",
                    saved=mine[0],
                    expected=theirs[0],
                    confidence="likely",
                    places=several(f"{fit.part}/{n}" for n in theirs),
                )
