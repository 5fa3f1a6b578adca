"""Every order in which a disk may lose what was not synced; and each fsync left out in turn."""

import os
import random
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct
from ordering import (
    Check,
    Op,
    Recorded,
    crash_points,
    digest,
    recorded,
    states,
    without,
    write_out,
)
from scenarios import called, parts, save_to, small_and_in_order, value_in, value_of
from tracing import CHANGING, needs_strace, of_calls, run_child

import holdtrue
from holdtrue import Keep, Run
from holdtrue.cli import main  # noqa: F401 - imported before children are forked
from holdtrue.errors import HoldtrueError
from holdtrue.formats.step_names import step_name
from holdtrue.storage.commit import put_aside, sync_directory
from holdtrue.storage.locating import steps

_STEP = re.compile(r"step-0*(\d+)\Z")


class History(Struct, frozen=True, eq=False):
    name: str
    act: Callable[[Path], None]  # marks what is durable from then on
    check: Check


def _mark(root: Path, text: str) -> None:
    with (root.parent / "marks").open("a") as file:
        file.write(text)


def _trains(root: Path) -> None:
    with (
        small_and_in_order(),
        Run(root / "run", on_error="raise", keep=Keep(last=2), **parts(0)) as run,
    ):
        for step in (1, 2, 3):
            save_to(run, step)
            _mark(root, f"step {step}")


def _goes_back(root: Path) -> None:
    with small_and_in_order(), Run(root / "run", on_error="raise", **parts(0)) as run:
        save_to(run, 1)
        _mark(root, "step 1")
        save_to(run, 2)
        _mark(root, "step 2")
        save_to(run, 3)
        _mark(root, "step 3")
        run.resume(at=1)
        save_to(run, 2, value=22)  # what was step 2, and 3, is put aside
        _mark(root, "again 22")


def _check_run(root: Path, done: list[Op]) -> None:
    marks = [op.name for op in done if op.kind == "mark"]
    durable = {int(mark.split()[1]) for mark in marks if mark.startswith("step")}
    moved = {int(m[1]) for op in done if op.kind == "move" and (m := _STEP.match(op.old))}
    there = steps(root / "run")
    assert durable - moved <= there.keys(), f"lost: steps {sorted(durable - moved - set(there))}"
    for step, path in there.items():
        try:
            verified = holdtrue.verify(path)
        except HoldtrueError as error:
            raise AssertionError(f"step {step} is listed, and cannot be opened") from error
        assert verified.ok, f"step {step} is listed, and damaged"
    for aside in (root / "run").glob("abandoned-*"):
        assert holdtrue.verify(aside).ok
    given = parts(-1)
    run = Run(root / "run", on_error="raise", **given)  # clears what is left over
    newest = run.resume()
    assert newest == max(there, default=0)
    assert value_of(given) in ({2: (2, 22)}.get(newest, (newest, -1)))
    second = float(holdtrue.open(there[2])["model"]["trained.weight"][0, 0]) if 2 in there else 0
    assert second != 22 or newest == 2, "the training that was given up is the newest"
    assert second == 22 or "again 22" not in marks, "the step after going back is lost"
    run.close()


def _overwrites(root: Path) -> None:
    with small_and_in_order():
        for value in (1, 2):
            holdtrue.save(root / "kept", overwrite=True, **parts(value))
            _mark(root, f"value {value}")


def _check_kept(root: Path, done: list[Op]) -> None:
    durable = max((int(op.name.split()[1]) for op in done if op.kind == "mark"), default=0)
    place = root / "kept"
    if not place.exists() and durable:
        found = put_aside(place)
        assert found, "neither the old one nor the new one is there"
        assert durable < 2
        place = found[0]
    if place.exists():
        try:
            assert holdtrue.verify(place).ok, "damaged"
        except HoldtrueError as error:
            raise AssertionError("it cannot be opened") from error
        value = float(holdtrue.open(place)["model"]["trained.weight"][0, 0])
        assert value >= durable, f"holds {value}"


def _converts(root: Path) -> None:
    with small_and_in_order():
        for number in (1, 2):
            status, said = called(
                "convert", root.parent / f"{number}.pt", root / "a.safetensors", "--overwrite"
            )
            assert status == 0, said
            _mark(root, f"file {number}")


def _check_file(root: Path, done: list[Op]) -> None:
    durable = max((int(op.name.split()[1]) for op in done if op.kind == "mark"), default=0)
    place = root / "a.safetensors"
    if not place.exists():
        assert not durable, "the file is gone"
        return
    try:
        value = float(holdtrue.open(place).tensors["w"].numpy()[0])
    except HoldtrueError as error:
        raise AssertionError("the file is damaged") from error
    assert value in (durable, durable + 1), f"it holds {value}"


def _salvages(root: Path) -> None:
    with small_and_in_order():
        for number in (1, 2):
            cut = root.parent / f"cut {number}.pt"
            called("salvage", cut, root / "a.safetensors", "--overwrite", "--json")
            assert (root / "a.safetensors").exists()
            _mark(root, f"file {number}")


def _prunes(root: Path) -> None:
    with small_and_in_order():
        with Run(root / "run", on_error="raise", **parts(0)) as run:
            for step in (1, 2, 3):
                save_to(run, step)
                _mark(root, f"step {step}")
        status, said = called("prune", root / "run", "--keep", "last=1")
        assert status == 0, said


_BROKEN = b"broken on purpose"


def _replaces_a_damaged_step(root: Path) -> None:
    with small_and_in_order(), Run(root / "run", on_error="raise", **parts(0)) as run:
        save_to(run, 1)
        _mark(root, "step 1")
        save_to(run, 2)
        _mark(root, "step 2")
        manifest = root / "run" / step_name(2) / "manifest.json"
        with manifest.with_name("new").open("wb") as file:
            file.write(_BROKEN)
            file.flush()
            os.fsync(file.fileno())
        manifest.with_name("new").rename(manifest)
        sync_directory(manifest.parent)
        _mark(root, "broken 2")
        assert run.resume() == 1
        save_to(run, 2, value=22)
        _mark(root, "again 22")


def _check_replaced(root: Path, done: list[Op]) -> None:
    """The damaged step stays as it is, under its name or aside, until a whole one is there."""
    marks = [op.name for op in done if op.kind == "mark"]
    there, aside = steps(root / "run"), root / "run" / f"damaged-{step_name(2)}"
    values = {step: _value_or_broken(path) for step, path in there.items()}
    assert "step 1" not in marks or values.get(1) == 1, f"step 1 is lost: {values}"
    assert "step 2" not in marks or 2 in values or aside.exists(), "step 2 is lost"
    if "broken 2" in marks:
        assert values.get(2) in (None, -1, 22), f"it was broken: {values}"
        # Of two renames only the second may have reached the disk: then the new one is there, and
        # the damaged one is not.
    assert not aside.exists() or _value_or_broken(aside) == -1
    assert "again 22" not in marks or values.get(2) == 22, f"the step is lost: {values}"


def _value_or_broken(path: Path) -> float:
    """-1 for the one that was broken on purpose, to the last byte."""
    manifest = path / "manifest.json"
    if manifest.exists() and manifest.read_bytes() == _BROKEN:
        return -1
    try:
        return value_in(path)
    except HoldtrueError as error:
        raise AssertionError(f"{path.name} is listed, and cannot be opened") from error


HISTORIES = [
    History("saves that link and prune", _trains, _check_run),
    History("going back", _goes_back, _check_run),
    History("overwriting", _overwrites, _check_kept),
    History("converting over a file", _converts, _check_file),
    History("salvaging over a file", _salvages, _check_file),
    History("pruning by command", _prunes, _check_run),
    History("replacing a damaged step", _replaces_a_damaged_step, _check_replaced),
]


@pytest.fixture
def memory() -> Iterator[Path]:
    """Thousands of small trees are written: in memory, where the system has such a place."""
    home = Path("/dev/shm")
    place = Path(tempfile.mkdtemp(dir=home if home.is_dir() else None, prefix="ordering-"))
    yield place
    shutil.rmtree(place)


def history_of(history: History, tmp_path: Path) -> Recorded:
    needs_strace()
    import torch

    for number in (1, 2):
        whole = tmp_path / f"{number}.pt"
        torch.save({"w": torch.full((3000,), float(number)), "x": torch.ones(3000)}, whole)
        raw = whole.read_bytes()
        (tmp_path / f"cut {number}.pt").write_bytes(raw[: len(raw) * 3 // 4])
    root = tmp_path / "root"
    root.mkdir()

    def act(place: Path) -> dict[str, Any]:
        history.act(place)
        return {"error": None}

    options = ("-xx", "-s", "10000000", *of_calls(CHANGING))
    ended = run_child(act, root, tmp_path, *options)
    assert ended.told is not None, ended.output
    found = recorded(ended.log, root, tmp_path / "marks")
    # The record is complete: put together again it is what stands on the disk.
    whole = next(states(found, len(found.ops), random.Random(0), 0))[0]
    write_out(whole, tmp_path / "again")
    assert _content(tmp_path / "again") == _content(root)
    return found


def _content(root: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(root)): p.read_bytes() if p.is_file() else b"" for p in root.rglob("*")
    }


def tried(
    found: Recorded,
    check: Check,
    place: Path,
    samples: int,
    chance: random.Random,
    begin: int = 0,
) -> tuple[int, str]:
    """How many different states were looked at, and what was wrong with the first bad one."""
    seen: set[tuple[bytes, int, int]] = set()
    for end in crash_points(found.ops):
        if end <= begin:
            continue
        done = found.ops[:end]
        marks = sum(op.kind == "mark" for op in done)
        moves = sum(op.kind == "move" for op in done)
        for disk, said in states(found, end, chance, samples):
            key = digest(disk), marks, moves
            if key in seen:
                continue
            seen.add(key)
            root = place / "state"
            write_out(disk, root)
            try:
                check(root, done)
            except AssertionError as error:
                return len(seen), f"before operation {end}, {said}: {error}"
            finally:
                shutil.rmtree(root)
    return len(seen), ""


@pytest.mark.parametrize(
    "samples", [pytest.param(3, id="few"), pytest.param(150, marks=pytest.mark.slow, id="many")]
)
@pytest.mark.parametrize("history", HISTORIES, ids=lambda h: h.name)
def test_every_order_is_safe(
    history: History, samples: int, tmp_path: Path, memory: Path, figure: Any
) -> None:
    found = history_of(history, tmp_path)
    number, wrong = tried(found, history.check, memory, samples, random.Random(samples))
    assert not wrong
    assert number > 20
    figure("states of a disk after a power cut, in the model", number)
    figure("file operations in the model", len(found.ops))


@pytest.mark.parametrize("history", HISTORIES, ids=lambda h: h.name)
def test_no_fsync_may_be_left_out(
    history: History, tmp_path: Path, memory: Path, figure: Any
) -> None:
    """Each fsync that the program makes, left out in turn, loses something in some order; where
    the next one syncs the same directory before anything was promised, both of them together."""
    found = history_of(history, tmp_path)
    pairs = 0
    syncs = [index for index, op in enumerate(found.ops) if op.kind == "sync"]
    for index, after in zip(syncs, [*syncs[1:], -1], strict=True):
        # A removal syncs the directory of the run once more, before the save has promised anything:
        # either of the two would do for publishing, and none does not.
        promised = any(op.kind == "mark" for op in found.ops[index:after])
        twice = after > 0 and found.ops[after] == found.ops[index] and not promised
        less = without(found, {index, after} if twice else {index})
        _, wrong = tried(less, history.check, memory, 3, random.Random(index), index)
        assert wrong, f"nothing goes wrong without fsync {index} of {syncs}: {found.ops[index]}"
        pairs += twice
    figure("fsyncs left out, each found by the model", len(syncs) - pairs)
    figure("fsyncs left out with the next one, which syncs the same once more", pairs)
