"""Attributes of modules that differ: which of them change what comes out, and which do not."""

import ast
from collections.abc import Iterator
from typing import Any

from msgspec import Struct

from holdtrue.doctor.architecture_code import same_function
from holdtrue.doctor.architecture_pair import Pair, resolved, short, shown
from holdtrue.findings import Finding, Severity, several
from holdtrue.records.architecture import ClassRecord, Kind, masked_digest
from holdtrue.records.syntax_tree import parse
from holdtrue.records.values import TAG

_FIX = 'build the model as it was saved, or accept it: allow=["architecture-changed"]'
_ABSENT = {TAG: "absent"}
# Settings that matter while training only, by the end of their names.
_TRAINING_ONLY = ("dropout", "dropout_p", "drop_path", "drop_prob", "drop_path_rate", "layerdrop",
                  "droprate", "drop_rate", "dropout_rate", "dropout_prob")  # fmt: skip
_TRAINING_ONLY_OF = {
    "Dropout": ("p",), "Dropout1d": ("p",), "Dropout2d": ("p",), "Dropout3d": ("p",),
    "AlphaDropout": ("p",), "FeatureAlphaDropout": ("p",),
    "BatchNorm1d": ("momentum",), "BatchNorm2d": ("momentum",), "BatchNorm3d": ("momentum",),
    "SyncBatchNorm": ("momentum",), "Embedding": ("scale_grad_by_freq", "sparse"),
    "EmbeddingBag": ("scale_grad_by_freq", "sparse"),
}  # fmt: skip
# They change memory or speed, and of the numbers at most the last bits.
_SAME_FUNCTION = frozenset({"inplace", "gradient_checkpointing", "use_cache", "sparse",
                            "_attn_implementation", "attn_implementation", "chunk_size",
                            "return_dict", "output_attentions", "output_hidden_states",
                            "torchscript", "memory_efficient"})  # fmt: skip
# Fields of a config that name things, or serve building, losses and generating only.
_NO_FUNCTION = frozenset({"id2label", "label2id", "problem_type", "initializer_range",
                          "initializer_factor", "task_specific_params", "tokenizer_class",
                          "finetuning_task", "bos_token_id", "eos_token_id",
                          "transformers_weights", "use_timm_backbone",
                          "use_pretrained_backbone"})  # fmt: skip


class Difference(Struct, frozen=True):
    """One attribute that differs in the same way at several places."""

    name: str  # of the attribute, and the field within: "config.eps"
    saved: Any
    here: Any
    class_name: str
    training: bool
    unread: bool  # forward does not read it
    changing: bool  # forward itself sets it
    restored: bool = False  # the module restores it itself


def compare_attributes(pair: Pair, paths: list[str]) -> list[Finding]:
    """Findings for the attributes, hooks and parametrizations of the modules at `paths`."""
    found: dict[str, tuple[Difference, list[str]]] = {}
    known: dict[tuple[int, int], list[Difference]] = {}
    # Nodes may refer to objects and functions: alike nodes say nothing where those differ.
    shared = pair.saved.objects == pair.here.objects and pair.saved.functions == pair.here.functions
    for path in paths:
        if shared and alike(*pair.kinds(path)):
            continue
        key = (pair.saved.modules[pair.paths[path]], pair.here.modules[path])
        if key not in known:
            known[key] = list(_differences(pair, *pair.kinds(path)))
        for difference in known[key]:
            # Several classes may hold one config: one cause.
            label = repr((difference.name, difference.saved, difference.here, difference.unread))
            found.setdefault(label, (difference, []))[1].append(path)
    return [_finding(pair, difference, places) for difference, places in found.values()]


def alike(saved: Kind, here: Kind) -> bool:
    return saved is here or (
        saved.attributes == here.attributes
        and saved.hooks == here.hooks
        and saved.parametrizations == here.parametrizations
    )


def _differences(pair: Pair, saved: Kind, here: Kind) -> Iterator[Difference]:
    cls = pair.saved.classes.get(saved.class_name, ClassRecord())
    mine = pair.here.classes.get(here.class_name, ClassRecord())
    for name in dict.fromkeys([*saved.attributes, *here.attributes]):
        before = resolved(saved.attributes.get(name, _ABSENT), pair.saved)
        after = resolved(here.attributes.get(name, _ABSENT), pair.here)
        for field, old, new in _leaves(pair, name, before, after):
            yield Difference(
                name=field,
                saved=old,
                here=new,
                class_name=here.class_name,
                training=saved.training,
                unread=name in cls.unread and name in mine.unread,
                changing=name in cls.changing or name in mine.changing,
                restored=name in cls.restored or name in mine.restored,
            )
    for family in ("hooks", "parametrizations"):
        one, other = getattr(saved, family), getattr(here, family)
        for name in dict.fromkeys([*one, *other]):
            before, after = one.get(name, ()), other.get(name, ())
            if list(map(short, before)) != list(map(short, after)):
                changed = set(before) ^ set(after)
                yield Difference(
                    name=f"{name} {family}",
                    saved=[short(n) for n in before],
                    here=[short(n) for n in after],
                    class_name=here.class_name,
                    training=saved.training,
                    unread=name.startswith("backward")
                    or (family == "hooks" and not any(_replaces(pair, n) for n in changed)),
                    changing=False,
                )


def _replaces(pair: Pair, hook: str) -> bool:
    """Whether a hook can put something in the place of inputs or outputs: it returns something.

    Hooks of libraries other than torch watch, move or offload; torch's own rewrite weights.
    """
    function = pair.saved.functions.get(hook) or pair.here.functions.get(hook)
    if function is None:
        return hook.startswith("torch.")
    tree = parse(function.text) if function.text else None
    if tree is None or isinstance(tree, ast.Lambda):
        return True
    return any(isinstance(n, ast.Return) and n.value is not None for n in ast.walk(tree))


def _leaves(pair: Pair, name: str, saved: Any, here: Any) -> Iterator[tuple[str, Any, Any]]:
    """(field, saved, here) of what differs inside a config or dict; else the attribute itself."""
    if _same(pair, saved, here):
        return
    one, other = _fields(saved), _fields(here)
    if one is None or other is None:
        yield name, saved, here
        return
    for key in dict.fromkeys([*one, *other]):
        old, new = one.get(key, _ABSENT), other.get(key, _ABSENT)
        yield from _leaves(pair, f"{name}.{key}", old, new)


def _fields(node: Any) -> dict[str, Any] | None:
    if not isinstance(node, dict):
        return None
    if TAG not in node:
        return node
    inner = node.get("v")
    return inner if node[TAG] == "object" and isinstance(inner, dict) else None


def _same(pair: Pair, saved: Any, here: Any) -> bool:
    if isinstance(saved, dict) and isinstance(here, dict):
        kinds = saved.get(TAG), here.get(TAG)
        if kinds == ("function", "function"):
            return same_function(pair, str(saved.get("v")), str(here.get("v")))
        if "device" in kinds or "Generator" in kinds:
            return True
        # Plain tensors are told of apart: they are state rather than settings.
        if "array" in kinds:
            return True
        return saved.keys() == here.keys() and all(_same(pair, saved[k], here[k]) for k in saved)
    if isinstance(saved, list) and isinstance(here, list):
        return len(saved) == len(here) and all(map(_same, [pair] * len(saved), saved, here))
    if {TAG: "device"} in (saved, here):
        return True
    if isinstance(saved, str) != isinstance(here, str):
        saved, here = (_masked(side) for side in (saved, here))
    return bool(saved == here)


def _masked(node: Any) -> Any:
    """A text as it looks where it equals something in the environment."""
    return {TAG: "masked", "v": masked_digest(node)} if isinstance(node, str) else node


def _finding(pair: Pair, found: Difference, paths: list[str]) -> Finding:
    severity, why = _judged(found)
    places = tuple(f"{pair.where(path)}.{found.name}" for path in paths)
    return Finding(
        code="architecture-changed" if severity != "note" else "setting-differs",
        severity=severity,
        where=places[0],
        what=f"{short(found.class_name)}: {found.name} differs",
        why=why,
        fix=_FIX if severity == "error" else "",
        saved="not there" if found.saved == _ABSENT else shown(found.saved),
        expected="not there" if found.here == _ABSENT else shown(found.here),
        places=several(places),
    )


def _judged(found: Difference) -> tuple[Severity, str]:
    """How bad a difference is, and why."""
    last = found.name.rpartition(".")[2]
    if last in _SAME_FUNCTION:
        return "note", "it changes memory or speed; of the outputs at most the last bits"
    if last in _NO_FUNCTION:
        return "note", "the forward does not depend on it"
    if last.endswith(_TRAINING_ONLY) or last in _TRAINING_ONLY_OF.get(short(found.class_name), ()):
        if found.training:
            return "warning", "training goes on otherwise; what comes out in eval is the same"
        return "note", "it matters while training only, and the model was saved in eval"
    if found.restored:
        return "note", "it is part of the state that the class keeps and restores itself"
    if found.unread and found.name.endswith(" hooks"):
        return "note", "it returns nothing that would take the place of inputs or outputs"
    if found.unread:
        return "note", "no forward of the model reads it"
    if found.changing:
        return _judged_state(found)
    return "error", "the weights fit, and the model computes another function"


def _judged_state(found: Difference) -> tuple[Severity, str]:
    number = all(isinstance(v, int | float) for v in (found.saved, found.here))
    if number:
        return (
            "warning",
            "forward itself changes it, and plain attributes are not part of the state",
        )
    return "note", "forward itself sets it: a cache, as it seems"
