"""Recomputes a stored probe with a live model: bit-equal, within tolerance, or different."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from msgspec import Struct
from torch import Tensor, nn

from holdtrue.capture.probe import PROBE, answer, digest
from holdtrue.capture.raw import dtype_name
from holdtrue.errors import RestoreError
from holdtrue.findings import Finding, Report, report
from holdtrue.records.manifest import Manifest
from holdtrue.restore.fresh import Fresh, decode_value, unusable

# Relative and absolute, about ten times what another order of sums does in a deep network.
_TOLERANCES = {
    "float64": (1e-7, 1e-8),
    "float32": (1e-4, 1e-5),
    "complex64": (1e-4, 1e-5),
    "float16": (1e-2, 1e-3),
    "bfloat16": (3e-2, 1e-2),
}


class Outcome(Struct, frozen=True):
    """Findings, and what could not be checked."""

    findings: tuple[Finding, ...] = ()
    not_checked: tuple[str, ...] = ()


def probed_part(manifest: Manifest) -> str | None:
    """The module part that the probe was made of; None where there is no probe."""
    part = manifest.parts.get(PROBE)
    state = part.state if part is not None and part.kind == PROBE else None
    return state["part"] if isinstance(state, dict) and isinstance(state.get("part"), str) else None


def check_probe(
    manifest: Manifest, tensors: Fresh, targets: Mapping[str, Any], given: Any
) -> Outcome:
    """Run the probe of a checkpoint. `given` are inputs where they were too large to be kept."""
    name = probed_part(manifest)
    if name is None:
        return Outcome(not_checked=("the probe: none was saved",))
    state, _ = decode_value(manifest.parts[PROBE].state, tensors, path=PROBE)
    _check_state(state)
    module, prepare = targets.get(name), None
    if not isinstance(module, nn.Module):
        return Outcome(not_checked=(f"the probe: it needs {name}, which was not restored",))
    if state["preprocess"]:
        prepare = targets.get(state["preprocess"])
        if not callable(prepare):
            return Outcome(not_checked=(f"the probe: it needs {state['preprocess']} to be given",))
    inputs = state["inputs"] if given is True else given
    if given is True and not state["inputs_kept"]:
        return Outcome(not_checked=("the probe: its inputs were too large to keep, give them",))
    try:
        found = answer(module, inputs, prepare)
    except Exception as error:  # the model's own code
        return Outcome((_raised(name, error),))
    other = {k: digest(t) for k, t in found.inputs.items()} != state["input_digests"]
    if other and prepare is None and given is not True:
        return Outcome(not_checked=("the probe: the inputs given are not those that were saved",))
    findings = [_prepared_otherwise(state["preprocess"])] if other and prepare is not None else []
    return Outcome((*findings, _compare(name, state, found.outputs)))


def verify_probe(checkpoint: Any, model: Any, preprocess: Any) -> Report:
    """Restore a copy of the model, or what the function makes, and run the probe with it."""
    manifest: Manifest | None = checkpoint.manifest
    name = probed_part(manifest) if manifest is not None else None
    if manifest is None or name is None:
        return report(str(checkpoint.path), (), ("the probe: none was saved",))
    module = copy.deepcopy(model) if isinstance(model, nn.Module) else model()
    done = _restored(checkpoint, {name: module})
    state, targets = manifest.parts[PROBE].state, {name: module}
    if preprocess is not None and isinstance(state.get("preprocess"), str):
        targets[state["preprocess"]] = preprocess
    said = check_probe(manifest, Fresh(checkpoint.view.tensors), targets, True)
    kept = [f for f in done.findings if f.code != "parts-left"]
    return report(str(checkpoint.path), [*kept, *said.findings], said.not_checked)


def _restored(checkpoint: Any, targets: dict[str, Any]) -> Report:
    """The report of a restore; where only the architecture differs the probe is run all the same,
    since it tells whether that matters."""
    changed = "architecture-changed"
    try:
        done: Report = checkpoint.restore(rng=False, **targets)
    except RestoreError as error:
        if any(f.code != changed for f in error.report.errors):
            raise
        checkpoint.restore(rng=False, allow=[changed], **targets)
        done = error.report
    return done


def _check_state(state: Any) -> None:
    keys = {"preprocess", "stable", "inputs", "inputs_kept", "input_digests", "outputs"}
    whole = isinstance(state, dict) and keys <= state.keys() and isinstance(state["outputs"], dict)
    fields = {"digest", "dtype", "shape", "values"}
    if not whole or not all(
        isinstance(o, dict) and fields <= o.keys() for o in state["outputs"].values()
    ):
        raise unusable(PROBE, "the probe does not follow the format")


def _compare(name: str, state: Any, outputs: Mapping[str, Tensor]) -> Finding:
    saved: dict[str, Any] = state["outputs"]
    if list(saved) != list(outputs):
        names = [", ".join(x) or "one tensor" for x in (saved, outputs)]
        return _different(name, "the model gives other outputs", state, *names)
    worst, far, unknown, changed = 0.0, False, False, ""
    equal = True
    for key, kept in saved.items():
        tensor = outputs[key]
        described = f"{kept['dtype']} {kept['shape']}"
        here = f"{dtype_name(tensor.dtype)} {list(tensor.shape)}"
        if described == here and digest(tensor) == kept["digest"]:
            continue
        equal = False
        values = kept["values"]
        if not isinstance(values, Tensor):
            unknown = True
        elif values.shape != tensor.shape:
            return _different(name, f"{key or 'the output'} has another shape", state,
                              described, here)  # fmt: skip
        else:
            largest, beyond = _distance(values, tensor)
            worst, far = max(worst, largest), far or beyond
            changed = changed or ("" if described == here else f"{described} became {here}")
    if equal:
        return Finding(
            code="probe-equal", severity="note", where=name,
            what=f"the model answers the probe bit for bit as when it was saved "
            f"({len(saved)} output{'s' if len(saved) != 1 else ''})",
        )  # fmt: skip
    if unknown:
        what = "outputs differ; they were too large to keep, so by how much is not known"
        return _different(name, what, state)
    said = f"the largest difference is {worst:.3g}" + (f"; {changed}" if changed else "")
    if far or changed:
        return _different(name, said, state)
    return Finding(
        code="probe-close",
        severity="note",
        where=name,
        what=f"the model answers the probe within tolerance, not bit for bit: {said}",
        why="the same function, computed by other kernels, versions or numbers of threads",
    )


def _distance(a: Tensor, b: Tensor) -> tuple[float, bool]:
    """The largest absolute difference, and whether any is beyond tolerance."""
    rtol, atol = _TOLERANCES.get(dtype_name(a.dtype), (0.0, 0.0))
    wide = torch.complex128 if a.is_complex() or b.is_complex() else torch.float64
    x, y = a.to(wide), b.to(wide)
    both = torch.isfinite(x.abs()) & torch.isfinite(y.abs())
    same = torch.eq(x, y) | (torch.isnan(x.abs()) & torch.isnan(y.abs()))
    gap = (x - y).abs()
    if bool((~both & ~same).any()):
        return float("inf"), True
    if not bool(both.any()):
        return 0.0, False
    return float(gap[both].max()), bool((gap[both] > atol + rtol * x.abs()[both]).any())


def _different(name: str, what: str, state: Any, saved: Any = None, here: Any = None) -> Finding:
    if not state["stable"]:
        return Finding(
            code="probe-unstable",
            severity="note",
            where=name,
            what=f"the probe says nothing: {what}",
            why="already when it was saved, the model answered twice in two ways: it draws random "
            "numbers from a source that no seed reaches, or keeps a state",
        )
    return Finding(
        code="probe-different",
        severity="error",
        where=name,
        what=f"the restored model computes something else: {what}",
        why="the weights are those that were saved, so the code, a constant, the settings of the "
        "model or its preprocessing changed",
        fix="compare the code with the commit that saved it (holdtrue inspect)",
        saved=saved,
        expected=here,
    )


def _prepared_otherwise(name: str) -> Finding:
    return Finding(
        code="probe-preprocessing",
        severity="error",
        where=name,
        what="the preprocessing makes other inputs of the same data",
        why="the model then sees what it was not trained on",
        fix="use the preprocessing that was saved with the model",
    )


def _raised(name: str, error: Exception) -> Finding:
    return Finding(
        code="probe-different",
        severity="error",
        where=name,
        what=f"the restored model raised {type(error).__name__} for the probe's inputs",
        why=str(error)[:500],
        fix="compare the code with the commit that saved it (holdtrue inspect)",
    )
