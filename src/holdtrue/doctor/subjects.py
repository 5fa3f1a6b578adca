"""What a rule may look at: data only, gathered before any rule runs.

A rule asks for one of these by the type of its parameter. A file alone is a `View`.
"""

from collections.abc import Mapping
from typing import Any

from msgspec import Struct, field

from holdtrue.doctor.state_dicts import StateDict
from holdtrue.findings import Finding
from holdtrue.formats.view import View
from holdtrue.records.architecture import Architecture


class Fit(Struct, frozen=True, kw_only=True, eq=False):
    """A state dict of a file beside the model that it is meant for."""

    view: View
    part: str  # what the caller calls the model
    state: StateDict  # the one of the file that is meant
    names: Mapping[str, str]  # name in the file → name in the model, where one is known
    target: Architecture  # of the live model


class Weights(Struct, frozen=True, kw_only=True, eq=False):
    """The values of a file's tensors, summed up: path in `view.tensors` → statistics."""

    view: View
    statistics: Mapping[str, Any]


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
