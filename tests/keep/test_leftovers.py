"""Whose leftovers are cleared, by what, and that those of a save at work never are."""

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from msgspec.structs import replace

import holdtrue
from holdtrue import Run
from holdtrue.engine import checkpoint as engine_checkpoint
from holdtrue.storage import processes, staging_area
from holdtrue.storage.processes import Process, is_gone, lives, mark, marked, this_process

STEP = "step-000000007"


def ended() -> Process:
    """A process of this machine that is no more."""
    if not (pid := os.fork()):
        os._exit(0)
    os.waitpid(pid, 0)
    return replace(this_process(), pid=pid, began="1")


def left(parent: Path, owner: Process, name: str = STEP) -> Path:
    with mock.patch.object(processes, "this_process", return_value=owner):
        made = parent / ".staging" / f"{name}.{mark()}.0a1b2c3d"
    made.mkdir(parents=True)
    (made / "model.safetensors").write_bytes(b"half")
    return made


def test_a_mark_says_who_it_was() -> None:
    me = this_process()
    assert me.boot
    assert me.namespace
    assert me.began
    back = marked(mark())
    assert back is not None
    assert replace(back, host=me.host) == me
    for odd in ("", "host", "host-", "-12", "host-1e3", "host-12-zz-1-1", "h-99999999999", "a.b-1"):
        assert marked(odd) is None
    assert not processes.process_lives(1 << 40)
    assert not processes.process_lives(0)
    assert not processes.process_lives(-1)


WHO: dict[str, tuple[Callable[[], Process], bool | None]] = {
    "this one": (this_process, True),
    "one that ended": (ended, False),
    "another's old number": (lambda: replace(this_process(), began="1"), False),
    "an earlier boot": (lambda: replace(this_process(), boot="0" * 8), False),
    "another container": (lambda: replace(ended(), namespace="1"), None),
    "another container of another name": (
        lambda: replace(ended(), namespace="1", host="x"),
        None,
    ),
    "another machine": (lambda: replace(ended(), boot="0" * 8, host="x"), None),
    "another machine that tells nothing": (lambda: Process(pid=ended().pid, host="x"), None),
    "a system that tells nothing": (
        lambda: Process(pid=ended().pid, host=socket.gethostname()),
        False,
    ),
}


@pytest.mark.parametrize("who", WHO)
def test_who_is_known_to_be_gone(who: str, tmp_path: Path) -> None:
    make, answer = WHO[who]
    owner = make()
    assert lives(owner) is answer
    assert is_gone(owner) is (answer is False)
    place = left(tmp_path / "run", owner)
    Run(tmp_path / "run", value=1)
    assert place.exists() is (answer is not False)


def test_the_writer_of_a_run_clears_what_other_containers_of_its_machine_left(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    stay = [
        left(run, replace(ended(), boot="0" * 8, host="x")),
        left(run, replace(ended(), namespace="1"), "one"),  # no run's: it holds no lock
        left(run, this_process()),
    ]
    go = [left(run, replace(ended(), namespace="1"), name) for name in (STEP, f"removed-{STEP}")]
    made = Run(run, value=1)
    assert all(place.exists() for place in (*stay, *go))
    made.save(1, wait=True)
    assert [place.exists() for place in (*stay, *go)] == [True] * 3 + [False] * 2
    made.close()


@pytest.mark.parametrize("whole", [True, False])
def test_a_save_whose_files_are_removed_meanwhile_fails_and_is_not_listed(
    whole: bool, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run", on_error="raise", model=torch.nn.Linear(2, 2))
    run.save(1, wait=True)
    real = engine_checkpoint.write_synced

    def write_synced(path: Path, data: bytes) -> None:
        real(path, data)
        if whole:
            shutil.rmtree(path.parent)
        else:
            (path.parent / "model.safetensors").unlink()

    with (
        mock.patch.object(engine_checkpoint, "write_synced", write_synced),
        pytest.raises(holdtrue.SaveError) as caught,
    ):
        run.save(2, wait=True)
    (finding,) = caught.value.report.errors
    assert "removed or changed" in finding.what
    assert run.steps() == [1]
    run.save(3, wait=True)
    run.close()
    assert sorted(os.listdir(tmp_path / "run")) == ["step-000000001", "step-000000003"]


def test_what_is_cleared_is_taken_whole(tmp_path: Path) -> None:
    """Of a save that publishes and a process that believes it dead, one has the directory."""
    place = left(tmp_path, ended())
    real, seen = shutil.rmtree, []

    def rmtree(path: Any, **given: Any) -> None:
        seen.append((place.exists(), sorted(os.listdir(path))))
        real(path, **given)

    with mock.patch.object(shutil, "rmtree", rmtree):
        assert staging_area.clear_leftovers(tmp_path) == [place.name]
    assert seen == [(False, ["model.safetensors"])]


def cut_off(act: Callable[[], object], at: str) -> None:
    """Do it in a process that ends on coming to `at`, a rename or a removal."""
    if not (pid := os.fork()):
        real = Path.rename

        def rename(self: Path, target: Any) -> Any:
            inward = ".staging" in str(target)
            if at == ("move away" if inward else "publish") and self.name != ".lock":
                os._exit(0)
            return real(self, target)

        def rmtree(path: Any, **_: Any) -> None:
            os._exit(0 if at == "erase" else 1)

        Path.rename = rename  # type: ignore[method-assign]
        shutil.rmtree = rmtree  # type: ignore[assignment]
        act()
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0


ONE_OFF: dict[str, Callable[[Path], object]] = {
    "save": lambda place: holdtrue.save(place / "k", overwrite=True, value=2),
    "convert": lambda place: holdtrue.convert(place / "a", place / "k", overwrite=True),
    "salvage": lambda place: holdtrue.salvage(place / "a", place / "k", overwrite=True),
}


@pytest.mark.parametrize("at", ["move away", "publish", "erase"])
@pytest.mark.parametrize("way", ONE_OFF)
def test_what_a_killed_overwriting_save_left_goes_with_the_next(
    way: str, at: str, tmp_path: Path
) -> None:
    holdtrue.save(tmp_path / "a", value=3)
    holdtrue.save(tmp_path / "k", value=1)
    cut_off(lambda: ONE_OFF[way](tmp_path), at)
    assert (tmp_path / ".staging").exists()
    holdtrue.save(tmp_path / "other", value=0)
    if at == "publish":  # the old copy is all that there is of it
        (aside,) = staging_area.put_aside(tmp_path / "k")
        assert os.listdir(tmp_path / ".staging") == [aside.name]
        with pytest.raises(holdtrue.OpenError, match="interrupted"):
            holdtrue.open(tmp_path / "k")
        assert holdtrue.open(aside)["value"] == 1
    ONE_OFF[way](tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["a", "k", "other"]
    assert holdtrue.open(tmp_path / "k")["value"] == (2 if way == "save" else 3)


def test_what_cannot_be_cleared_is_no_reason_to_fail(tmp_path: Path) -> None:
    place = left(tmp_path, ended(), "x")
    with mock.patch.object(staging_area, "_names", side_effect=PermissionError(13, "denied")):
        holdtrue.save(tmp_path / "k", value=1)
    assert place.exists()
    assert holdtrue.open(tmp_path / "k")["value"] == 1


def test_the_old_copy_of_another_name_stays(tmp_path: Path) -> None:
    names = ("k.replaced.x.replaced.0a1b2c3d", "kk.replaced.0a1b2c3d", "k.replaced.0a1b2c3")
    for name in names:
        (tmp_path / ".staging" / name).mkdir(parents=True)
    holdtrue.save(tmp_path / "k", value=1)
    assert sorted(os.listdir(tmp_path / ".staging")) == sorted(names)


# -- what overwriting replaces ---------------------------------------------------------------------


def ways(place: Path) -> list[Callable[[], object]]:
    return [way_at(way, place) for way in ONE_OFF.values()]


def way_at(way: Callable[[Path], object], place: Path) -> Callable[[], object]:
    return lambda: way(place)


def test_another_programs_manifest_is_no_checkpoint(tmp_path: Path) -> None:
    holdtrue.save(tmp_path / "a", value=3)
    (tmp_path / "k").mkdir()
    (tmp_path / "k" / "manifest.json").write_text('{"manifest_version": 3, "name": "extension"}')
    for act in ways(tmp_path):
        with pytest.raises(holdtrue.SaveError):
            act()
    assert os.listdir(tmp_path / "k") == ["manifest.json"]


@pytest.mark.parametrize("damaged", [False, True])
def test_a_checkpoint_with_files_of_someone_in_it_is_not_replaced(
    damaged: bool, tmp_path: Path
) -> None:
    holdtrue.save(tmp_path / "a", value=3)
    holdtrue.save(tmp_path / "k", model=torch.nn.Linear(2, 2), seal=True)
    if damaged:
        raw = (tmp_path / "k" / "manifest.json").read_bytes()
        (tmp_path / "k" / "manifest.json").write_bytes(raw[: len(raw) // 2])
    (tmp_path / "k" / "notes.md").write_text("years of work")
    for act in ways(tmp_path):
        with pytest.raises(holdtrue.SaveError) as caught:
            act()
        (finding,) = caught.value.report.errors
        assert finding.code == "destination-unsafe"
        assert "notes.md" in finding.why
    (tmp_path / "k" / "notes.md").rename(tmp_path / "notes.md")
    for name in (".DS_Store", "._x", "Thumbs.db"):
        (tmp_path / "k" / name).write_bytes(b"")
    for act in ways(tmp_path):
        act()
    assert sorted(os.listdir(tmp_path)) == ["a", "k", "notes.md"]


def test_a_folder_of_models_is_no_set_of_shards(tmp_path: Path) -> None:
    holdtrue.save(tmp_path / "a", model=torch.nn.Linear(2, 2))
    (tmp_path / "k").mkdir()
    for name in ("mine.safetensors", "other.safetensors"):
        (tmp_path / "k" / name).write_bytes(b"years of work")
    with pytest.raises(holdtrue.SaveError, match="destination-unsafe"):
        holdtrue.convert(tmp_path / "a", tmp_path / "k", to="shards", overwrite=True)
    assert len(os.listdir(tmp_path / "k")) == 2
    holdtrue.convert(tmp_path / "a", tmp_path / "shards", to="shards")
    holdtrue.convert(tmp_path / "a", tmp_path / "shards", to="shards", overwrite=True)
