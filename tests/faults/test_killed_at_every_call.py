"""A process killed at each of the system calls that change files, one after the other."""

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from scenarios import SCENARIOS, Scenario, copied
from tracing import CHANGING, Point, killing, needs_strace, of_calls, points, run_child


def tried(scenario: Scenario, tmp_path: Path) -> tuple[Path, list[Point]]:
    """The state to begin with, and every call that changes something below the directory."""
    start, root = tmp_path / "start", tmp_path / "root"
    scenario.prepare(start)
    copied(start, root)
    ended = run_child(scenario.act, root, tmp_path, *of_calls(CHANGING))
    assert ended.told is not None, ended.output
    assert ended.told["error"] is None, ended.told
    assert scenario.done(root)
    scenario.check(root)
    shutil.rmtree(root)
    return start, list(points(ended.log, root))


def kill_at(scenario: Scenario, start: Path, point: Point, tmp_path: Path) -> bool:
    """Whether the process was killed there. The check raises where something is not right."""
    root = tmp_path / "root"
    copied(start, root)
    ended = run_child(scenario.act, root, tmp_path, *killing(point))
    assert ended.signal in (0, signal.SIGKILL), ended.output
    try:
        assert ended.signal or scenario.done(root)
        scenario.check(root)
    except Exception as error:
        raise AssertionError(f"{scenario.name}, killed at {point}") from error
    shutil.rmtree(root)
    return ended.signal == signal.SIGKILL


def _every(number: int, scenario: Scenario, tmp_path: Path, figure: Any) -> None:
    needs_strace()
    start, found = tried(scenario, tmp_path)
    assert len(found) > 20
    # Not always the same ones: the beginnings of the scenarios are alike.
    chosen = found[SCENARIOS.index(scenario) % number :: number]
    killed = [kill_at(scenario, start, point, tmp_path) for point in chosen]
    assert sum(killed) >= 0.9 * len(chosen)
    figure("kills at a system call", sum(killed))
    figure("system calls that change files, in these scenarios", len(found))


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name)
def test_killed_at_some_calls(scenario: Scenario, tmp_path: Path, figure: Any) -> None:
    _every(8, scenario, tmp_path, figure)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name)
def test_killed_at_every_call(scenario: Scenario, tmp_path: Path, figure: Any) -> None:
    _every(1, scenario, tmp_path, figure)


def test_what_a_kill_leaves_is_looked_at(tmp_path: Path) -> None:
    """The check itself: it fails for a step that is listed and broken, and for a lost one."""
    scenario = SCENARIOS[1]
    for damage in ("lost", "cut", "left"):
        root = tmp_path / damage
        scenario.prepare(root)
        step = root / "run" / "step-000000001"
        if damage == "lost":
            shutil.rmtree(step)
        elif damage == "cut":
            with (step / "manifest.json").open("r+b") as file:
                file.truncate(100)
        else:
            (root / "run" / "half").mkdir()
        with pytest.raises(Exception, match="." if damage == "cut" else "step"):
            scenario.check(root)
