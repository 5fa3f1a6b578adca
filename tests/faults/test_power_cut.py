"""The power of a real ext4 cut: its disk as it is at a moment, mounted again, with its journal.

The image of a loop device is copied while saves go on: before and after every fsync, and at
moments of a clock. The copy is taken twice, and counts when both are equal: one that was written
to meanwhile is no moment.
"""

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from scenarios import look_at, parts, save_to, small_and_in_order

from holdtrue import Keep, Run
from holdtrue.storage.locating import steps

Done = dict[str, int]  # the newest step that `save` has returned for, and the one in progress


def refusal(*words: object) -> str:
    """Why the command cannot be had here, or fails; empty where it does its work."""
    try:
        done = subprocess.run([str(w) for w in words], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return f"{words[0]} is not installed"
    return f"{words[0]} is refused: {done.stderr.strip()[:200]}" if done.returncode else ""


def needs_ext4(image: Path, place: Path) -> None:
    """Skip where no new file system can be made or mounted: one that was cut off has to be."""
    place.mkdir()
    for words in (("mkfs.ext4", "-q", "-b", "1024", image), ("mount", "-o", "loop", image, place)):
        why = refusal(*words)
        if why:
            pytest.skip(why)
    subprocess.run(["umount", place], check=True)


@contextmanager
def mounted(image: Path, place: Path) -> Iterator[Path]:
    place.mkdir(exist_ok=True)
    why = refusal("mount", "-o", "loop", image, place)
    assert not why, why
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def copy(image: Path, target: Path) -> bool:
    """Whether the copy is one moment of the image."""
    shutil.copyfile(image, target)
    return target.read_bytes() == image.read_bytes()


def trained(root: Path, last: int, done: Done) -> None:
    with (
        small_and_in_order(),
        Run(root / "run", on_error="raise", keep=Keep(last=2), **parts(0)) as run,
    ):
        for step in range(1, last + 1):
            done["begun"] = step
            save_to(run, step)
            done["durable"] = step


def check(image: Path, place: Path, done: Done) -> None:
    with mounted(image, place):
        run = place / "run"
        newest, begun = done["durable"], done["begun"]
        # Pruning goes on within a save: of the two older ones the newer is there in any case.
        stays = {newest: {float(newest)}} if newest else {}
        may = {n: {float(n)} for n in (newest - 2, newest - 1, begun) if n > 0}
        look_at(run, stays, may)
        with Run(run, on_error="raise", **parts(-1)) as again:
            assert again.resume() >= newest
            save_to(again, 99)
        assert 99 in steps(run)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts ext4")
@pytest.mark.parametrize("last", [2, pytest.param(12, marks=pytest.mark.slow)])
def test_the_disk_of_every_moment(
    last: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figure: Any
) -> None:
    image, shot, place = tmp_path / "image", tmp_path / "shot", tmp_path / "again"
    with image.open("wb") as file:
        file.truncate(4 << 20)
    needs_ext4(image, tmp_path / "first")
    done: Done = {"durable": 0, "begun": 0}
    taken = torn = 0
    chance = random.Random(last)

    def moment() -> None:
        nonlocal taken, torn
        if copy(image, shot):
            check(shot, place, done)
            taken += 1
        else:
            torn += 1

    def around(name: str, share: float) -> None:
        real: Callable[..., Any] = getattr(os, name)

        def call(*given: Any, **named: Any) -> Any:
            if not busy and chance.random() < share:
                busy.append(1)
                try:
                    moment()
                finally:
                    busy.clear()
            result = real(*given, **named)
            if not busy and name == "fsync":
                busy.append(1)
                try:
                    moment()
                finally:
                    busy.clear()
            return result

        monkeypatch.setattr(os, name, call)

    busy: list[int] = []  # saves of the checks themselves are not looked at
    began = time.perf_counter()
    with mounted(image, tmp_path / "disk") as disk:
        around("fsync", 1.0)
        for name in ("pwrite", "rename", "mkdir", "link", "unlink", "rmdir", "truncate"):
            around(name, 0.3)
        trained(disk, last, done)
        monkeypatch.undo()
    assert taken > 20
    assert torn <= taken
    figure("disks of a moment, mounted again", taken)
    figure("seconds of power cuts", round(time.perf_counter() - began))
