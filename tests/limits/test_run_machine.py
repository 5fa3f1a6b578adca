"""A run and a model of it in memory do the same, whatever is done to them, in whatever order."""

import errno
import logging
import os
import shutil
import socket
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import holdtrue
from holdtrue.cli.prune import command as prune
from holdtrue.formats.step_names import step_name

LAST, BEST, EVERY = 2, 1, 5

_log = logging.getLogger("holdtrue")


class Kept:
    """What the model knows of one checkpoint."""

    def __init__(self, value: float, loss: float | None) -> None:
        self.value, self.loss = value, loss
        self.whole = True  # every byte is as it was written, under its own name
        self.readable = True  # the manifest at least


class RunMachine(RuleBasedStateMachine):
    """The model: a dict of steps, and the rules of `Keep` said once more, in other words."""

    @initialize(
        verify=st.sampled_from([None, "after"]), on_error=st.sampled_from(["raise", "warn"])
    )
    def begin(self, verify: Any, on_error: Any) -> None:
        self.verify, self.on_error = verify, on_error
        self.level = _log.level
        _log.setLevel(logging.CRITICAL)
        self.place = Path(tempfile.mkdtemp(prefix="holdtrue-machine-"))
        self.kept: dict[int, Kept] = {}
        self.passed_over: set[int] = set()  # damaged, and known to be by the run
        self.given_up: set[int] = set()
        self.now = 0
        self.module = torch.nn.Linear(3, 2)
        self.fill(0.0)
        self.open()

    def open(self) -> None:
        keep = holdtrue.Keep(last=LAST, best=BEST, by="loss", every=EVERY)
        self.note: list[Any] = []
        self.run = holdtrue.Run(
            self.place / "run", keep=keep, verify=self.verify, on_error=self.on_error,
            model=self.module, note=self.note,
        )  # fmt: skip
        self.passed_over, self.given_up = set(), set()
        self.own: set[int] = set()  # saved by this Run
        self.kept_one = False

    def fill(self, value: float) -> None:
        self.value = value
        with torch.no_grad():
            for parameter in self.module.parameters():
                parameter.fill_(value)

    def path(self, step: int) -> Path:
        return self.place / "run" / step_name(step)

    @rule(value=st.integers(-5, 5))
    def train(self, value: int) -> None:
        self.fill(float(value))

    @rule(
        ahead=st.integers(-3, 3),
        loss=st.one_of(st.none(), st.integers(0, 4)),
        wait=st.booleans(),
        after=st.integers(-5, 5),
    )
    def save(self, ahead: int, loss: int | None, wait: bool, after: int) -> None:
        """Of a later step, of one that is there, and of one that comes before others."""
        step = max(0, self.now + ahead)
        metrics = {} if loss is None else {"loss": float(loss)}
        refused = self.refusal(step)
        if refused:
            self.fails(step, metrics, wait, refused)
            return
        assert self.run.save(step, metrics, wait=wait).error is None
        saved = Kept(self.value, metrics.get("loss"))
        self.kept_one = True
        self.own.add(step)
        self.fill(float(after))  # what comes after the save is not in it
        for gone in self.given_up:
            self.kept.pop(gone, None)
        self.given_up = set()
        self.kept[step] = saved
        self.passed_over.discard(step)
        self.now = step
        self.prune()

    def refusal(self, step: int) -> str:
        """What a save of this step is refused with."""
        counts = {s: k for s, k in self.kept.items() if s not in self.passed_over | self.given_up}
        later = {s for s, kept in counts.items() if s > step and kept.readable}
        if later - self.own:  # those of threads of one training may overtake one another
            return "later-steps-there"
        return "already-exists" if step in counts else ""

    def fails(self, step: int, metrics: dict[str, float], wait: bool, expected: str) -> None:
        """It is raised, or in the handle; and nothing has changed, which the invariants look at."""
        self.run.flush()
        passing = expected == "disk-full"
        error: Any
        if self.on_error == "warn" and (passing or self.kept_one):
            failed = self.run.save(step, metrics, wait=wait)
            self.run.flush()
            error = failed.error
        else:
            with pytest.raises(holdtrue.SaveError) as caught:
                self.run.save(step, metrics, wait=wait)
                self.run.flush()
            error = caught.value
        assert isinstance(error, holdtrue.SaveError)
        assert {f.code for f in error.report.errors} == {expected}
        assert all(f.what and f.where and f.why and f.fix for f in error.report.errors)

    @rule(wait=st.booleans())
    def save_what_cannot_be_stored(self, wait: bool) -> None:
        self.note.append(lambda: None)
        self.fails(max([self.now, *self.kept]) + 1, {"loss": -1.0}, wait, "value-unsupported")
        self.note.clear()

    # Those that are given up are put aside before anything is written, whatever comes of the save.
    @precondition(lambda self: not self.given_up)
    @rule(wait=st.booleans())
    def save_on_a_full_disk(self, wait: bool) -> None:
        def full(fd: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        self.run.flush()
        with mock.patch.object(os, "fsync", full):
            self.fails(max([self.now, *self.kept]) + 1, {"loss": -1.0}, wait, "disk-full")

    def prune(self) -> None:
        readable = {s: k for s, k in self.kept.items() if s not in self.passed_over and k.readable}
        stays = set(sorted(readable)[-LAST:]) | {s for s in readable if s % EVERY == 0}
        ranked = [(k.loss, -s) for s, k in readable.items() if k.loss is not None]
        stays |= {-s for _, s in sorted(ranked)[:BEST]}
        self.kept = {s: k for s, k in self.kept.items() if s in stays or s not in readable}

    def choose(self, order: list[int]) -> int | None:
        """The first that is whole; those before it are passed over."""
        self.passed_over = set()
        for step in order:
            if self.kept[step].whole:
                return step
            self.passed_over.add(step)
        return None

    def resumed(self, order: list[int], at: Any) -> None:
        known = set(self.passed_over)
        found = self.choose([s for s in order if at != "best" or s not in known])
        if found is None:
            with pytest.raises(holdtrue.DamageError):
                self.run.resume(at=at)
            return
        assert self.run.resume(at=at) == found
        value = self.kept[found].value
        assert all(bool((p == value).all()) for p in self.module.parameters())
        self.value, self.now = value, found
        self.given_up = {s for s in self.kept if s > found} - self.passed_over

    @rule()
    def resume_latest(self) -> None:
        self.run.flush()
        if not self.kept:
            assert self.run.resume() == 0
            self.passed_over, self.given_up = set(), set()
            return
        self.resumed(sorted(self.kept, reverse=True), "latest")

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def resume_at(self, data: st.DataObject) -> None:
        step = data.draw(st.sampled_from(sorted(self.kept)))
        self.run.flush()
        self.resumed([step], step)

    @precondition(lambda self: self.kept)
    @rule()
    def resume_best(self) -> None:
        self.run.flush()
        ranked = sorted(
            (k.loss, -s) for s, k in self.kept.items() if k.loss is not None and k.readable
        )
        order = [-s for _, s in ranked]
        if all(step in self.passed_over for step in order):
            with pytest.raises(holdtrue.OpenError):
                self.run.resume(at="best")
            return
        self.resumed(order, "best")

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def delete_by_hand(self, data: st.DataObject) -> None:
        step = data.draw(st.sampled_from(sorted(self.kept)))
        self.run.flush()
        shutil.rmtree(self.path(step))
        del self.kept[step]
        self.passed_over.discard(step)
        self.given_up.discard(step)

    @precondition(lambda self: any(k.whole for k in self.kept.values()))
    @rule(data=st.data(), at=st.integers(1, 20))
    def damage(self, data: st.DataObject, at: int) -> None:
        """One bit of the tensors, in a copy: the file may be linked into other checkpoints."""
        whole = sorted(s for s, k in self.kept.items() if k.whole)
        step = data.draw(st.sampled_from(whole))
        self.run.flush()
        file = self.path(step) / "model.safetensors"
        raw = bytearray(file.read_bytes())
        raw[-at] ^= 1
        file.unlink()
        file.write_bytes(raw)
        self.kept[step].whole = False

    @precondition(lambda self: sum(k.whole for k in self.kept.values()) > 1)
    @rule(data=st.data())
    def exchange_two(self, data: st.DataObject) -> None:
        """By another process, while none has the run: each is whole, under the other's name."""
        whole = sorted(s for s, k in self.kept.items() if k.whole)
        one, other = data.draw(
            st.lists(st.sampled_from(whole), min_size=2, max_size=2, unique=True)
        )
        self.run.close()
        aside = self.place / "aside"
        self.path(one).rename(aside)
        self.path(other).rename(self.path(one))
        aside.rename(self.path(other))
        for step in (one, other):
            self.kept[step].whole = self.kept[step].readable = False
            assert {f.code for f in holdtrue.verify(self.path(step)).errors} == {"step-differs"}
        self.open()

    @rule()
    def reopen(self) -> None:
        self.run.close()
        self.open()

    @precondition(lambda self: self.kept)
    @rule(last=st.integers(1, 3))
    def prune_by_command(self, last: int) -> None:
        """It knows of no damage, but looks for the newest checkpoint that is whole."""
        self.run.close()
        prune.main([str(self.run.path), "--keep", f"last={last}", "--json"], standalone_mode=False)
        whole = [step for step, kept in self.kept.items() if kept.whole]
        if whole:
            readable = sorted(step for step, kept in self.kept.items() if kept.readable)
            going = {*readable[:-last]} - {max(whole)}
            self.kept = {step: kept for step, kept in self.kept.items() if step not in going}
        self.open()

    @rule()
    def killed_save_left_something(self) -> None:
        """As a process that is gone leaves it, half written."""
        self.run.close()
        host = "".join(c if c.isalnum() else "_" for c in socket.gethostname())[:40]
        pid = os.fork()
        if not pid:
            os._exit(0)
        os.waitpid(pid, 0)
        left = self.place / "run" / ".staging" / f"{step_name(self.now + 1)}.{host}-{pid}.0a1b2c3d"
        left.mkdir(parents=True)
        (left / "model.safetensors").write_bytes(b"half")
        self.open()
        assert not left.exists()

    @invariant()
    def the_same_steps(self) -> None:
        if hasattr(self, "run"):
            assert self.run.steps() == sorted(self.kept)

    @invariant()
    def each_is_what_was_saved(self) -> None:
        if hasattr(self, "run"):
            self.run.flush()
        for step, kept in getattr(self, "kept", {}).items():
            assert holdtrue.verify(self.path(step)).ok == kept.whole
            if kept.whole:
                tensors = holdtrue.open(self.path(step))["model"]
                assert all(bool((t == kept.value).all()) for t in tensors.values())

    @invariant()
    def latest_and_best(self) -> None:
        if not hasattr(self, "run"):
            return
        newest = max(self.kept, default=None)
        if newest is not None and not self.kept[newest].readable:
            with pytest.raises(holdtrue.DamageError):
                self.run.latest()
        else:
            latest = self.run.latest()
            assert (latest.step if latest else None) == newest
        best = self.run.best()
        ranked = [
            (k.loss, -s)
            for s, k in self.kept.items()
            if k.loss is not None and k.readable and s not in self.passed_over
        ]
        assert (best.step if best else None) == (-min(ranked)[1] if ranked else None)

    def teardown(self) -> None:
        if hasattr(self, "level"):
            _log.setLevel(self.level)
        if hasattr(self, "run"):
            self.run.close()
            shutil.rmtree(self.place)


@pytest.mark.parametrize("examples", [15, pytest.param(300, marks=pytest.mark.slow)])
def test_a_run_does_what_its_model_does(examples: int, figure: Any) -> None:
    """The few are the same each time; of the many, a failure prints how to have it again."""
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        RunMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=examples < 100,
            database=None,
            print_blob=True,
        ),
    )
    figure("histories of a run, of up to 20 acts, compared with a model", examples)
