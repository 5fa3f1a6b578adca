"""Runs on file systems that are not like the one at home: without links or locks, full, read-only.

They are really mounted, where that is possible; where it is not the test says so and is skipped.
"""

import errno
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import holdtrue
from holdtrue.limits import override
from holdtrue.storage import locking

Mount = Callable[..., Path]


def command(*words: object) -> str:
    """What a system's program prints; skips the test where it is missing or may not."""
    try:
        done = subprocess.run([str(w) for w in words], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip(f"{words[0]} is not installed")
    if done.returncode != 0:
        pytest.skip(f"{words[0]} is refused here: {done.stderr.strip()[:100]}")
    return done.stdout.strip()


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Mount]:
    """Mounts a file system of its own in memory."""
    places: list[Path] = []

    def mounted(options: str) -> Path:
        place = tmp_path / f"mounted-{len(places)}"
        place.mkdir()
        command("mount", "-t", "tmpfs", "-o", options, "none", place)
        places.append(place)
        return place

    yield mounted
    for place in places:
        subprocess.run(["umount", "--lazy", place], check=True)


@pytest.fixture
def exfat(tmp_path: Path) -> Iterator[Path]:
    """A memory card's file system: no hard links, no owners, names without case."""
    for program in ("mkfs.exfat", "mount.exfat-fuse", "losetup"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    image, place = tmp_path / "image", tmp_path / "card"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(32 << 20)
    command("mkfs.exfat", image)
    device = command("losetup", "-f", "--show", image)
    try:
        command("mount.exfat-fuse", device, place)
        try:
            yield place
        finally:
            subprocess.run(["umount", place], check=True)
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


def partly_frozen() -> dict[str, Any]:
    model = nn.Sequential(nn.Linear(64, 64), nn.Dropout(0.1), nn.Linear(64, 4))
    model[0].requires_grad_(False)
    return {"model": model, "optimizer": torch.optim.Adam(model[2].parameters())}


def advance(parts: dict[str, Any]) -> None:
    parts["optimizer"].zero_grad()
    parts["model"](torch.randn(16, 64)).square().mean().backward()
    parts["optimizer"].step()


@override(frozen_bytes=1)
def live_through(place: Path) -> holdtrue.Run:
    """Save, prune, resume in a twin, train both on, and compare."""
    torch.manual_seed(2)
    parts, keep = partly_frozen(), holdtrue.Keep(last=2, best=1, by="loss")
    run = holdtrue.Run(place / "run", keep=keep, verify="after", **parts)
    for step in range(1, 6):
        advance(parts)
        saving = run.save(step, metrics={"loss": abs(step - 2)}, wait=step % 2 == 0)
    assert saving.wait() is not None
    assert run.steps() == [2, 4, 5]
    assert (place / "run" / ".lock").exists()
    for step in run.steps():
        assert holdtrue.verify(f"{run.path}@{step}").findings == ()
    run.close()
    assert not (place / "run" / ".lock").exists()
    expected = trained_on(parts)
    twin = partly_frozen()
    again = holdtrue.Run(place / "run", keep=keep, **twin)
    assert again.resume() == 5
    assert all(torch.equal(a, b) for a, b in zip(trained_on(twin), expected, strict=True))
    return again


def trained_on(parts: dict[str, Any]) -> list[torch.Tensor]:
    advance(parts)
    return [p.detach().clone() for p in parts["model"].parameters()]


def hold(path: Path) -> "subprocess.Popen[str]":
    """A process that is the run's writer until it is killed."""
    program = (
        "import sys, time, holdtrue\n"
        f"run = holdtrue.Run({str(path)!r}, value=1)\n"
        "run.save(100, wait=True); print('saved', flush=True); time.sleep(120)"
    )
    other = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "saved\n"
    return other


def test_without_hard_links(exfat: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = live_through(exfat)
    assert caplog.text.count("makes no hard links") == 1  # told once, not with each save
    assert all(holdtrue.open(f"{run.path}@{s}").manifest.cost.linked == 0 for s in (2, 4, 5))


def test_with_neither_hard_links_nor_flock(
    exfat: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(locking.fcntl, "flock", refused)
    live_through(exfat)
    assert "no flock here" in caplog.text


def test_one_writer_without_hard_links(exfat: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = hold(exfat / "run")
    try:
        run = holdtrue.Run(exfat / "run", value=2)
        with pytest.raises(holdtrue.SaveError) as caught:
            run.save(101)
        assert caught.value.report.errors[0].code == "run-held"
        assert str(other.pid) in caught.value.report.errors[0].what
    finally:
        other.kill()
        other.communicate()
    with caplog.at_level(logging.WARNING, "holdtrue"):
        run.save(101, wait=True)
    assert f"process {other.pid}" in caplog.text
    run.close()
    assert run.steps() == [100, 101]


def test_in_memory(tmpfs: Mount) -> None:
    run = live_through(tmpfs("size=16m"))
    # The frozen file is kept once, and not once for each checkpoint.
    frozen = run.path / "step-000000005" / "model-00001-of-00002.safetensors"
    assert frozen.stat().st_nlink == 3


def test_a_full_disk_behind_is_told_and_left_behind(
    tmpfs: Mount, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmpfs("size=3m")
    weights = torch.rand(150_000)
    run = holdtrue.Run(place / "run", on_error="raise", weights=weights)
    run.save(1, wait=True)
    weights += 1  # else its file would be linked
    ballast = place / "ballast"
    ballast.write_bytes(bytes(2_200_000))
    saving = run.save(2)
    with pytest.raises(holdtrue.SaveError):
        saving.wait()
    assert "step 2 was not saved" in caplog.text
    with pytest.raises(holdtrue.SaveError) as caught:
        run.save(3)
    assert caught.value.report.errors[0].code == "disk-full"
    assert not (run.path / ".staging").exists()  # nothing half-written takes the room
    assert run.steps() == [1]
    ballast.unlink()
    run.save(3)
    run.close()
    assert run.steps() == [1, 3]
    assert holdtrue.verify(f"{run.path}@3").findings == ()


def test_read_only_is_said_and_can_be_resumed(tmpfs: Mount) -> None:
    place = tmpfs("size=4m")
    holdtrue.Run(place / "run", value=[1]).save(1, wait=True)
    command("mount", "-o", "remount,ro", place)
    value = [2]
    run = holdtrue.Run(place / "run", value=value)
    assert run.resume() == 1
    assert value == [1]
    with pytest.raises(holdtrue.SaveError) as caught:
        run.save(2)
    (finding,) = caught.value.report.errors
    assert finding.code == "permission-denied"
    assert "read-only" in finding.what
    assert finding.command == f"mount -o remount,rw {place}"
    subprocess.run(finding.command.split(), check=True)  # what it says mends it
    run.save(2, wait=True)
    run.close()
    assert run.steps() == [1, 2]


def test_readers_of_a_read_only_run(tmpfs: Mount) -> None:
    place = tmpfs("size=4m")
    with holdtrue.Run(place / "run", value=[1]) as run:
        run.save(1)
        run.save(2)
    command("mount", "-o", "remount,ro", place)
    program = "from holdtrue.cli import main; main()"
    for words, status in ((["log"], 0), (["verify"], 0), (["prune", "--keep", "last=1"], 1)):
        done = subprocess.run(
            [sys.executable, "-c", program, words[0], str(run.path), *words[1:], "--json"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stderr
        json.loads(done.stdout or "{}")
        assert "Traceback" not in done.stderr


def test_a_directory_that_disappears_during_a_save(tmp_path: Path) -> None:
    run = holdtrue.Run(tmp_path / "run", on_error="raise", x=torch.ones(3))
    run.save(1, wait=True)

    def take_away(done: int, total: int) -> None:
        if (tmp_path / "run").exists():
            (tmp_path / "run").rename(tmp_path / "elsewhere")

    run.parts["x"] = torch.zeros(3)
    run.progress = take_away
    with pytest.raises(holdtrue.SaveError) as caught:
        run.save(2, wait=True)
    (finding,) = caught.value.report.errors
    assert finding.code == "write-failed"
    assert "disappeared" in finding.what
    assert "is gone from here too" in finding.why
    assert "unchanged" not in finding.why
    assert "untouched" not in finding.fix
    assert finding.command.startswith("ls -ld ")
    run.progress = None
    run.save(3, wait=True)
    assert run.steps() == [3]
    run.close()
