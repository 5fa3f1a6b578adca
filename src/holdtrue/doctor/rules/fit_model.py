"""The model itself beside the file: how it is set, what no state dict can hold."""

from collections.abc import Iterator
from typing import Any

from holdtrue.doctor.architecture_pair import Pair
from holdtrue.doctor.architecture_tensors import compare_registration
from holdtrue.doctor.fit.comparison import facts
from holdtrue.doctor.subjects import Fit
from holdtrue.findings import Finding, several
from holdtrue.formats.module_tree import find_modules, is_module, module_nodes
from holdtrue.formats.view import View
from holdtrue.records.architecture import Kind
from holdtrue.records.values import TAG

_SWITCHED = ("BatchNorm", "Dropout", "AlphaDropout", "InstanceNorm")
_PLAIN = (bool, int, float, str, type(None))
# What changes memory, bookkeeping or training only.
_IDLE = frozenset({"inplace", "training", "momentum", "p", "gradient_checkpointing"})


def train_mode(fit: Fit) -> Iterator[Finding]:
    """A model that trains gives other outputs each time."""
    places = [
        path
        for path, position in fit.target.modules.items()
        if fit.target.kinds[position].training and _is_switched(fit.target.kinds[position])
    ]
    if places and not fit.state.training:
        yield Finding(
            code="train-mode",
            severity="note",
            where=f"{fit.part}/{places[0]}",
            what=f"{len(places)} layer{'s' if len(places) > 1 else ''} of the model in train mode",
            why="BatchNorm and Dropout compute something else there, and a state dict does not "
            "carry the mode",
            fix="before it is evaluated",
            command=f"{fit.part}.eval()",
            places=_places(fit, places),
        )


def saved_in_train_mode(view: View) -> Iterator[Finding]:
    """A whole pickled model brings its mode along."""
    for path, model in find_modules(view.tree, view.path).items():
        nodes = module_nodes(model, view.path)
        switched = [n for n in nodes if n.training and _short(n.class_name).startswith(_SWITCHED)]
        if switched or (nodes and nodes[0].training):
            yield Finding(
                code="saved-in-train-mode",
                severity="note",
                where=f"{view.path}: {path or 'the model'}",
                what="the model was saved while it was in train mode",
                why="a pickled model keeps the mode; BatchNorm and Dropout go on training with it",
                fix="before it is evaluated",
                command="model.eval()",
            )


def frozen(fit: Fit) -> Iterator[Finding]:
    """Parameters that will not train, whatever the file says."""
    parameters = {n: t for n, t in facts(fit).items() if t.parameter}
    names = [n for n, t in parameters.items() if not t.requires_grad]
    if names and len(names) < len(parameters):
        yield Finding(
            code="parameters-frozen",
            severity="note",
            where=f"{fit.part}/{names[0]}",
            what=f"{len(names)} of the {len(parameters)} parameters of the model are frozen",
            why="requires_grad is not in a state dict: it stays as the code here set it",
            places=_places(fit, names),
        )


def unregistered(fit: Fit) -> list[Finding]:
    """Tensors and modules that torch does not know of, and no checkpoint has."""
    everything = {path: path for path in fit.target.modules}
    found = compare_registration(Pair(fit.part, fit.target, fit.target, everything))
    # weight_norm and spectral_norm compute the weight anew for each batch.
    known = facts(fit)
    computed = {
        f"{fit.part}/{name.removesuffix(end)}"
        for name in known
        for end in ("_g", "_v", "_orig")
        if name.endswith(end)
    }
    return [finding for finding in found if finding.where not in computed]


def other_function(fit: Fit) -> Iterator[Finding]:
    """Modules of a whole pickled model that are other ones here: same names, another function."""
    if not is_module(fit.state.node):
        return
    found: dict[tuple[str, str, str], list[str]] = {}
    for node in module_nodes(fit.state.node, fit.view.path):
        position = fit.target.modules.get(node.path)
        if position is None:
            continue
        here = fit.target.kinds[position]
        if node.path and _short(node.class_name) != _short(here.class_name):
            key = ("class", _short(node.class_name), _short(here.class_name))
            found.setdefault(key, []).append(node.path)
            continue
        for name, saved in node.attributes.items():
            if name in _IDLE or name.startswith("_") or name not in here.attributes:
                continue
            before, after = _plain(saved), _plain(here.attributes[name])
            if before is not _OPEN and after is not _OPEN and before != after:
                key = (name, repr(before), repr(after))
                found.setdefault(key, []).append(node.path)
    for (name, saved, now), paths in found.items():
        yield Finding(
            code="architecture-changed",
            severity="warning",
            where=f"{fit.part}/{paths[0]}",
            what=f"{'another class' if name == 'class' else name + ' differs'}: same names and "
            "shapes, another function",
            why="weights do not show it; the model gives other outputs than the saved one",
            fix="build the model as it was saved",
            saved=saved if name == "class" else f"{name}={saved}",
            expected=now if name == "class" else f"{name}={now}",
            places=_places(fit, paths),
        )


_OPEN = object()  # a value that is not compared


def _plain(value: Any) -> Any:
    """A scalar, or a list of them from either side; else not to be compared."""
    if isinstance(value, dict) and isinstance(value.get("v"), list) and TAG in value:
        value = value["v"]
    if isinstance(value, tuple | list):
        inner = [_plain(v) for v in value]
        return _OPEN if any(v is _OPEN for v in inner) else inner
    return value if isinstance(value, _PLAIN) else _OPEN


def _is_switched(kind: Kind) -> bool:
    return _short(kind.class_name).startswith(_SWITCHED) or "Dropout" in kind.class_name


def _short(class_name: str) -> str:
    return class_name.rpartition(".")[2]


def _places(fit: Fit, names: list[str]) -> tuple[str, ...]:
    return several(f"{fit.part}/{name}" for name in names)
