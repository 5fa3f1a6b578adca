"""What a model is beside its weights, as data: modules, settings, code. `docs/format.md` has the
layout.

Many modules of a model are alike, so what they are is kept once (`Kind`) and modules name theirs by
position; classes, functions and nested objects are likewise kept once for the whole model.
"""

from typing import Any

import xxhash
from msgspec import Struct, field

VERSION = 1
PROJECT = "project:"  # before the key of a function of user code, in `references`


class TensorFacts(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A parameter or buffer of a module, without its values."""

    dtype: str
    shape: tuple[int, ...] | None  # None before a lazy module's first batch
    parameter: bool = True
    requires_grad: bool = False
    persistent: bool = True


class Kind(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a module is, apart from where it stands."""

    class_name: str
    training: bool = True
    attributes: dict[str, Any] = field(default_factory=dict)  # name → attribute node
    tensors: dict[str, TensorFacts] = field(default_factory=dict)
    # What the constructor was given beside the attributes that are called like its parameters;
    # None where something that it needs is not known.
    arguments: dict[str, Any] | None = None
    hooks: dict[str, tuple[str, ...]] = field(default_factory=dict)  # torch's list → functions
    # Tensor name → classes of its parametrizations, in the order in which they apply.
    parametrizations: dict[str, tuple[str, ...]] = field(default_factory=dict)


class ClassRecord(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A class of modules. User code has a file and a tree, installed code a distribution."""

    bases: tuple[str, ...] = ()  # the other classes it inherits from, in method resolution order
    distribution: str | None = None
    file: str | None = None  # relative to the project
    line: int | None = None
    tree: str | None = None  # hash of the whole class's syntax tree
    forward: tuple[str, ...] = ()  # the functions of user code that forward runs, forward first
    base: str | None = None  # the nearest installed class, if the forward of one runs
    parameters: tuple[str, ...] = ()  # of its constructor, without device and dtype
    constants: dict[str, Any] = field(default_factory=dict)  # class attributes that forward reads
    unread: tuple[str, ...] = ()  # attributes that no forward of the model reads
    changing: tuple[str, ...] = ()  # attributes that forward itself sets
    restored: tuple[str, ...] = ()  # attributes that are part of its extra state or __getstate__


class FunctionRecord(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A function or method of user code."""

    file: str | None = None  # relative to the project
    line: int | None = None
    text: str | None = None  # None where the source was not to be found
    tree: str | None = None  # hash of its syntax tree; see `records/syntax_tree.py`
    references: dict[str, str] = field(default_factory=dict)  # as written → what it names
    constants: dict[str, Any] = field(default_factory=dict)  # globals and closure values it reads
    defaults: dict[str, Any] = field(default_factory=dict)  # of its parameters


class Architecture(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The record of one model. Function keys are full names; `#2` follows where two share one."""

    version: int = VERSION
    modules: dict[str, int]  # path ("" the root) → position in `kinds`, in the model's order
    kinds: tuple[Kind, ...]
    classes: dict[str, ClassRecord] = field(default_factory=dict)
    functions: dict[str, FunctionRecord] = field(default_factory=dict)
    objects: tuple[Any, ...] = ()  # attribute nodes that {"$": "shared", "v": position} refers to
    ties: tuple[tuple[str, ...], ...] = ()  # names of one tensor
    distributions: dict[str, str] = field(default_factory=dict)  # name → version
    files: tuple[str, ...] = ()  # the files under source/ that hold its code


def masked_digest(text: str) -> str:
    """Tells nearly all changes of a text that is not kept; 16 bits are too few to guess it by."""
    return xxhash.xxh3_64_hexdigest(text.encode("utf-8", "surrogatepass"))[:4]


def find_record_problem(record: Architecture) -> str | None:
    """Why a record that was read cannot be right, as the end of a sentence; None when it can."""
    positions = record.modules.values()
    if positions and not (min(positions) >= 0 and max(positions) < len(record.kinds)):
        return "a module is of a kind that is not there"
    return None
