"""What numbers stand for, which no state dict says: which output is which class."""

from collections.abc import Iterator
from typing import Any

from holdtrue.doctor.state_dicts import StateDict, state_dicts
from holdtrue.errors import HoldtrueError
from holdtrue.findings import Finding, several
from holdtrue.formats.tree_walk import each_node, name_of
from holdtrue.formats.view import LazyTensor, View

_MOST_CLASSES = 100_000
_SAID = ("class", "label", "categor", "vocab", "token", "hparam", "hyper_param", "config", "args")


def classes_absent(view: View) -> Iterator[Finding]:
    """A classifier in a checkpoint that someone put together, and no word on its classes.

    Of a bare state dict nothing is said: there they are kept beside it, if at all.
    """
    if view.about.get("kind") != "checkpoint" or not isinstance(view.tree, dict):
        return
    heads = [found for state in state_dicts(view) if (found := _head(state)) is not None]
    if not heads or _is_said(view, {count for _, count in heads}):
        return
    name, count = heads[0]
    yield Finding(
        code="classes-absent",
        severity="note",
        where=f"{view.path}: {name}",
        places=several(f"{view.path}: {n}" for n, _ in heads),
        what=f"the last layer has {count} outputs, and nothing in the file says what they are",
        why="the order of class names, the vocabulary and the preprocessing are no weights: where "
        "they differ from those in training, each answer is wrong, without an error",
        fix="keep them with the model: holdtrue.save(path, model=model, classes=names)",
        confidence="hint",
    )


def _head(state: StateDict) -> tuple[str, int] | None:
    """The last layer and its outputs, where it is one with a weight and a bias."""
    names = list(state.names)
    if len(names) < 2 or not names[-1].endswith("bias"):
        return None
    bias, weight = state.names[names[-1]], state.names[names[-2]]
    own = names[-2].rpartition(".")[0] == names[-1].rpartition(".")[0]
    if not own or len(weight.shape) != 2 or bias.shape != weight.shape[:1]:
        return None
    outputs, inputs = weight.shape
    if not 2 <= outputs <= min(_MOST_CLASSES, max(inputs, 2) * 4):
        return None
    return (f"{state.path}/" if state.path else "") + names[-2].rpartition(".")[0], outputs


def _is_said(view: View, counts: set[int]) -> bool:
    """Whether a key speaks of classes or settings, or a list or dict has as many entries."""
    try:
        for _, node in each_node(view.tree, view.path):
            if isinstance(node, dict):
                if any(word in name_of(key).lower() for key in node for word in _SAID):
                    return True
                if len(node) in counts and not any(map(_is_tensor, node.values())):
                    return True
            elif (
                isinstance(node, list | tuple)
                and len(node) in counts
                and any(isinstance(item, str) for item in node)
            ):
                return True
    except HoldtrueError:  # nested past the budgets, which opening it has said
        return True
    return False


def _is_tensor(value: Any) -> bool:
    return isinstance(value, LazyTensor)
