"""A disk that refuses one kind of call from a moment on, and is well again later: the training goes
on to its end, and what it saves then is whole.

The child asks strace to let go of it, which is when its disk is well again.
"""

import contextlib
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from scenarios import (
    Scenario,
    check_run,
    copied,
    nothing,
    parts,
    set_value,
    small_and_in_order,
    two_steps,
)
from tracing import CHANGING, Point, needs_strace, of_calls, points, refusing_from, run_child

from holdtrue import Run
from holdtrue.errors import OpenError, SaveError
from holdtrue.storage.locating import steps

LAST = 6  # the step that is saved when the disk is well again


def _tracer() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("TracerPid:")[1].split()[0])


def _well_again(tracer: int) -> None:
    os.kill(tracer, signal.SIGTERM)
    end = time.monotonic() + 30
    while time.monotonic() < end:
        with contextlib.suppress(OSError):  # it is refused still
            if _tracer() == 0:
                return
        time.sleep(0.01)
    raise AssertionError("strace does not let go")


def _save(run: Run, step: int, wait: bool, said: list[str]) -> None:
    """Adds the code of what went wrong. Nothing is raised but, before a first save has succeeded,
    what is for the caller to mend: that the directory may not be written to."""
    set_value(run.parts["model"], run.parts["optimizer"], step)
    error: BaseException | None
    raised_it = False
    try:
        saving = run.save(step, {"loss": float(step)}, wait=wait)
        run.flush()
        error = saving.error
    except SaveError as raised:
        error = raised
        raised_it = True
    if error is None:
        said.append("")
        return
    assert isinstance(error, SaveError), repr(error)
    found = error.report.errors
    if raised_it:
        assert "" not in said, found
        assert found[0].code == "permission-denied", found
    assert all(f.code and f.what and f.where and f.why and f.fix for f in found), found
    said.append(found[0].code)


def _trains(root: Path) -> dict[str, Any]:
    tracer = _tracer()
    with small_and_in_order():
        run, said, last = None, list[str](), list[str]()
        try:
            run = Run(root / "run", on_error="warn", **parts(0))
        except OpenError as error:  # a run that cannot be looked into is told when it is begun
            said.append(error.report.errors[0].code)
        if run is not None:
            for step in (3, 4, 5):
                _save(run, step, step < 5, said)
        if tracer:
            _well_again(tracer)
        run = run or Run(root / "run", on_error="warn", **parts(0))
        _save(run, LAST, True, last)
        assert last == [""], "the disk is well"
        run.close()
    return {"error": None, "said": said, "steps": list(steps(root / "run"))}


def _check(root: Path) -> None:
    begun = {1: {1.0}, 2: {2.0}} if (root / "begun").exists() else {}
    may = {step: {float(step)} for step in (3, 4, 5)}
    (root / "begun").unlink(missing_ok=True)
    check_run(root / "run", {**begun, LAST: {float(LAST)}}, may)


def _begun(root: Path) -> None:
    two_steps(root)
    (root / "begun").touch()


TRAININGS = [
    Scenario("first saves", nothing, _trains, _check),
    Scenario("later saves", _begun, _trains, _check),
]


def refused_from(scenario: Scenario, start: Path, point: Point, error: str, tmp_path: Path) -> int:
    """How many saves failed."""
    root = tmp_path / "root"
    copied(start, root)
    ended = run_child(scenario.act, root, tmp_path, *refusing_from(point, error))
    where = f"{scenario.name}, {error} from {point}"
    assert ended.told is not None, f"{where}: {ended.code} {ended.signal} {ended.output}"
    try:
        said = ended.told["said"]
        # One that was told as failed may be there, published and not known to be durable; it is
        # whole. One that was not is there.
        saved = [3 + i for i, code in enumerate(said[-3:]) if not code]
        assert set(saved) <= set(ended.told["steps"])
        scenario.check(root)
    except Exception as found:
        raise AssertionError(f"{where}: {ended.told}") from found
    shutil.rmtree(root)
    return sum(map(bool, said))


@pytest.mark.parametrize("every", [60, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("scenario", TRAININGS, ids=lambda s: s.name)
def test_a_training_outlives_an_ill_disk(
    scenario: Scenario, every: int, tmp_path: Path, figure: Any
) -> None:
    needs_strace()
    start, root = tmp_path / "start", tmp_path / "root"
    scenario.prepare(start)
    copied(start, root)
    ended = run_child(scenario.act, root, tmp_path, *of_calls(CHANGING))
    assert ended.told is not None, ended.output
    assert ended.told["said"] == ["", "", ""]
    shutil.rmtree(root)
    cases = [
        (point, error)
        for point in points(ended.log, root)
        if (point.call, point.number) != ("openat", 1)  # by which the child looks for strace
        for error in ("ENOSPC", "EIO", "EACCES")
    ]
    failed, wrong = 0, []
    for point, error in cases[TRAININGS.index(scenario) :: every]:
        try:
            failed += refused_from(scenario, start, point, error, tmp_path)
        except AssertionError as problem:
            wrong.append(f"{problem}: {problem.__cause__}")
            shutil.rmtree(root)
        figure("calls refused from a moment on, of a training that went on")
    assert not wrong, f"{len(wrong)} of {len(cases)}:\n" + "\n".join(wrong[:20])
    assert failed > 0
    figure("saves that failed on an ill disk, and ended no training", failed)
