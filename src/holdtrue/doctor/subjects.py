"""What a rule may look at: data only, gathered before any rule runs.

A rule asks for one of these by the type of its parameter. A file alone is a `View`.
"""

from collections.abc import Mapping
from typing import Any

from msgspec import Struct, field

from holdtrue.doctor.fit.layouts import Rewrite
from holdtrue.doctor.fit.parametrised import Parametrised
from holdtrue.doctor.live_training import LiveTraining
from holdtrue.doctor.state_dicts import StateDict
from holdtrue.doctor.statistics import Statistics
from holdtrue.doctor.training_state import SavedTraining
from holdtrue.findings import Confidence, Finding
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
    parametrised: tuple[Parametrised, ...] = ()  # weights that one side keeps in parts
    proposal: Proposal | None = None


class Weights(Struct, frozen=True, kw_only=True, eq=False):
    """The values of a file's tensors, summed up, and the dtypes that they are meant for, if known.

    Both are by the paths of `view.tensors`; a component's by its tensor's path and its own name.
    What could not be read, or holds no numbers, has no statistics.
    """

    view: View
    statistics: Mapping[str, Statistics]
    wanted: Mapping[str, str] = field(default_factory=dict)  # path → the live tensor's dtype


class Training(Struct, frozen=True, kw_only=True, eq=False):
    """What a file keeps of a training."""

    view: View
    saved: SavedTraining


class Resuming(Struct, frozen=True, kw_only=True, eq=False):
    """What a file keeps of a training beside the live objects that are to go on from it."""

    view: View
    saved: SavedTraining
    live: LiveTraining


class Kept(Struct, frozen=True, kw_only=True, eq=False):
    """One checkpoint in a folder, opened and summed up."""

    name: str  # within the folder
    nbytes: int  # on disk
    format: str = ""  # "" for one that does not open
    findings: tuple[Finding, ...] = ()  # errors: what is damaged
    fingerprint_of: str = ""  # where its weights lie; "" for a file without
    fingerprint: str | None = None  # equal for equal weights; None where it is not known
    values: Mapping[str, Any] = field(default_factory=dict)  # epoch, metrics
    step: int | None = None


class Folder(Struct, frozen=True, kw_only=True, eq=False):
    """A folder of checkpoints, of a run of holdtrue's or of anyone's."""

    path: str
    names: tuple[str, ...]  # all that lies in it
    kept: tuple[Kept, ...]
    run: bool = False  # holdtrue's
    leftovers: tuple[str, ...] = ()  # of saves that never ended
    pointers: Mapping[str, str] = field(default_factory=dict)  # file → the checkpoint it names
