"""What stands under names that are ours and is not ours: not followed, not changed, not removed."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from test_writers import refuse_flock

import holdtrue
from holdtrue import Keep, Run
from holdtrue.cli import cli
from holdtrue.storage import staging_area
from holdtrue.storage.commit import remove
from holdtrue.storage.locking import owner_of


def hard_linked_record(lock: Path, outside: Path) -> None:
    outside.write_bytes(b"")
    os.link(outside, lock)


LOCKS: dict[str, tuple[Callable[[Path, Path], Any], str]] = {
    "link": (lambda lock, outside: lock.symlink_to(outside), "not-a-file"),
    "dangling link": (lambda lock, outside: lock.symlink_to(f"{outside}-new"), "not-a-file"),
    "hard link": (lambda lock, outside: os.link(outside, lock), "already-exists"),
    "pipe": (lambda lock, outside: os.mkfifo(lock), "not-a-file"),
    "directory": (lambda lock, outside: lock.mkdir(), "not-a-file"),
    "file of something else": (
        lambda lock, outside: lock.write_bytes(b"thesis"),
        "already-exists",
    ),
    "hard link to an empty file": (hard_linked_record, "already-exists"),
}


@pytest.mark.parametrize("flock", [True, False])
@pytest.mark.parametrize("kind", LOCKS)
def test_a_lock_that_is_none_is_refused_and_left(
    kind: str, flock: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not flock:
        refuse_flock(monkeypatch)
    outside, run = tmp_path / "thesis", tmp_path / "run"
    outside.write_text("years of work")
    with Run(run, value=1) as made:
        made.save(1, wait=True)
        made.save(2, wait=True)
    put, code = LOCKS[kind]
    put(run / ".lock", outside)
    before = outside.read_bytes(), (run / ".lock").lstat()
    with pytest.raises(holdtrue.SaveError) as caught:
        Run(run, value=2).save(3)
    (finding,) = caught.value.report.errors
    assert (finding.code, finding.where) == (code, str(run / ".lock"))
    assert "remove it" in finding.fix
    done = CliRunner().invoke(cli, ["prune", str(run), "--keep", "last=1"], standalone_mode=False)
    assert isinstance(done.exception, holdtrue.SaveError)
    assert (outside.read_bytes(), (run / ".lock").lstat()) == before
    assert not (tmp_path / "thesis-new").exists()
    assert Run(run, value=0).steps() == [1, 2]


@pytest.mark.parametrize("kind", ["link", "pipe", "directory"])
def test_asking_for_the_owner_follows_nothing_and_waits_for_nothing(
    kind: str, tmp_path: Path
) -> None:
    (tmp_path / "outside").write_text('{"pid": 1, "host": "h", "since": "x"}')
    LOCKS[kind][0](tmp_path / ".lock", tmp_path / "outside")
    said: list[Any] = []
    asking = threading.Thread(target=lambda: said.append(owner_of(tmp_path)), daemon=True)
    asking.start()
    asking.join(20)
    assert said == [None]


def dead() -> str:
    """The mark of a process of this machine that has ended."""
    reading, writing = os.pipe()
    if not (pid := os.fork()):
        os.write(writing, staging_area.mark().encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        return pipe.read().decode()


@pytest.mark.parametrize("kind", ["link", "dangling link", "file"])
def test_a_staging_area_that_is_none_is_refused_and_left(kind: str, tmp_path: Path) -> None:
    victim, run = tmp_path / "victim", tmp_path / "run"
    victim.mkdir()
    with Run(run, weights=torch.ones(2)) as made:
        made.save(1, wait=True)
    holdtrue.save(tmp_path / "run" / "one", value=1)
    if kind == "link":
        (run / ".staging").symlink_to("../victim")
    elif kind == "dangling link":
        (run / ".staging").symlink_to("../nowhere")
    else:
        (run / ".staging").write_bytes(b"mine")
    names = [f"step-000000001.{dead()}.0a1b2c3d", "one.replaced.0a1b2c3d"]
    for name in names:
        (victim / name).mkdir()
        (victim / name / "thesis").write_text("years of work")
    acts: list[Callable[[], object]] = [
        lambda: Run(run, keep=Keep(last=1), value=2).save(2, wait=True),
        lambda: holdtrue.save(run / "one", overwrite=True, value=2),
        lambda: holdtrue.convert(run / "step-000000001", run / "other"),
        lambda: holdtrue.convert(run / "step-000000001", run / "other.pt"),
    ]
    for act in acts:
        with pytest.raises(holdtrue.SaveError) as caught:
            act()
        (finding,) = caught.value.report.errors
        assert (finding.code, finding.where) == ("not-a-directory", str(run / ".staging"))
    with pytest.raises(OSError, match="stands where"):
        remove(run / "step-000000001")
    holdtrue.diagnose(run)
    assert staging_area.put_aside(run / "one") == []
    assert staging_area.leftovers(run) == []
    assert sorted(os.listdir(victim)) == sorted(names)
    assert all(os.listdir(victim / name) == ["thesis"] for name in names)
    assert not (tmp_path / "nowhere").exists()
    assert holdtrue.verify(run / "step-000000001").ok
    assert holdtrue.open(run / "one")["value"] == 1


def test_a_step_that_is_a_link_is_pruned_without_what_it_leads_to(tmp_path: Path) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside"
    with Run(run, value=1) as made:
        for step in (1, 2):
            made.save(step, wait=True)
    (run / "step-000000001").rename(outside)
    (run / "step-000000001").symlink_to("../outside")
    with Run(run, keep=Keep(last=1), value=2) as made:
        made.save(3, wait=True)
    assert sorted(os.listdir(run)) == ["step-000000003"]
    assert holdtrue.verify(outside).ok


def test_links_among_leftovers_are_removed_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "thesis").write_text("years of work")
    (tmp_path / "run" / ".staging").mkdir(parents=True)
    place = tmp_path / "run" / ".staging" / f"step-000000001.{dead()}.0a1b2c3d"
    place.symlink_to("../../outside")
    Run(tmp_path / "run", value=1)
    assert os.listdir(tmp_path / "run") == []
    assert os.listdir(tmp_path / "outside") == ["thesis"]
