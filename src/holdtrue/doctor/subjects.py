"""What a rule may look at: data only, gathered before any rule runs.

A rule asks for one of these by the type of its parameter. A file alone is a `View`.
"""

from collections.abc import Mapping
from typing import Any

from msgspec import Struct, field

from holdtrue.doctor.fit.layouts import Rewrite
from holdtrue.doctor.state_dicts import StateDict
from holdtrue.findings import Confidence
from holdtrue.formats.view import View
from holdtrue.records.architecture import Architecture


class Proposal(Struct, frozen=True, kw_only=True):
    """A call of restore that was tried on paper and went through without an error."""

    command: str
    rename: Mapping[str, str] = field(default_factory=dict)
    allow: tuple[str, ...] = ()
    lossless: bool = True  # False: some of the model or of the file is left out
    confidence: Confidence = "certain"


class Fit(Struct, frozen=True, kw_only=True, eq=False):
    """A state dict of a file beside the model that it is meant for."""

    view: View
    part: str  # what the caller calls the model
    state: StateDict  # the one of the file that is meant
    standing: Mapping[str, str]  # name in the file → the name that restore gives it by itself
    names: Mapping[str, str]  # name in the file → name in the model, where one is known
    target: Architecture  # of the live model
    needed: tuple[tuple[str, ...], ...] = ()  # names of each tensor of the model that is kept
    by_order: tuple[str, ...] = ()  # names that only their order tells apart
    confidence: Confidence = "certain"  # of `names`
    rivals: tuple[str, ...] = ()  # prefixes of which each alone covers the whole model
    rewrites: tuple[Rewrite, ...] = ()  # other layouts of the same numbers
    proposal: Proposal | None = None


class Weights(Struct, frozen=True, kw_only=True, eq=False):
    """The values of a file's tensors, summed up: path in `view.tensors` → statistics."""

    view: View
    statistics: Mapping[str, Any]
