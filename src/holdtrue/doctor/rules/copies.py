"""Two states of one model in one file: are they two at all?"""

import re
from collections.abc import Iterator
from itertools import combinations

from holdtrue.doctor.state_dicts import StateDict, state_dicts
from holdtrue.doctor.subjects import Weights
from holdtrue.findings import Finding, grouped
from holdtrue.formats.view import LazyTensor

_AVERAGED = re.compile(r"(^|[^a-z])(ema|averaged?|swa|shadow|teacher|target)([^a-z]|$)")
_BEST = re.compile(r"(^|[^a-z])best([^a-z]|$)")


def equal_states(weights: Weights) -> Iterator[Finding]:
    """The best beside the last, or the average beside the raw, and no value differs."""
    view = weights.view
    places = {id(tensor): path for path, tensor in view.tensors.items()}
    states = [s for s in state_dicts(view) if len(s.names) > 1]
    for a, b in combinations(states[:20], 2):
        special = next((s for s in (a, b) if _is_special(s)), None)
        if special is None or not _have_equal_values(weights, places, a, b):
            continue
        other = b if special is a else a
        left, right = _by_name(a), _by_name(b)
        shared = all(_shares(left[name], right[name]) for name in left)
        averaged = _named(special, _AVERAGED)
        yield grouped(
            code="average-equals-raw" if averaged else "best-equals-last",
            severity="warning" if shared else "note",
            what=f"{special.path} and {other.path} hold the same values, all {len(a.names)} "
            "tensors",
            places=[special.path, other.path],
            why="they lie in the same memory: state_dict() gives the live tensors, not a copy, so "
            "that what was kept went on changing with the model"
            if shared
            else "the average was never updated, or it was saved before the first update"
            if averaged
            else "the last is the best, or the best was overwritten by a later copy",
            fix="keep a copy: copy.deepcopy(model.state_dict()), or save the file when it is best",
            confidence="certain" if shared else "hint",
        )


def _is_special(state: StateDict) -> bool:
    return _named(state, _AVERAGED) or _named(state, _BEST)


def _named(state: StateDict, words: re.Pattern[str]) -> bool:
    return bool(words.search(state.path.lower()))


def _by_name(state: StateDict) -> dict[str, LazyTensor]:
    return {
        name.removeprefix("module."): tensor
        for name, tensor in state.names.items()
        if name != "n_averaged"  # of torch.optim.swa_utils.AveragedModel
    }


def _have_equal_values(
    weights: Weights, places: dict[int, str], a: StateDict, b: StateDict
) -> bool:
    left, right = _by_name(a), _by_name(b)
    return left.keys() == right.keys() and all(
        _digest(weights, places, left[name]) == _digest(weights, places, right[name]) != ""
        for name in left
    )


def _digest(weights: Weights, places: dict[int, str], tensor: LazyTensor) -> str:
    held = weights.statistics.get(places.get(id(tensor), ""))
    return f"{held.digest} {tensor.dtype} {tensor.shape}" if held is not None else ""


def _shares(a: LazyTensor, b: LazyTensor) -> bool:
    keys = [{piece.storage.key for piece in tensor.pieces} for tensor in (a, b)]
    return bool(keys[0]) and keys[0] == keys[1]
