"""What others do to a run between two looks at it: remove, publish, delete and save anew."""

import shutil
from pathlib import Path

import pytest

import holdtrue
from holdtrue import Keep, OpenError, Run
from holdtrue.formats.step_names import step_name


def a_run(path: Path, steps: int, keep: Keep | None = None) -> Run:
    run = Run(path, keep=keep, value=[1.5])
    for step in range(1, steps + 1):
        run.save(step, {"loss": float(step)}, wait=True)
    return run


def test_a_checkpoint_that_is_removed_while_it_is_verified_is_told_as_missing(
    tmp_path: Path,
) -> None:
    with a_run(tmp_path / "run", 1) as run:
        step = run.path / step_name(1)

    def another_removes(done: int, total: int) -> None:
        shutil.rmtree(step, ignore_errors=True)

    with pytest.raises(OpenError) as raised:
        holdtrue.verify(step, progress=another_removes)
    assert [finding.code for finding in raised.value.report.findings] == ["path-missing"]


def test_a_resume_gives_up_no_step_that_is_published_meanwhile(tmp_path: Path) -> None:
    place = tmp_path / "run"
    a_run(place, 3).close()

    def another_publishes(done: int, total: int) -> None:
        shutil.copytree(place / step_name(3), place / step_name(4), dirs_exist_ok=True)

    with Run(place, progress=another_publishes, value=[0.0]) as run:
        run.resume(2)
        assert run.steps() == [1, 2, 3, 4]
        run.progress = None
        run.save(3, wait=True)
        assert run.steps() == [1, 2, 3, 4]


def test_a_step_that_is_deleted_by_hand_and_saved_anew_is_judged_anew(tmp_path: Path) -> None:
    with a_run(tmp_path / "run", 3, Keep(last=1, best=1, by="loss")) as run:
        assert run.steps() == [1, 3]
        shutil.rmtree(tmp_path / "run" / step_name(1))
        run.save(1, {"loss": 9.0}, wait=True)
        assert run.steps() == [3]
        run.save(4, {"loss": 8.0}, wait=True)
        assert run.steps() == [3, 4]
