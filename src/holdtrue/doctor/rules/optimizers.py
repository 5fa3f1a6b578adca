"""An optimizer state beside the model in the same file, and in itself."""

from collections.abc import Iterator

from holdtrue.doctor.amounts import counted
from holdtrue.doctor.optimizer_states import SavedOptimizer, moments, shapes_in_order
from holdtrue.doctor.parameter_order import (
    embed,
    left_over,
    model_of,
    parameters,
    saved_names,
)
from holdtrue.doctor.subjects import Training
from holdtrue.findings import Finding, several

_STEPS_APART = 2  # what a save in the middle of a step makes; frozen layers make more


def other_model(training: Training) -> Iterator[Finding]:
    """Moments for which the model in the same file has no parameter of their shape."""
    models = training.saved.models
    every = [named for model in models for named in parameters(model)]
    for saved in training.saved.optimizers:
        model = model_of(saved, models)
        if model is None:
            continue
        named = parameters(model) if not left_over(saved, parameters(model)) else every
        more = len(saved.params) - len({n for m in models for n in m.names})
        left = left_over(saved, named)
        if left and not _flat(saved, named):
            places = [
                f"{saved.path}/state/{number}: {list(shape)}"
                for number, shape in zip(saved.params, shapes_in_order(saved), strict=True)
                if shape is not None and shape in left
            ]
            yield _other(training, saved, places, f"{left.total()} of its moments have a shape")
        elif more > 0:
            place = f"{saved.path}: {counted(len(saved.params), 'parameter')}"
            yield _other(training, saved, [place], f"{more} of its parameters have a place")


def _flat(saved: SavedOptimizer, named: list[tuple[str, tuple[int, ...]]]) -> bool:
    """Moments of parameters that were flattened into one line, as FSDP and ZeRO keep them."""
    known = [shape for shape in shapes_in_order(saved) if shape is not None]
    return all(len(s) == 1 for s in known) and any(len(s) > 1 for _, s in named) and len(known) < 9


def _other(training: Training, saved: SavedOptimizer, places: list[str], which: str) -> Finding:
    return Finding(
        code="optimizer-other-model",
        severity="warning",
        where=f"{training.view.path}: {places[0]}",
        places=several(places),
        what=f"{saved.path or 'the optimizer'} is of another model: {which} that no tensor of the "
        "model in this file has",
        why="moments have the shapes of their parameters; these were saved from another model, or "
        "the model was changed after the optimizer was built",
        fix="resume the model alone and start the optimizer fresh, or find the checkpoint in which "
        "both were saved together",
        confidence="likely",
    )


def order_in_file(training: Training) -> Iterator[Finding]:
    """Moments that fit the model's parameters, but not in the order in which the model has them."""
    for saved in training.saved.optimizers:
        model = model_of(saved, training.saved.models)
        if model is None or saved.names is not None or left_over(saved, parameters(model)):
            continue
        shapes, start = shapes_in_order(saved), 0
        for i, group in enumerate(saved.groups):
            own = shapes[start : start + len(group.params)]
            start += len(group.params)
            if embed(own, parameters(model)) is None:
                yield Finding(
                    code="optimizer-order-changed",
                    severity="note",
                    where=f"{training.view.path}: {saved.path}/param_groups/{i}",
                    what="its parameters stand in another order than the model's",
                    why="torch matches them by position alone: an optimizer that is built from "
                    "model.parameters() would get the moments of other weights",
                    fix="build the optimizer with its parameters in the order of this file",
                    confidence="hint",
                )
                break


def steps_differ(training: Training) -> Iterator[Finding]:
    """Parameters of one optimizer that took different numbers of steps."""
    for saved in training.saved.optimizers:
        values = sorted(set(saved.steps.values()))
        if len(values) < 2:
            continue
        torn = values[-1] - values[0] <= _STEPS_APART or _within_a_layer(saved, training)
        usual = max(values, key=list(saved.steps.values()).count)
        odd = [
            f"{training.view.path}: {saved.path}/state/{number}/step: {step:g}"
            for number, step in saved.steps.items()
            if step != usual
        ]
        yield Finding(
            code="optimizer-steps-differ",
            severity="warning" if torn else "note",
            where=odd[0],
            places=several(odd),
            what=f"the parameters of {saved.path or 'the optimizer'} took from {values[0]:g} to "
            f"{values[-1]:g} steps",
            why="a save that ran while the optimizer stepped holds moments of two steps, "
            "and then weights of two steps as well"
            if torn
            else "parameters that were frozen for a while, or got no gradient, took fewer",
            fix="go back to the checkpoint before this one; copy the state before it is written"
            if torn
            else "",
            confidence="likely" if torn else "hint",
            saved=", ".join(f"{v:g}" for v in values[:6]),
            expected=f"{usual:g}, as most",
        )


def _within_a_layer(saved: SavedOptimizer, training: Training) -> bool:
    """The weight and the bias of one layer get their gradients together."""
    names = saved_names(saved, model_of(saved, training.saved.models))
    steps: dict[str, float] = {}
    for number, name in zip(saved.params, names, strict=True):
        if name is None or number not in saved.steps or "." not in name:
            continue
        if steps.setdefault(name.rpartition(".")[0], saved.steps[number]) != saved.steps[number]:
            return True
    return False


def state_devices(training: Training) -> Iterator[Finding]:
    """Moments on several kinds of device, and step counts where a plain step cannot use them."""
    for saved in training.saved.optimizers:
        kinds: dict[str, str] = {}
        steps = []
        for path, name, tensor in moments(saved):
            kind = tensor.device.partition(":")[0]
            if name == "step":
                steps += [path] if kind not in ("cpu", "meta") else []
            elif tensor.shape and kind != "meta":
                kinds.setdefault(kind, path)
        if len(kinds) > 1:
            yield Finding(
                code="optimizer-devices",
                severity="warning",
                where=f"{training.view.path}: {next(iter(kinds.values()))}",
                places=tuple(f"{path}: {kind}" for kind, path in kinds.items()),
                what="the moments lie on different kinds of device: " + ", ".join(kinds),
                why="one step cannot use tensors of two devices; parts of the model were moved "
                "after the optimizer was built, or its state was changed by hand",
                fix="load the optimizer after the model is on its device: load_state_dict puts "
                "each moment beside its parameter",
                confidence="likely",
            )
        plain = not any(
            g.settings.get("capturable") or g.settings.get("fused") for g in saved.groups
        )
        if steps and plain:
            yield Finding(
                code="optimizer-step-device",
                severity="warning",
                where=f"{training.view.path}: {steps[0]}",
                places=several(steps),
                what="step counts lie on an accelerator, and the optimizer is neither capturable "
                "nor fused",
                why="load_state_dict leaves them where torch.load puts them, and step() stops: "
                "`state_steps` should not be CUDA tensors",
                fix='torch.load(path, map_location="cpu") before optimizer.load_state_dict(…)',
                confidence="likely",
            )
