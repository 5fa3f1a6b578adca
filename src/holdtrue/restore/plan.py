"""A restore as data: what will be copied where, and what will be set, with its way back."""

import fnmatch
from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace
from torch import Tensor

from holdtrue.doctor.fit.patterns import renaming
from holdtrue.findings import Finding
from holdtrue.formats.view import LazyTensor

# What a caller may accept by `allow`; each turns an error into a note.
ALLOWABLE = {
    "missing-keys": "parameters of the target that the file lacks keep their values",
    "unexpected-keys": "what the target has no place for is left out",
    "shape-mismatch": "tensors of another shape are left out",
    "dtype-narrowed": "values are rounded to the target's dtype",
    "dtype-changed": "values are converted to another kind of number",
    "values-missing": "tensors that were saved without values keep those of the target",
    "state-not-carried": "what modules keep by code of their own stays as it is",
    "class-changed": "the state of one class is put into another",
    "tie-conflict": "of two values for one tied tensor, the first wins",
    "tie-lost": "tensors that were tied are filled, and stay apart",
    "optimizer-params-missing": "parameters new to the optimizer start fresh",
    "optimizer-params-unexpected": "state of parameters that are gone is dropped",
    "optimizer-groups-merged": "groups that were merged keep the code's settings",
    "scheduler-groups-changed": "per-group values of the scheduler stay as they are here",
    "value-differs": "a value that cannot be changed in place stays as it is here",
    "part-missing": "parts that the file lacks stay as they are",
    "architecture-changed": "the weights go into a model that computes another function",
    "code-changed": "the weights go into a model whose code was edited",
    "loader-changed": "the data loader goes on with its new settings",
    "qkv-fused": "a tensor that holds query, key and value is cut into the three",
    "qkv-split": "query, key and value are put into the one tensor that holds them here",
    "gate-up-fused": "a tensor that holds gate and up projection is cut into the two",
    "gate-up-split": "gate and up projection are put into the one tensor that holds them here",
    "weights-transposed": "matrices that are stored the other way round are turned",
    "flat-parameters": "what FSDP flattened is cut into its parameters, in the model's order",
}


class Copy(Struct, frozen=True, eq=False, gc=False):
    """Fill `into` with a stored tensor; `cast` when their dtypes differ."""

    lazy: LazyTensor
    into: Tensor
    cast: bool = False


class Action(Struct, frozen=True, eq=False):
    """Something that runs before the tensors are copied. `do` returns its own way back."""

    where: str
    do: Callable[[], Callable[[], None]]


class Choice(Struct, frozen=True):
    """What the caller asked for beside the targets."""

    only: tuple[str, ...] = ()
    rename: Mapping[str, str] = field(default_factory=dict)
    allow: frozenset[str] = frozenset()
    code_wins: bool = False  # where settings differ, those of the code are used
    resume: bool = False  # the training goes on, random states and gradients included


class Groups(Struct):
    """How the groups of an optimizer here are made of the saved ones."""

    saved: int  # how many the file has
    sources: list[list[int]]  # of each group here, the saved groups its parameters come from
    settled: list[bool]  # of each group here, whether its learning rate comes from the file
    here: list[dict[str, Any]] = field(default_factory=list)  # of each, what schedulers change
    base_changed: bool = False  # schedules begin from other rates: the code's, which win


class Plan(Struct, eq=False):
    """Everything a restore will do, gathered before any of it is done."""

    choice: Choice
    dry: bool = False  # only to see what would be found: the target may have no memory
    written_by: str = "holdtrue"  # the format of the file
    copies: list[Copy] = field(default_factory=list)
    actions: list[Action] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)  # tensor key saved → key in the target
    skipped: set[str] = field(default_factory=set)  # target keys that stay as they are
    groups: dict[int, Groups] = field(default_factory=dict)  # by the id of the optimizer
    moved: list[str] = field(default_factory=list)  # modules that are on another kind of device
    used: set[str] = field(default_factory=set)  # patterns of `only` and `rename` that fitted

    def found(self, finding: Finding) -> bool:
        """Record a finding; True when the caller allowed it."""
        if self.choice.code_wins and finding.code == "loader-changed":
            finding = replace(finding, severity="warning")
        allowed = finding.code in self.choice.allow and finding.severity == "error"
        self.findings.append(replace(finding, severity="note") if allowed else finding)
        return allowed


def renamer(plan: Plan, part: str) -> Callable[[str], str]:
    """A function that applies the first pattern that fits: {"old.*": "new.*"}, each * in turn.

    A pattern may be written with the part, "model/old.*". Notes in the plan which ones were used.
    """
    return renaming(plan.choice.rename, plan.used, part)


def selects(plan: Plan, part: str, name: str) -> bool:
    """True when `only` has no patterns, or one fits the name or "part/name"."""
    if not plan.choice.only:
        return True
    fitting = {
        p
        for p in plan.choice.only
        if fnmatch.fnmatchcase(name, p) or fnmatch.fnmatchcase(f"{part}/{name}", p)
    }
    plan.used |= fitting
    return bool(fitting)
