"""What a rule may look at: data only, gathered before any rule runs.

A rule asks for one of these by the type of its parameter. A file alone is a `View`.
"""

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from holdtrue.doctor.live_training import LiveTraining
from holdtrue.doctor.state_dicts import StateDict
from holdtrue.doctor.training_state import SavedTraining
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


class Training(Struct, frozen=True, kw_only=True, eq=False):
    """What a file keeps of a training."""

    view: View
    saved: SavedTraining


class Resuming(Struct, frozen=True, kw_only=True, eq=False):
    """What a file keeps of a training beside the live objects that are to go on from it."""

    view: View
    saved: SavedTraining
    live: LiveTraining
