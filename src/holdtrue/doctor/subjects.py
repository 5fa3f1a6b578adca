"""What a rule may look at: data only, gathered before any rule runs.

A rule asks for one of these by the type of its parameter. A file alone is a `View`.
"""

from collections.abc import Mapping

from msgspec import Struct, field

from holdtrue.doctor.state_dicts import StateDict
from holdtrue.doctor.statistics import Statistics
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
    """The values of a file's tensors, summed up, and the dtypes that they are meant for, if known.

    Both are by the paths of `view.tensors`; a component's by its tensor's path and its own name.
    What could not be read, or holds no numbers, has no statistics.
    """

    view: View
    statistics: Mapping[str, Statistics]
    wanted: Mapping[str, str] = field(default_factory=dict)  # path → the live tensor's dtype
