"""What is kept: by age, read back, never without a whole one; `prune` and `log` say what is."""

import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from msgspec.structs import replace
from rich.console import Console
from torch import nn

import holdtrue
from holdtrue import Keep
from holdtrue.cli import cli, log, render
from holdtrue.formats.checkpoint_directory import read_manifest
from holdtrue.records.manifest import encode_manifest
from holdtrue.runs import pruning
from holdtrue.runs.history import Entry, read_history
from holdtrue.runs.keep import parse_keep


def saved(path: Path, losses: dict[int, float], keep: Keep | None = None) -> holdtrue.Run:
    model = nn.Linear(4, 4)
    run = holdtrue.Run(path, on_error="raise", keep=keep, model=model)
    for step, loss in losses.items():
        nn.init.constant_(model.weight, step)
        run.save(step, metrics={"loss": loss}, wait=True)
    return run


def aged(run: holdtrue.Run, step: int, created: str) -> None:
    """The checkpoint as if it had been saved at that time: what the run knows of it is changed."""
    shelf = run._shelf
    shelf._summaries[step] = replace(shelf.summaries()[step], created=created)


def test_within_keeps_what_is_young(tmp_path: Path) -> None:
    run = saved(tmp_path / "run", {1: 1, 2: 1, 3: 1})
    aged(run, 1, "2020-01-01T00:00:00+00:00")
    aged(run, 2, "no time")
    run.keep = Keep(within="1h")
    nn.init.zeros_(run.parts["model"].weight)
    run.save(4, wait=True)
    assert run.steps() == [2, 3, 4]


@pytest.mark.parametrize(
    ("within", "seconds"),
    [("90s", 90), ("1.5 h", 5400), ("2d", 172800), ("30min", 1800), (timedelta(minutes=2), 120)],
)
def test_spans_of_time(within: Any, seconds: int) -> None:
    age = Keep(within=within).age
    assert age is not None
    assert age.total_seconds() == seconds


@pytest.mark.parametrize("within", ["", "2", "h", "-1h", "1 month", 5, timedelta(0)])
def test_what_is_no_span_of_time(within: Any) -> None:
    with pytest.raises(ValueError, match="within"):
        Keep(within=within)


def damage(checkpoint: Path) -> None:
    file = next(checkpoint.glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.unlink()  # a new file: others may be linked to the old one
    file.write_bytes(data)


def test_a_checkpoint_that_reads_back_differently_removes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = saved(tmp_path / "run", {1: 1, 2: 1})
    run.keep, run.verify = Keep(last=1), "after"
    real = pruning._forget_cached

    def flipped(files: Any) -> None:  # the disk changes a bit while nobody looks
        damage(run.path / "step-000000003")
        real(files)

    monkeypatch.setattr(pruning, "_forget_cached", flipped)
    nn.init.zeros_(run.parts["model"].weight)
    with pytest.raises(holdtrue.DamageError) as caught:
        run.save(3, wait=True)
    assert caught.value.report.errors[0].code in ("read-back-differs", "digest-mismatch")
    monkeypatch.undo()
    assert run.steps() == [1, 2, 3]
    assert run.resume() == 2
    run.save(4, wait=True)
    assert run.steps() == [3, 4]  # 3 is damaged: its owner may want to salvage it


def test_the_last_whole_one_stays(tmp_path: Path) -> None:
    saved(tmp_path / "run", {1: 1, 2: 1, 3: 1, 4: 1}).close()
    for step in (3, 4):
        damage(tmp_path / "run" / f"step-{step:09d}")
    done = CliRunner().invoke(cli, ["prune", str(tmp_path / "run"), "--keep", "last=1"])
    assert done.exit_code == 0, done.output
    assert list(holdtrue.Run(tmp_path / "run").steps()) == [2, 4]


def test_nothing_goes_where_nothing_is_whole(tmp_path: Path) -> None:
    saved(tmp_path / "run", {1: 1, 2: 1}).close()
    for step in (1, 2):
        damage(tmp_path / "run" / f"step-{step:09d}")
    CliRunner().invoke(cli, ["prune", str(tmp_path / "run"), "--keep", "last=1"])
    assert list(holdtrue.Run(tmp_path / "run").steps()) == [1, 2]


def test_prune_says_what_it_would_do_and_does_it(tmp_path: Path) -> None:
    saved(tmp_path / "run", {1: 0.5, 2: 0.1, 3: 0.4, 4: 0.9}).close()
    command = ["prune", str(tmp_path / "run"), "--keep", "last=1,best=1,by=loss", "--json"]
    dry = json.loads(CliRunner().invoke(cli, [*command, "--dry-run"]).output)
    assert (dry["removed"], dry["kept"]) == ([1, 3], [2, 4])
    assert list(holdtrue.Run(tmp_path / "run").steps()) == [1, 2, 3, 4]
    wet = json.loads(CliRunner().invoke(cli, command).output)
    assert {**dry, "dry_run": False} == wet
    assert list(holdtrue.Run(tmp_path / "run").steps()) == [2, 4]
    assert not (tmp_path / "run" / ".lock").exists()


@pytest.mark.parametrize("rules", ["", "last", "last=x", "last=0", "best=1", "most=3", "within=2"])
def test_rules_that_are_none(rules: str, tmp_path: Path) -> None:
    saved(tmp_path / "run", {1: 1, 2: 1}).close()
    done = CliRunner().invoke(cli, ["prune", str(tmp_path / "run"), "--keep", rules])
    assert done.exit_code == 2
    assert "Traceback" not in done.output
    assert list(holdtrue.Run(tmp_path / "run").steps()) == [1, 2]


def test_rules_as_text() -> None:
    assert parse_keep("last=3, best=2,by=val_loss,mode=max,every=10,within=2h") == Keep(
        last=3, best=2, by="val_loss", mode="max", every=10, within="2h"
    )


def test_log_tells_cost_commit_and_changes(tmp_path: Path) -> None:
    run = saved(tmp_path / "run", {1: 0.5})
    run.parts["model"] = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    run.parts["classes"] = ["a"]
    run.save(2, metrics={"loss": 0.4})
    run.close()
    shutil.rmtree(tmp_path / "cwd", ignore_errors=True)
    rows = json.loads(CliRunner().invoke(cli, ["log", str(run.path), "--json"]).output)
    assert rows[0]["changes"] == []
    assert {"+classes", "architecture of model"} <= set(rows[1]["changes"])
    assert rows[1]["cost"]["staging"] > 0
    assert rows[0]["verified"] == "sizes"
    text = CliRunner().invoke(cli, ["log", str(run.path), "--verify"]).output
    assert re.search(r"0/\d", text)
    assert "bytes" in text


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_one_that_cannot_be_read_back_is_not_said_to_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = saved(tmp_path / "run", {1: 1, 2: 1})
    run.keep, run.verify = Keep(last=1), "after"

    def refuse(*_: Any) -> int:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    real = pruning._forget_cached
    monkeypatch.setattr(
        pruning, "_forget_cached", lambda f: (real(f), monkeypatch.setattr(os, "preadv", refuse))
    )
    nn.init.zeros_(run.parts["model"].weight)
    with pytest.raises(holdtrue.DamageError) as caught:
        run.save(3, wait=True)
    (found,) = caught.value.report.errors
    assert found.code == "read-failed"
    assert "Cannot allocate memory" in found.why
    assert "memory" in found.fix
    monkeypatch.undo()
    assert run.steps() == [1, 2, 3]


def test_follow_shows_new_checkpoints_as_they_come(tmp_path: Path) -> None:
    run = saved(tmp_path / "run", {1: 0.5})
    # A shell's background job, and with it whatever it starts, ignores the interrupt.
    hears = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    program = [sys.executable, "-c", f"{hears}; from holdtrue.cli import main; main()"]
    following = subprocess.Popen(
        [*program, "log", str(run.path), "--follow"], stdout=subprocess.PIPE, text=True
    )
    timer = threading.Timer(60, following.kill)
    timer.start()
    try:
        assert following.stdout is not None
        assert following.stdout.readline().startswith("step 1 ")
        torch.nn.init.ones_(run.parts["model"].weight)
        run.save(2, metrics={"loss": 0.25}, wait=True)
        assert "loss=0.25" in following.stdout.readline()
        following.send_signal(signal.SIGINT)
        assert following.wait(30) == 0
    finally:
        timer.cancel()
        following.kill()
        following.wait()
        following.stdout.close()


def test_follow_on_a_terminal_reads_only_when_the_steps_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = saved(tmp_path / "run", {1: 0.5})
    drawn, read = io.StringIO(), []
    looks = iter(range(1, 6))

    def history(found: dict[int, Path], every_byte: bool, known: list[Entry]) -> list[Entry]:
        read.append((list(found), every_byte))
        return read_history(found, every_byte=every_byte, known=known)

    def look_again(_: float) -> None:
        look = next(looks)
        if look == 2:
            nn.init.ones_(run.parts["model"].weight)
            run.save(2, metrics={"loss": 0.25}, wait=True)
        if look == 5:
            raise KeyboardInterrupt

    console = Console(file=drawn, force_terminal=True, width=200)
    monkeypatch.setattr(render, "stdout", lambda: console)
    monkeypatch.setattr(holdtrue.runs.history, "read_history", history)
    monkeypatch.setattr(log, "time", SimpleNamespace(sleep=look_again))
    log._follow(run.path, every_byte=True)
    assert read == [([1], True), ([1, 2], True)]
    assert "0.25" in drawn.getvalue()


def contradict(run: holdtrue.Run, step: int) -> None:
    """Its manifest is as it was written, and names a tensor that no file has."""
    path = run.path / f"step-{step:09}"
    manifest = read_manifest(path)
    name, tensor = next(iter(manifest.tensors.items()))
    chunks = (replace(tensor.chunks[0], name="another"),)
    changed = {**manifest.tensors, name: replace(tensor, chunks=chunks)}
    (path / "manifest.json").write_bytes(encode_manifest(replace(manifest, tensors=changed)))


def unread(run: holdtrue.Run, step: int) -> None:
    """Its manifest is as it was written, and cannot be: a file outside of the directory."""
    path = run.path / f"step-{step:09}"
    manifest = read_manifest(path)
    files = {**manifest.files, "../else": next(iter(manifest.files.values()))}
    (path / "manifest.json").write_bytes(encode_manifest(replace(manifest, files=files)))
    with pytest.raises(holdtrue.DamageError):
        read_manifest(path)


def test_log_shows_a_manifest_that_contradicts_its_files(tmp_path: Path) -> None:
    run = saved(tmp_path / "run", {1: 1, 2: 1})
    contradict(run, 1)
    shown = CliRunner().invoke(cli, ["log", str(run.path), "--json"])
    assert shown.exit_code == 1
    assert ["damaged" in entry for entry in json.loads(shown.stdout)] == [True, False]


def test_what_cannot_be_read_takes_no_good_ones_place(tmp_path: Path) -> None:
    run = saved(tmp_path / "run", {1: 0.3, 2: 0.1, 3: 0.4, 4: 0.5})
    unread(run, 2)
    unread(run, 3)
    again = holdtrue.Run(
        run.path, on_error="raise", keep=Keep(last=2, best=1, by="loss"), model=nn.Linear(4, 4)
    )
    again.save(5, metrics={"loss": 0.6}, wait=True)
    # 2 would be the best; 3 and 2 stay for whoever wants to salvage them.
    assert again.steps() == [1, 2, 3, 4, 5]
    again.save(6, metrics={"loss": 0.6}, wait=True)
    assert again.steps() == [1, 2, 3, 5, 6]


def test_an_unreadable_newest_one_takes_no_good_ones_place(tmp_path: Path) -> None:
    run = saved(tmp_path / "run", {1: 1, 2: 1, 4: 1})
    unread(run, 4)
    again = holdtrue.Run(run.path, on_error="raise", keep=Keep(last=2), model=nn.Linear(4, 4))
    again.save(3, wait=True)
    assert again.steps() == [2, 3, 4]


def test_known_entries_are_read_again_only_where_the_directory_changed(tmp_path: Path) -> None:
    run = saved(tmp_path / "run", {1: 1, 2: 1, 3: 1})
    found = {step: run.path / f"step-{step:09}" for step in run.steps()}
    first = read_history(found)
    second = read_history(found, known=first)
    assert [a.manifest is b.manifest for a, b in zip(first, second, strict=True)] == [True] * 3
    next(found[2].glob("*.safetensors")).unlink()
    third = read_history(found, known=second)
    assert [entry.damaged is not None for entry in third] == [False, True, False]
    assert third[0].manifest is first[0].manifest
