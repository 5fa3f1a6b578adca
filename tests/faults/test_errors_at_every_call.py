"""Each system call refused in turn: the save is whole, or says why not; the training goes on.

What a write did in part cannot be had from strace, which only lies about the number: for short
writes `os.pwrite` itself is replaced in the child, and really writes less.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from scenarios import SCENARIOS, Scenario, copied
from tracing import CHANGING, READING, Point, failing, needs_strace, of_calls, points, run_child

ERRORS = ("ENOSPC", "EIO", "EDQUOT", "EACCES", "EINTR")
# What an error is tried with: reading fails for other reasons than writing does.
_OF_READING = {"EIO", "EACCES", "EINTR"}


def tried(scenario: Scenario, tmp_path: Path) -> tuple[Path, list[Point]]:
    start, root = tmp_path / "start", tmp_path / "root"
    scenario.prepare(start)
    copied(start, root)
    ended = run_child(scenario.act, root, tmp_path, *of_calls(f"{CHANGING},{READING}"))
    assert ended.told is not None, ended.output
    shutil.rmtree(root)
    return start, list(points(ended.log, root))


def fail_at(scenario: Scenario, start: Path, point: Point, error: str, tmp_path: Path) -> str:
    """What came of it: "whole", or "told". The check raises where something is not right."""
    root = tmp_path / "root"
    copied(start, root)
    ended = run_child(scenario.act, root, tmp_path, *failing(point, error))
    where = f"{scenario.name}, {error} at {point}"
    assert ended.told is not None, f"{where}: {ended.code} {ended.signal} {ended.output}"
    assert "Traceback" not in str(ended.told), f"{where}: {ended.told}"
    assert bool(ended.told["error"]) == bool(ended.told["findings"]), f"{where}: {ended.told}"
    for finding in ended.told["findings"]:  # the code, what, where, why and fix
        assert all(finding), f"{where}: {finding}"
    try:
        assert ended.told["error"] or scenario.done(root), "it said that it had done its work"
        scenario.check(root)
    except Exception as found:
        raise AssertionError(f"{where}: {ended.told}") from found
    shutil.rmtree(root)
    return "told" if ended.told["error"] else "whole"


def _every(number: int, scenario: Scenario, tmp_path: Path, figure: Any) -> None:
    needs_strace()
    start, found = tried(scenario, tmp_path)
    changing = set(CHANGING.split(","))
    cases = [
        (point, error)
        for point in found
        for error in ERRORS
        if point.call in changing or error in _OF_READING
    ]
    wrong: list[str] = []
    for point, error in cases[SCENARIOS.index(scenario) % number :: number]:
        try:
            figure("errors at a system call: " + fail_at(scenario, start, point, error, tmp_path))
        except AssertionError as problem:
            wrong.append(str(problem))
            shutil.rmtree(tmp_path / "root")
    assert not wrong, f"{len(wrong)} of {len(cases)}:\n" + "\n".join(wrong[:20])


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name)
def test_errors_at_some_calls(scenario: Scenario, tmp_path: Path, figure: Any) -> None:
    _every(37, scenario, tmp_path, figure)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name)
def test_errors_at_every_call(scenario: Scenario, tmp_path: Path, figure: Any) -> None:
    _every(1, scenario, tmp_path, figure)


@pytest.mark.skipif(not hasattr(os, "pwrite"), reason="this system has no pwrite")
@pytest.mark.parametrize("most", [1, 1000, 4000])
@pytest.mark.parametrize("scenario", SCENARIOS[1:4], ids=lambda s: s.name)
def test_every_write_is_short(
    scenario: Scenario, most: int, tmp_path: Path, monkeypatch: Any, figure: Any
) -> None:
    """A byte, less than a page, almost a page: of every write."""
    root = tmp_path / "root"
    scenario.prepare(root)
    short = 0

    def write(fd: int, data: Any, offset: int, real: Any = os.pwrite) -> int:
        nonlocal short
        short += len(data) > most
        return int(real(fd, bytes(data)[:most], offset))  # bytes: not aligned, so never direct

    monkeypatch.setattr(os, "pwrite", write)
    told = scenario.act(root)
    monkeypatch.undo()
    assert told["error"] is None, told
    assert short > 0
    scenario.check(root)
    figure("writes that ended early", short)
