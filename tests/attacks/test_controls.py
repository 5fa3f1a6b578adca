"""What the attacks' tests look at can fail: each guard is made to, by the harmless real thing.

Here, and nowhere else, payloads run: in a child, where all they do is to make the canary.
"""

import contextlib
import os
import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from attacks import arena, canary, families
from attacks.attack import FAMILIES, make
from attacks.gauntlet import Trial
from attacks.watch import Watch

assert families.__all__
# Attacks whose payload the loader that they are made for runs.
LOADERS: dict[tuple[str, str], Callable[[Path], Any]] = {
    ("pickle", "code: reduce"): lambda p: pickle.loads(p.read_bytes()),
    ("pickle", "code: stack global from the memo"): lambda p: pickle.loads(p.read_bytes()),
    ("pickle", "code: inst"): lambda p: pickle.loads(p.read_bytes()),
    ("pickle", "code: object popped"): lambda p: pickle.loads(p.read_bytes()),
    ("pickle", "memo overwritten"): lambda p: pickle.loads(p.read_bytes()),
    ("pickle", "payload, then an unknown opcode"): lambda p: pickle.loads(p.read_bytes()),
    ("pickle", "payload, then nothing"): lambda p: pickle.loads(p.read_bytes()),
    ("torch file", "payload in data.pkl"): lambda p: torch.load(p, weights_only=False),
    ("torch file", "payload beside honest weights"): lambda p: torch.load(p, weights_only=False),
    ("torch file", "pickle named .bin"): lambda p: torch.load(p, weights_only=False),
    ("torch file", "magic number computed"): lambda p: torch.load(p, weights_only=False),
    ("torch file", "payload in place of the magic number"): lambda p: torch.load(
        p, weights_only=False),
    ("torch file", "legacy system information that runs code"): lambda p: torch.load(
        p, weights_only=False),
    ("torch file", "legacy storage keys that run code"): lambda p: torch.load(
        p, weights_only=False),
    ("DCP metadata", "metadata that runs code"): lambda p: pickle.loads(
        (p / ".metadata").read_bytes()),
    ("DCP metadata", "metadata that is a payload"): lambda p: pickle.loads(
        (p / ".metadata").read_bytes()),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDTRUE_CANARY", str(tmp_path / "canary"))


@pytest.mark.parametrize(("family", "name"), LOADERS)
def test_the_canary_shows_what_a_loader_runs(family: str, name: str, tmp_path: Path) -> None:
    folder = tmp_path / "attack"
    folder.mkdir()
    path = make(FAMILIES[family][name], folder)
    assert not canary.canary().exists()

    def load() -> dict[str, Any]:
        try:
            LOADERS[family, name](path)
        except Exception as error:
            return {"ended": repr(error)[:200]}
        return {}

    said = arena.forked(load)
    assert "died" not in said
    assert canary.canary().exists(), f"the payload did not run: {said}"


def test_importing_the_bait_makes_the_canary() -> None:
    def load() -> dict[str, Any]:
        import sys

        sys.path.insert(0, str(Path(__file__).parent / "bait"))
        import holdtrue_bait

        return {"made": holdtrue_bait.Net.__name__}

    assert arena.forked(load) == {"made": "Net"}
    assert canary.canary().exists()


def _socket() -> None:
    import socket

    with socket.socket() as made:
        made.settimeout(0.1)
        made.connect_ex(("127.0.0.1", 9))


REACHES: dict[str, Callable[[Path], Any]] = {
    "os.system": lambda place: os.system("true"),
    "subprocess.Popen": lambda place: subprocess.run(["true"], check=True),
    "socket.": lambda place: _socket(),
    "exec of": lambda place: eval("1 + 1"),
    "pickle.find_class": lambda place: pickle.loads(b"cbuiltins\nlen\n."),
    "for writing": lambda place: (place / "outside").write_bytes(b"x"),
    "for reading": lambda place: (place / "secret").read_bytes(),
    "os.listdir": lambda place: os.listdir(place),
    "os.mkdir": lambda place: (place / "made").mkdir(),
    "os.rename": lambda place: (place / "secret").rename(place / "moved"),
    "os.symlink": lambda place: (place / "link").symlink_to("secret"),
    "os.remove": lambda place: (place / "secret").unlink(),
    "import holdtrue_bait": lambda place: __import__("holdtrue_bait"),
}


@pytest.mark.parametrize("event", REACHES)
def test_the_watch_sees(event: str, tmp_path: Path) -> None:
    outside, own = tmp_path / "outside", tmp_path / "own"
    for folder in (outside, own):
        folder.mkdir()
    (outside / "secret").write_bytes(b"x")

    def reach() -> dict[str, Any]:
        watch = Watch([own], [own])
        watch.arm()
        with contextlib.suppress(ImportError):
            REACHES[event](outside)
        return {"seen": watch.seen}

    seen = arena.forked(reach)["seen"]
    assert any(event in line for line in seen), seen


def test_the_watch_is_quiet_about_what_is_allowed(tmp_path: Path) -> None:
    def work() -> dict[str, Any]:
        watch = Watch([tmp_path], [tmp_path])
        watch.arm()
        (tmp_path / "a").write_bytes(b"x")
        (tmp_path / "a").rename(tmp_path / "b")
        return {"seen": watch.seen, "read": (tmp_path / "b").read_bytes().decode()}

    assert arena.forked(work) == {"seen": [], "read": "x"}


def test_a_link_out_of_the_folder_is_seen(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (tmp_path / "secret").write_bytes(b"x")
    (own / "link").symlink_to("../secret")

    def read() -> dict[str, Any]:
        watch = Watch([own], [own])
        watch.arm()
        (own / "link").read_bytes()
        return {"seen": watch.seen}

    assert arena.forked(read)["seen"]


def test_memory_is_measured() -> None:
    def grow() -> dict[str, Any]:
        before = arena.reset_peak()
        block = bytearray(arena.MEMORY + (32 << 20))
        block[::4096] = b"x" * len(block[::4096])
        return {"grown": arena.peak() - before}

    assert arena.forked(grow)["grown"] > arena.MEMORY


def test_a_child_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arena, "PATIENCE", 2)

    def hang() -> dict[str, Any]:
        while True:
            pass

    assert "died" in arena.forked(hang)


def test_a_child_that_dies_is_told() -> None:
    assert "died" in arena.forked(lambda: os._exit(7))


def test_what_is_raised_and_is_no_finding_is_kept() -> None:
    trial = Trial()
    with trial.step("open"):
        raise KeyError("weight")
    assert trial.bare
    assert "KeyError" in trial.bare[0]


def test_a_changed_file_is_seen(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    before = arena.contents(tmp_path)
    (tmp_path / "a").write_bytes(b"y")
    assert arena.contents(tmp_path) != before


def test_what_a_run_changes_outside_is_seen(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    before = arena.contents(tmp_path)
    (tmp_path / "b").unlink()
    assert arena.harmed({"a": before["a"]}, arena.contents(tmp_path)) == []
    assert arena.harmed(before, arena.contents(tmp_path)) == ["by a run: b"]
    (tmp_path / "a").write_bytes(b"y")
    assert arena.harmed({"a": before["a"]}, arena.contents(tmp_path)) == ["by a run: a"]


def test_the_watch_follows_descriptors_and_sees_what_a_link_leads_to(tmp_path: Path) -> None:
    outside, own = tmp_path / "outside", tmp_path / "own"
    for folder in (outside, own):
        folder.mkdir()
    (outside / "secret").write_bytes(b"x")
    (own / "link").symlink_to("../outside")
    (own / "gone").symlink_to("../outside")

    def reach() -> dict[str, Any]:
        number = os.open(outside, os.O_RDONLY)
        os.chdir(own)
        watch = Watch([own], [own])
        watch.arm()
        (own / "gone").unlink()  # the link itself, which is ours
        quiet = list(watch.seen)
        (own / "link" / "made").mkdir()
        os.unlink("secret", dir_fd=number)
        return {"quiet": quiet, "seen": watch.seen}

    said = arena.forked(reach)
    assert said["quiet"] == []
    assert [line.split()[0] for line in said["seen"]] == ["os.mkdir", "os.remove"]
