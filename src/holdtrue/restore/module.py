"""Plans the restore of a module: names, shapes, dtypes, ties and flags compared, then filled."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from holdtrue.capture.module import (
    Entry,
    entries,
    walk,
)
from holdtrue.capture.raw import dtype_name
from holdtrue.doctor.amounts import counted
from holdtrue.findings import Finding, grouped
from holdtrue.formats.view import LazyTensor
from holdtrue.records.parts import ModuleState
from holdtrue.restore.casting import dtype_findings
from holdtrue.restore.fresh import Fresh
from holdtrue.restore.gradients import plan_gradients
from holdtrue.restore.naming import rename_hint
from holdtrue.restore.own_state import any_custom_state, plan_own_state
from holdtrue.restore.place import plan_tensor
from holdtrue.restore.plain import plan_plain
from holdtrue.restore.plan import Action, Plan, renamer, selects
from holdtrue.restore.ties import plan_ties


def plan_module(
    part: str,
    state: ModuleState,
    module: nn.Module,
    plan: Plan,
    tensors: Fresh,
    held: Mapping[int, str],
) -> None:
    """Add to the plan what fills `module`; `held` names tensors that optimizers hold, by id."""
    every = {e.name: e for e in entries(module)}
    target = {n: e for n, e in every.items() if selects(plan, part, n)}
    plan.skipped.update(f"{part}/{n}" for n in every.keys() - target.keys())
    saved = _renamed(part, state, plan)
    chosen = {n: k for n, k in saved.items() if selects(plan, part, n)}
    if chosen.keys() != target.keys():
        _compare_names(part, chosen, target, tensors, plan)
    matched = {n: k for n, k in chosen.items() if n in target}
    own = state.extra or state.custom or state.getstate
    if not (matched or own or plan.choice.only) and (target or any_custom_state(module)):
        plan.found(_nothing_restored(part))
    if not plan_plain(part, matched, target, tensors, plan):
        _compare_shapes(part, matched, target, tensors, plan)
        plan_ties(part, matched, target, tensors, plan, held)
        _plan_entries(part, matched, target, tensors, plan)
        _compare_devices(part, matched, target, tensors, plan)
    plan_gradients(part, state.gradients, matched, target, plan, tensors)
    if not plan.choice.only:
        _plan_flags(part, state, module, plan)
        plan_own_state(part, state, module, plan, tensors)


def _renamed(part: str, state: ModuleState, plan: Plan) -> dict[str, str]:
    """The saved tensors by the names that the caller gives them."""
    if not plan.choice.rename:
        for name, key in state.entries.items():
            plan.renamed.setdefault(key, f"{part}/{name}")
        return dict(state.entries)
    rename = renamer(plan, part)
    saved: dict[str, str] = {}
    homes: dict[str, str] = {}
    colliding: list[str] = []
    for old, key in state.entries.items():
        new = rename(old)
        if new in saved and saved[new] != key:
            colliding.append(f"{part}/{old} and {part}/{homes[new]} both become {new}")
        saved[new], homes[new] = key, old
        # Of tied names the first, which is the one that `known_tensors` takes.
        plan.renamed.setdefault(key, f"{part}/{new}")
    if colliding:
        plan.found(
            grouped(
                "rename-collides",
                "error",
                "two stored tensors are given one name",
                colliding,
                why="one place can take one tensor only",
                fix="write the patterns of rename more closely",
            )
        )
    return saved


def _compare_names(
    part: str,
    saved: Mapping[str, str],
    target: Mapping[str, Entry],
    tensors: Fresh,
    plan: Plan,
) -> None:
    covered = {id(target[n].tensor) for n in saved if n in target}
    missing = [e for n, e in target.items() if n not in saved and id(e.tensor) not in covered]
    for entry in missing:
        plan.skipped.add(f"{part}/{entry.name}")
    counters = [e.name for e in missing if e.persistent and _is_counter(e, plan)]
    if counters:
        plan.found(_counters_kept(part, counters))
    lacking_names = [e.name for e in missing if e.persistent and not _is_counter(e, plan)]
    lacking = [f"{part}/{name}" for name in lacking_names]
    if lacking:
        plan.found(
            grouped(
                "missing-keys",
                "error",
                f"the file lacks {len(lacking)} of the {len(target)} tensors of the target",
                lacking,
                why="they would keep the values they happen to have",
                fix=rename_hint(list(saved), list(target), lacking_names)
                + 'or keep them as they are: allow=["missing-keys"]',
            )
        )
    volatile = [f"{part}/{e.name}" for e in missing if not e.persistent]
    if volatile:
        plan.found(
            grouped(
                "buffers-kept",
                "note",
                f"{counted(len(volatile), 'buffer')} that "
                + (
                    "is not part of the state keeps its value"
                    if len(volatile) == 1
                    else "are not part of the state keep their values"
                ),
                volatile,
                why="the target declares them non-persistent, and the file does not have them",
            )
        )
    left = [n for n in saved if n not in target]
    known = [f"{part}/{n}" for n in left if tensors.tensors[saved[n]].persistent]
    if known:
        plan.found(
            grouped(
                "unexpected-keys",
                "error",
                f"the target has no place for {len(known)} of the {len(saved)} stored tensors",
                known,
                why="the file was written by another architecture, or under other names",
                fix='map their names with rename={"old.*": "new.*"}, or leave them out: '
                'allow=["unexpected-keys"]',
            )
        )


def _is_counter(entry: Entry, plan: Plan) -> bool:
    """BatchNorm's count of batches, which files of torch before 0.4.1 do not have."""
    named = entry.name.rpartition(".")[2] == "num_batches_tracked"
    return named and not entry.is_parameter and plan.written_by != "holdtrue"


def _counters_kept(part: str, names: list[str]) -> Finding:
    return grouped(
        "buffers-kept",
        "note",
        f"{counted(len(names), 'counter')} of BatchNorm keep{'s' * (len(names) == 1)} the value "
        "here",
        [f"{part}/{name}" for name in names],
        why="the file lacks num_batches_tracked, which no output depends on: it weighs the "
        "running statistics of a training with momentum=None",
    )


def _compare_shapes(
    part: str,
    matched: dict[str, str],
    target: Mapping[str, Entry],
    tensors: Fresh,
    plan: Plan,
) -> None:
    wrong: list[str] = []
    empty: list[str] = []
    differing: list[tuple[str, LazyTensor, str]] = []
    for name, key in list(matched.items()):
        lazy, tensor = tensors.tensors[key], target[name].tensor
        lazy_target = torch.nn.parameter.is_lazy(tensor)
        if lazy.layout == "uninitialized" and lazy_target:
            del matched[name]
        elif lazy.layout == "meta":
            empty.append(f"{part}/{name}")
        elif lazy.layout == "uninitialized":
            wrong.append(f"{part}/{name}: saved before its first batch, here {_shape(tensor)}")
        elif not lazy_target and tuple(tensor.shape) != lazy.shape:
            wrong.append(f"{part}/{name}: saved {list(lazy.shape)}, here {_shape(tensor)}")
        elif not (lazy_target or plan.dry) and tensor.device.type == "meta":
            plan.found(_on_meta(f"{part}/{name}"))
        elif lazy.layout == "quantized" or tensor.is_quantized:
            continue  # compared as a whole, with its scheme
        elif not lazy_target and dtype_name(tensor.dtype) != lazy.dtype:
            differing.append((f"{part}/{name}", lazy, dtype_name(tensor.dtype)))
            continue
        else:
            continue
        if name in matched:
            plan.skipped.add(f"{part}/{name}")
            del matched[name]
    if wrong:
        plan.found(
            grouped(
                "shape-mismatch",
                "error",
                f"{counted(len(wrong), 'tensor')} "
                f"{'has' if len(wrong) == 1 else 'have'} another shape here",
                wrong,
                why="the model was built with other sizes: classes, vocabulary, channels or layers",
                fix="build the target with the saved sizes, or keep its own values: "
                'allow=["shape-mismatch"]',
            )
        )
    if empty:
        plan.found(
            grouped(
                "values-missing",
                "error",
                f"{counted(len(empty), 'tensor')} of the file "
                f"{'has' if len(empty) == 1 else 'have'} no values",
                empty,
                why="they were on the meta device when saved: a shape and a dtype, no numbers",
                fix="save the model once it has values, or keep the target's: "
                'allow=["values-missing"]',
            )
        )
    for finding in dtype_findings(differing, measured=not plan.dry):
        plan.found(finding)


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)


def _plan_entries(
    part: str,
    matched: Mapping[str, str],
    target: Mapping[str, Entry],
    tensors: Fresh,
    plan: Plan,
) -> None:
    filled: set[int] = set()
    thawed: list[str] = []
    for name, key in matched.items():
        entry, lazy = target[name], tensors.tensors[key]
        if id(entry.tensor) in filled:
            continue
        filled.add(id(entry.tensor))
        plan_tensor(f"{part}/{name}", key, entry, plan, tensors)
        wanted = lazy.requires_grad
        if entry.is_parameter and lazy.parameter and entry.tensor.requires_grad != wanted:
            thawed.append(f"{part}/{name}: requires_grad={wanted}")
            plan.actions.append(Action(f"{part}/{name}", _set_requires_grad(entry.tensor, wanted)))
    if thawed:
        plan.found(
            grouped(
                "requires-grad-restored",
                "note",
                f"{counted(len(thawed), 'parameter')} "
                + (
                    "is frozen or trained again as it was"
                    if len(thawed) == 1
                    else "are frozen or trained again as they were"
                ),
                thawed,
            )
        )


def _compare_devices(
    part: str,
    matched: Mapping[str, str],
    target: Mapping[str, Entry],
    tensors: Fresh,
    plan: Plan,
) -> None:
    """Note where the module trained then and trains now: other kernels give other bits."""
    pairs = {
        (tensors.tensors[key].device.partition(":")[0], target[name].tensor.device.type)
        for name, key in matched.items()
    }
    plan.moved += [f"{part}: saved on {a}, here on {b}" for a, b in sorted(pairs) if a != b]


def _set_requires_grad(tensor: Tensor, wanted: bool) -> Callable[[], Callable[[], None]]:
    def do() -> Callable[[], None]:
        before = tensor.requires_grad
        tensor.requires_grad_(wanted)
        return lambda: void(tensor.requires_grad_(before))

    return do


def void(_: object) -> None:
    """Drops a value, where a function must return nothing."""


def _plan_flags(part: str, state: ModuleState, module: nn.Module, plan: Plan) -> None:
    wanted: list[tuple[nn.Module, bool]] = []
    changed: list[tuple[str, bool]] = []
    for path, owner in walk(module, wrappers=True):
        at = path
        while at and at not in state.training:
            at = at.rpartition(".")[0]
        if at in state.training and owner.training != state.training[at]:
            wanted.append((owner, state.training[at]))
            changed.append((path, state.training[at]))

    def do() -> Callable[[], None]:
        before = [(owner, owner.training) for owner, _ in wanted]
        for owner, flag in wanted:
            owner.training = flag

        def undo() -> None:
            for owner, flag in before:
                owner.training = flag

        return undo

    if wanted:
        plan.actions.append(Action("training flags", do))
        switched = [f"{part}/{path}: training={flag}" for path, flag in changed]
        plan.found(
            grouped(
                "training-restored",
                "note",
                f"{counted(len(wanted), 'module')} "
                + (
                    "trains or evaluates again as it did when saved"
                    if len(wanted) == 1
                    else "train or evaluate again as they did when saved"
                ),
                switched,
            )
        )


def _on_meta(where: str) -> Finding:
    return Finding(
        code="target-on-meta",
        severity="error",
        where=where,
        what="the target is on the meta device, and cannot be given memory",
        why="a tensor there is of another class than torch's own, or a view or a weak reference "
        "holds it",
        fix='model.to_empty(device="cpu") before restoring, and the optimizer made after that',
    )


def _nothing_restored(part: str) -> Finding:
    return Finding(
        code="nothing-restored",
        severity="error",
        where=part,
        what="not one tensor of the target would be filled",
        why="the file has none of its names, so all of it would stay as it is",
        fix='name what the file holds, or map its names with rename={"old.*": "new.*"}',
    )
