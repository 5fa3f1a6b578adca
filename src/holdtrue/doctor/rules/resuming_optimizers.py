"""Saved optimizer states beside the live optimizers that are to go on from them."""

from collections import Counter
from collections.abc import Iterator

from holdtrue.doctor.amounts import counted
from holdtrue.doctor.live_training import LiveOptimizer
from holdtrue.doctor.optimizer_classes import TORCH, akin, lacking_settings, same_kind
from holdtrue.doctor.optimizer_match import Matched, matched
from holdtrue.doctor.subjects import Resuming
from holdtrue.doctor.training_folder import FORMAT
from holdtrue.findings import Finding, several


def optimizer_absent(resuming: Resuming) -> Iterator[Finding]:
    """A live optimizer for which the file has no state."""
    found = {match.live.target for match in matched(resuming.saved, resuming.live)}
    for live in resuming.live.optimizers:
        if live.target in found:
            continue
        whole = ", ".join(f"{p} ({c})" for p, c in resuming.saved.pickled.items())
        held = f"{len(resuming.saved.optimizers)} optimizer states"
        yield Finding(
            code="part-missing",
            severity="error",
            where=live.target,
            what=f"the file holds no optimizer state for {live.target!r}",
            why=f"an optimizer was pickled whole there: {whole}"
            if whole
            else "it was saved without, as weights only"
            if not resuming.saved.optimizers
            else f"it holds {held}, and more are asked for",
            fix="restore the model alone and start the optimizer fresh: the first steps have no "
            "momentum, so warm the learning rate up; or resume from a file that has the state",
            saved="no optimizer state" if not resuming.saved.optimizers else held,
            expected=f"state of a {live.class_name.rpartition('.')[2]}",
        )


def other_class(resuming: Resuming) -> Iterator[Finding]:
    """State that another class of optimizer wrote."""
    for match in matched(resuming.saved, resuming.live):
        here = match.live.class_name.rpartition(".")[2]
        lacking = lacking_settings(match)
        if same_kind(match):
            continue
        near = akin(match)
        yield Finding(
            code="class-changed",
            severity="warning" if near else "error",
            where=f"{resuming.view.path}: {match.saved.path or 'the top'}",
            what="this optimizer is of another class than the saved one",
            why="load_state_dict takes its settings, and with them how weight decay is done: the "
            "optimizer here becomes the saved one"
            if near
            else "load_state_dict takes it all the same, and the next step stops for want of "
            f"{', '.join(lacking[:4]) or 'its moments'}, or goes on with the wrong moments",
            fix=f"build the optimizer that was saved: {match.saved.class_name}",
            command=_class_command(match),
            saved=match.saved.class_name,
            expected=here,
            confidence="certain" if lacking or near else "likely",
        )


def _class_command(match: Matched) -> str:
    name = match.saved.class_name.partition(" ")[0]
    if name not in TORCH:
        return ""
    settings = match.saved.groups[0].settings
    rate = settings.get("initial_lr", settings.get("lr"))
    given = f", lr={rate!r}" if isinstance(rate, int | float) else ""
    all_of = f'p for g in {match.live.target}.param_groups for p in g["params"]'
    return f"{match.live.target} = torch.optim.{name}([{all_of}]{given})"


def parameters_differ(resuming: Resuming) -> Iterator[Finding]:
    """Another number of groups, or of parameters in them: load_state_dict refuses it."""
    for match in matched(resuming.saved, resuming.live):
        saved, here = match.sizes
        if saved == here:
            continue
        if sum(saved) == sum(here):
            yield _regrouped(resuming, match, saved, here)
            continue
        gone, new = _difference(match)
        more = sum(here) > sum(saved)
        places = [f"here only: {name}" for name in new] + [f"saved only: {name}" for name in gone]
        yield Finding(
            code="optimizer-params-missing" if more else "optimizer-params-unexpected",
            severity="error",
            where=f"{resuming.view.path}: {match.saved.path or 'the top'}",
            places=tuple(places),
            what=f"the file has {counted(sum(saved), 'parameter')} for {match.live.target!r}, "
            f"which has {sum(here)}" + _layers(new if more else gone, more),
            why="parameters were frozen, unfrozen, added or removed since; load_state_dict stops: "
            "a parameter group that doesn't match the size of optimizer's group",
            fix=_by_name(resuming, match)
            + ("; what is new starts fresh" if more else "; the state of what is gone is dropped"),
            command=_restore(
                resuming,
                match,
                "optimizer-params-missing" if new or more else "",
                "optimizer-params-unexpected" if gone or not more else "",
            ),
            saved=f"groups of {', '.join(map(str, saved))} parameters",
            expected=f"groups of {', '.join(map(str, here))} parameters",
        )


def _difference(match: Matched) -> tuple[list[str], list[str]]:
    """Names that only the file has, and that only the optimizer here has, where they are known."""
    here = [p.name for p in match.live.parameters]
    if None in here:
        return [], []
    known = {n for n in here if n is not None}
    if None not in match.names:
        saved = {n for n in match.names if n is not None}
        return (
            [n for n in match.names if n is not None and n not in known],
            [n for n in here if n is not None and n not in saved],
        )
    return [], []


def _layers(names: list[str], more: bool) -> str:
    layers = list(dict.fromkeys(name.rpartition(".")[0] or name for name in names))
    if not layers:
        return ""
    shown = ", ".join(layers[:4]) + (f" and {len(layers) - 4} more" if len(layers) > 4 else "")
    return f": {shown} {'came in' if more else 'left it'}"


def _regrouped(resuming: Resuming, match: Matched, saved: list[int], here: list[int]) -> Finding:
    return Finding(
        code="optimizer-groups-changed",
        severity="error",
        where=f"{resuming.view.path}: {match.saved.path or 'the top'}/param_groups",
        what=f"the parameters of {match.live.target!r} are in other groups than the saved ones",
        why="load_state_dict matches groups by position and size, and stops",
        fix="build the groups as they were saved, or " + _by_name(resuming, match),
        command=_restore(resuming, match),
        saved=f"groups of {', '.join(map(str, saved))} parameters",
        expected=f"groups of {', '.join(map(str, here))} parameters",
    )


def order_or_shapes(resuming: Resuming) -> Iterator[Finding]:
    """As many parameters, but moments that would go to others."""
    for match in matched(resuming.saved, resuming.live):
        saved, here = match.sizes
        if saved != here:
            continue
        wrong = match.wrong_shapes
        live = match.live.parameters
        if wrong:
            shapes = [s for s in match.shapes if s is not None]
            same = None not in match.shapes and Counter(shapes) == Counter(p.shape for p in live)
            places = [
                f"{match.saved.path}/state/{match.saved.params[i]}: saved "
                f"{list(match.shapes[i] or ())}, here {list(live[i].shape or ())}"
                + (f" ({live[i].name})" if live[i].name else "")
                for i in wrong
            ]
            yield _order(resuming, match, places) if same else _shapes(resuming, match, places)
            continue
        names = [p.name for p in live]
        moved = [
            f"{match.saved.path}/state/{number}: saved for {old}, here {new}"
            for number, old, new in zip(match.saved.params, match.names, names, strict=True)
            if old is not None and new is not None and old != new
        ]
        known = {n for n in names if n is not None}
        # Within several groups the order is the code's own, which may well be as it was.
        sure = match.told or len(match.saved.groups) == 1
        if sure and moved and known == set(match.names):
            yield _order(resuming, match, moved)


def _order(resuming: Resuming, match: Matched, places: list[str]) -> Finding:
    return Finding(
        code="optimizer-order-changed",
        severity="error",
        where=f"{resuming.view.path}: {places[0]}",
        places=several(places),
        what=f"the parameters of {match.live.target!r} are in another order than when it was saved",
        why="load_state_dict matches by position, and says nothing: the moments of one weight go "
        "to another",
        fix=_by_name(resuming, match) + ", or build the optimizer in the saved order",
        command=_restore(resuming, match),
        confidence="certain" if match.told or match.wrong_shapes else "likely",
    )


def _shapes(resuming: Resuming, match: Matched, places: list[str]) -> Finding:
    return Finding(
        code="optimizer-shapes",
        severity="error",
        where=f"{resuming.view.path}: {places[0]}",
        places=several(places),
        what=f"{counted(len(places), 'parameter')} of {match.live.target!r} "
        f"{'has' if len(places) == 1 else 'have'} another shape than the saved moments",
        why="load_state_dict does not look at shapes; the next step stops: the size of tensor a "
        "must match the size of tensor b",
        fix="build the model with the saved sizes, or let these parameters start fresh, with the "
        "values and without the moments of the file",
        command=_restore(resuming, match, "shape-mismatch"),
    )


def by_name(resuming: Resuming) -> Iterator[Finding]:
    """What can be restored as it stands, with the line that does it."""
    for match in matched(resuming.saved, resuming.live):
        saved, here = match.sizes
        command = _restore(resuming, match)
        if saved == here and not match.wrong_shapes and command and same_kind(match):
            yield Finding(
                code="optimizer-by-name",
                severity="note",
                where=f"{resuming.view.path}: {match.saved.path or 'the top'}",
                what=f"{match.live.target!r} can be filled from this, parameter by parameter",
                why="the file names them"
                if match.told
                else "the shapes of its moments are found, in order, in the model of the same file",
                command=command,
            )


def dead_parameters(resuming: Resuming) -> Iterator[Finding]:
    """An optimizer that steps tensors which no model here has any more."""
    trainable = {
        name: model.shapes[name] for model in resuming.live.models for name in model.trainable
    }
    held = {p.name for o in resuming.live.optimizers for p in o.parameters}
    free = Counter(shape for name, shape in trainable.items() if name not in held)
    for live in resuming.live.optimizers:
        dead = [p for p in live.parameters if p.name is None]
        if not resuming.live.models or not dead or Counter(p.shape for p in dead) - free:
            continue
        model = resuming.live.models[0].target
        yield Finding(
            code="optimizer-dead-parameters",
            severity="error",
            where=live.target,
            what=f"{len(dead)} of its {len(live.parameters)} parameters are not those of "
            f"{model!r} any more",
            why="the model got new tensors after the optimizer was built: "
            "load_state_dict(…, assign=True), or a conversion that replaced its parameters; the "
            "optimizer goes on with the old ones, and the model stays as it is",
            fix="build the optimizer after the model has its tensors, or load in place, without "
            "assign=True",
            command=_rebuilt(live, model),
        )


def _rebuilt(live: LiveOptimizer, model: str) -> str:
    return f"{live.target} = {live.call.format(f'{model}.parameters()')}" if live.call else ""


def shared_state(resuming: Resuming) -> Iterator[Finding]:
    """Two optimizers here whose moments are the same memory."""
    for i, live in enumerate(resuming.live.optimizers):
        before = {o.target for o in resuming.live.optimizers[:i]}
        for other in live.shares:
            if other in before:
                yield Finding(
                    code="optimizer-state-shared",
                    severity="error",
                    where=live.target,
                    places=(live.target, other),
                    what=f"the moments of {live.target!r} and {other!r} are the same tensors",
                    why="load_state_dict keeps the tensors it is given: after "
                    "a.load_state_dict(b.state_dict()) each step of one changes the other",
                    fix="load a copy",
                    command=f"import copy; {live.target}.load_state_dict("
                    f"copy.deepcopy({other}.state_dict()))",
                )


def _by_name(resuming: Resuming, match: Matched) -> str:
    if _mappable(resuming, match):
        return "restore by name: holdtrue matches the moments with the model's parameters"
    return "give the model too, so that the parameters have names"


def _mappable(resuming: Resuming, match: Matched) -> bool:
    return bool(resuming.live.models) and None not in match.names


def _restore(resuming: Resuming, match: Matched, *allow: str) -> str:
    if not _mappable(resuming, match) or resuming.view.format == FORMAT:
        return ""
    models = ", ".join(f"{m.target}={m.target}" for m in resuming.live.models)
    accepted = [code for code in allow if code]
    more = f", allow={accepted!r}" if accepted else ""
    target = match.live.target
    return f"holdtrue.open({resuming.view.path!r}).restore({models}, {target}={target}{more})"
