"""Plans the restore of gradients that were kept in the middle of an accumulation."""

from collections.abc import Callable, Mapping

from torch import Tensor

from holdtrue.capture.module import Entry
from holdtrue.findings import Finding
from holdtrue.restore.fresh import Fresh
from holdtrue.restore.plan import Action, Plan


def plan_gradients(
    part: str,
    saved: Mapping[str, str] | None,
    matched: Mapping[str, str],
    target: Mapping[str, Entry],
    plan: Plan,
    tensors: Fresh,
) -> None:
    """Each parameter gets the gradient it had, or none; only in a resume, where it is added to."""
    if saved is None or not plan.choice.resume:
        return
    by_key = {matched[name]: name for name in reversed(list(matched)) if target[name].is_parameter}
    wanted = {matched[name]: tensors(key) for name, key in saved.items() if name in matched}
    given: list[tuple[Tensor, Tensor | None]] = []
    for key, name in by_key.items():
        parameter, gradient = target[name].tensor, wanted.get(key)
        if gradient is not None:
            gradient = gradient.to(device=parameter.device, dtype=parameter.dtype)
            if gradient.shape != parameter.shape:
                plan.found(_other_shape(f"{part}/{name}", gradient, parameter))
                continue
        given.append((parameter, gradient))
    plan.actions.append(Action(f"{part}: gradients", _set(given)))


def _set(given: list[tuple[Tensor, Tensor | None]]) -> Callable[[], Callable[[], None]]:
    def do() -> Callable[[], None]:
        before = [(parameter, parameter.grad) for parameter, _ in given]

        def undo() -> None:
            for parameter, gradient in before:
                parameter.grad = gradient

        try:
            for parameter, gradient in given:
                parameter.grad = gradient
        except BaseException:
            undo()
            raise
        return undo

    return do


def _other_shape(where: str, gradient: Tensor, parameter: Tensor) -> Finding:
    return Finding(
        code="shape-mismatch",
        severity="error",
        where=where,
        what="the saved gradient has another shape than the parameter",
        why="the file was not written by one save",
        fix="use another checkpoint",
        saved=str(list(gradient.shape)),
        expected=str(list(parameter.shape)),
    )
