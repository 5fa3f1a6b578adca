"""Compares two architecture records: what the model was when saved, and what it is here.

Data in, findings out, one finding a cause. What a restore checks of tensors anyway is told only to
those who compare two checkpoints.
"""

from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from holdtrue.doctor.architecture_attributes import compare_attributes
from holdtrue.doctor.architecture_code import compare_code, holds_only, same_code
from holdtrue.doctor.architecture_libraries import compare_libraries
from holdtrue.doctor.architecture_pair import Pair, call_text, short
from holdtrue.doctor.architecture_tensors import compare_registration, compare_tensors
from holdtrue.findings import Finding, several
from holdtrue.records.architecture import Architecture, Kind
from holdtrue.records.manifest import Manifest

CHANGED = "architecture-changed"
_FIX = 'build the model as it was saved, or accept it: allow=["architecture-changed"]'
_NOTED = "their tensors are found by name; modules that hold or pass on compute nothing"
# Containers whose children run in the order in which they stand.
_ORDERED = ("Sequential", "ModuleList")


def compare_architectures(
    saved: Architecture,
    here: Architecture,
    part: str = "model",
    *,
    selects: Callable[[str], bool] = lambda path: True,
    rename: Callable[[str], str] = lambda path: path,
) -> list[Finding]:
    """What differs between two models.

    `selects` restricts the comparison to some module paths, `rename` maps saved ones to those here.
    """
    origin = {new: path for path in saved.modules if selects(new := rename(path))}
    targets = [path for path in here.modules if selects(path)]
    pair = Pair(part, saved, here, {p: origin[p] for p in targets if p in origin})
    changed, findings = _compare_classes(pair)
    findings += _lost_and_added(pair, origin, targets, changed)
    findings += _order(pair, changed)
    findings += compare_attributes(pair, [p for p in pair.paths if p not in changed])
    findings += compare_code(pair)
    findings += compare_registration(pair)
    findings += compare_libraries(pair)
    return findings


def same_model(saved: Architecture, here: Architecture) -> bool:
    """Whether there is nothing to tell of the two, where no path is renamed.

    The modules are the same in the same order, and of each kind one is compared: the comparisons
    look at nothing but kinds, and a model has far fewer of them than modules.
    """
    if list(saved.modules) != list(here.modules):
        return False
    kinds: dict[tuple[int, int], str] = {}
    for path, position in saved.modules.items():
        kinds.setdefault((position, here.modules[path]), path)
    pair = Pair("", saved, here, {path: path for path in kinds.values()})
    changed, findings = _compare_classes(pair)
    return not (
        changed
        or findings
        or compare_attributes(pair, list(pair.paths))
        or compare_code(pair)
        or compare_registration(pair)
        or compare_libraries(pair)
    )


def compare_manifests(a: Manifest | None, b: Manifest | None) -> list[Finding]:
    """What differs between the models that two checkpoints of holdtrue's hold under one name."""
    findings: list[Finding] = []
    for name, part in a.parts.items() if a and b else ():
        other = b.parts.get(name) if b else None
        saved, here = part.architecture, other.architecture if other else None
        if saved is not None and here is not None:
            both = {path: path for path in here.modules if path in saved.modules}
            findings += compare_architectures(saved, here, name)
            findings += compare_tensors(Pair(name, saved, here, both))
    return findings


def _compare_classes(pair: Pair) -> tuple[set[str], list[Finding]]:
    """Paths whose module does something else by its class, and what to say of classes."""
    changed: dict[tuple[str, str], list[str]] = {}
    moved: dict[tuple[str, str], list[str]] = {}
    for path in pair.paths:
        saved, here = pair.kinds(path)
        if saved.class_name == here.class_name:
            continue
        same = same_code(pair, saved.class_name, here.class_name)
        into = moved if same else changed
        texts = (saved.class_name, here.class_name) if same else (call_text(saved), call_text(here))
        into.setdefault(texts, []).append(path)
    findings = [
        _finding(
            pair,
            paths,
            "another class: same names and shapes may hide another function",
            saved=saved,
            expected=here,
        )
        for (saved, here), paths in changed.items()
    ]
    findings += [
        Finding(
            code="class-moved",
            severity="note",
            where=pair.where(paths[0]),
            what="the class has another name, and the same code",
            saved=saved,
            expected=here,
            places=several(map(pair.where, paths)),
        )
        for (saved, here), paths in moved.items()
    ]
    return {path for paths in changed.values() for path in paths}, findings


def _lost_and_added(
    pair: Pair, origin: dict[str, str], targets: list[str], changed: set[str]
) -> list[Finding]:
    """Modules that stand in one only; of a subtree, its top."""
    findings = []
    lost = _tops([p for p in origin if p not in pair.paths])
    added = _tops([p for p in targets if p not in origin])
    for paths, record, what in (
        (lost, pair.saved, "the saved model has modules that are not here"),
        (added, pair.here, "there are modules here that the saved model did not have"),
    ):
        # What stands below a module of another class is told with that.
        left = [p for p in paths if _parent(p) not in changed]
        for severity in ("error", "note"):
            judged = [p for p in left if _weight(record, origin, p) == severity]
            if judged:
                shown = call_text(_kind(record, origin, judged[0]))
                either = {"saved": shown} if record is pair.saved else {"expected": shown}
                finding = _finding(pair, judged, what, **either)
                if severity == "note":
                    finding = replace(finding, severity="note", why=_NOTED, fix="")
                findings.append(finding)
    return findings


def _weight(record: Architecture, origin: dict[str, str], path: str) -> str:
    """Whether a module that stands in one only changes the function by itself.

    What has parameters or buffers is found by their names; what has no forward only holds others.
    """
    old = origin.get(path, path)
    subtree = [p for p in record.modules if p == old or p.startswith(f"{old}.")]
    kind = _kind(record, origin, path)
    if any(record.kinds[record.modules[p]].tensors for p in subtree):
        return "note"
    idle = "Dropout" in kind.class_name and not kind.training
    if idle or short(kind.class_name) == "Identity":
        return "note"
    classes = (record.classes.get(record.kinds[record.modules[p]].class_name) for p in subtree)
    return "note" if all(cls is not None and holds_only(cls) for cls in classes) else "error"


def _kind(record: Architecture, origin: dict[str, str], path: str) -> Kind:
    old = origin.get(path, path)
    return record.kinds[record.modules[old if old in record.modules else path]]


def _tops(paths: list[str]) -> list[str]:
    found = set(paths)
    return [p for p in paths if not p or _parent(p) not in found]


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def _order(pair: Pair, changed: set[str]) -> list[Finding]:
    """Children that stand in another order than when saved."""
    findings = []
    orders: list[dict[str, list[str]]] = []
    for paths in (pair.paths, {p: p for p in sorted(pair.paths, key=_saved_position(pair))}):
        children: dict[str, list[str]] = {}
        for path in paths:
            if path:
                children.setdefault(_parent(path), []).append(path.rpartition(".")[2])
        orders.append(children)
    for parent, names in orders[0].items():
        before = orders[1][parent]
        if names == before or parent in changed or parent not in pair.paths:
            continue
        here = pair.kinds(parent)[1]
        runs = _runs_in_order(pair.here, here)
        findings.append(
            Finding(
                code=CHANGED if runs else "order-changed",
                severity="error" if runs else "note",
                where=pair.where(parent),
                what="the modules in it stand in another order",
                why="they run in the order in which they stand"
                if runs
                else "forward names its modules, so that their order does not matter to it",
                fix=_FIX if runs else "",
                saved=", ".join(before[:12]),
                expected=", ".join(names[:12]),
            )
        )
    return findings


def _runs_in_order(record: Architecture, kind: Kind) -> bool:
    cls = record.classes.get(kind.class_name)
    names = [kind.class_name, *(cls.bases if cls else ())]
    return any(short(name) in _ORDERED for name in names)


def _saved_position(pair: Pair) -> Callable[[str], int]:
    positions = {path: i for i, path in enumerate(pair.saved.modules)}
    return lambda path: positions[pair.paths[path]]


def _finding(pair: Pair, paths: list[str], what: str, **more: Any) -> Finding:
    places = tuple(map(pair.where, paths))
    return Finding(
        code=CHANGED,
        severity="error",
        where=places[0],
        what=what,
        fix=_FIX,
        places=several(places),
        **more,
    )
