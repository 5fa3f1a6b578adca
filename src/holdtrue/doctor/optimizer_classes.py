"""Whether a saved optimizer state is of the class of the live optimizer.

torch writes no class name. Settings that the class here needs and the file lacks prove that it is
another; where the settings are told apart no further, the class is not in question.
"""

from holdtrue.doctor.live_training import EXECUTION
from holdtrue.doctor.optimizer_match import Matched

_AKIN = {"Adam": "AdamW", "AdamW": "Adam"}  # classes that take each other's state
TORCH = frozenset({
    "Adam", "AdamW", "SGD", "RMSprop", "Adagrad", "Adadelta", "Adamax", "NAdam", "RAdam", "ASGD",
    "Rprop", "LBFGS", "SparseAdam", "Adafactor", "Muon",
})  # fmt: skip


def same_kind(match: Matched) -> bool:
    """True where nothing says that another class wrote the state."""
    here = match.live.class_name.rpartition(".")[2]
    return not lacking_settings(match) and _fits(match.saved.class_name, here)


def akin(match: Matched) -> bool:
    """Another class, whose state and settings this one takes."""
    here = match.live.class_name.rpartition(".")[2]
    return _AKIN.get(here) == match.saved.class_name and not lacking_settings(match)


def lacking_settings(match: Matched) -> list[str]:
    """Settings that the class here cannot do without, and the file does not have."""
    saved = {key for group in match.saved.groups for key in group.settings}
    # What newer versions of torch added is filled in by the class itself.
    newer = EXECUTION | {"maximize", "decoupled_weight_decay"}
    return sorted(match.live.defaults - saved - newer)


def _fits(saved: str, here: str) -> bool:
    known = saved[:1].isupper() and " or " not in saved and "-" not in saved
    if saved == "Adam or AdamW":
        return here not in ("SGD", "RMSprop", "Adagrad", "Adadelta", "LBFGS")
    return saved == here or not known or here not in TORCH
