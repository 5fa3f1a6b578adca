"""prove_resume: is everything that the training depends on in a checkpoint?

Steps are run on, and run again from a checkpoint. What differs is put down to a state by
experiment: all outside the parts is put back as it was at the save, but for one state at a time.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import msgspec
import torch

from holdtrue.capture.rng import sources
from holdtrue.checkpoint import open as open_checkpoint
from holdtrue.errors import RestoreError
from holdtrue.findings import Confidence, Finding, Report, report
from holdtrue.runs.determinism import SOURCES
from holdtrue.runs.fresh_process import (
    ALLOWED,
    IN_PROGRESS,
    Job,
    NotPossibleError,
    find_code,
    run_fresh,
)
from holdtrue.runs.held_state import ENVIRONMENT, Told, same, shown
from holdtrue.runs.outside import GRADIENTS, Outside, Unit, look_outside
from holdtrue.runs.proof_findings import as_part, differs, not_captured, not_deterministic
from holdtrue.runs.run import Run
from holdtrue.runs.traces import Deviation, deviation, record, step_caller
from holdtrue.saving import save

_MOST_SUSPECTS = 32  # states that are tried one by one
_CURED = "With this put back as it was at the save, the steps are equal"
_ALONE = "With all else put back and this not, the steps differ; with this too, they are equal"
Wanted = Callable[[Unit], bool]


def prove_resume(
    run: Run,
    train_step: Callable[..., Any],
    steps: int = 3,
    *,
    factory: str | Callable[[], Any] | None = None,
    after_resume: Callable[[], Any] | None = None,
) -> Report:
    """Whether a resumed training is the same, bit for bit, as one that was never stopped.

    Trains `steps` steps, saves, trains `steps` more; restores and trains those again: in this
    process, and in a fresh one where the code allows it. Compares after each step what `train_step`
    returned, every part and the random states. The report names the first difference, and the
    state that no part has. Everything is then put back; `run.save` does nothing meanwhile.

    `train_step` takes the step's number, or nothing. `factory`, "module:function" or a function,
    returns (parts, train_step) for the fresh process, or (parts, train_step, after_resume).
    `after_resume` is called after each restore: it does what a script does between `run.resume()`
    and its first step.
    """
    if os.environ.get(IN_PROGRESS):
        raise RuntimeError("prove_resume is called when its module is imported: guard it with main")
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"prove_resume(steps={steps!r}): give a whole number from 1")
    call = step_caller(train_step)
    done = max(run.steps(), default=0)
    scratch = Path(tempfile.mkdtemp(prefix="holdtrue-proof-"))
    with run.rest():
        proof = None
        try:
            proof = _Proof(
                run.path, run.parts, train_step, call, done, steps, scratch, after_resume
            )
            findings, left = proof.carry_out(factory)
        finally:
            if proof is not None:
                proof.put_back()
            shutil.rmtree(scratch, ignore_errors=True)
    return report(str(run.path), findings, [*left, *proof.not_put_back()])


class _Proof:
    def __init__(
        self,
        path: Path,
        parts: Mapping[str, Any],
        train_step: Callable[..., Any],
        call: Callable[[int], Any],
        done: int,
        steps: int,
        scratch: Path,
        after_resume: Callable[[], Any] | None,
    ) -> None:
        self.path = path
        self.parts, self.train_step, self.call = parts, train_step, call
        self.scratch, self.after_resume = scratch, after_resume
        self.warm_up = range(done, done + steps)
        self.numbers = range(done + steps, done + 2 * steps)
        self.saved, self.reference = scratch / "saved", scratch / "reference"
        save(scratch / "before", **parts)
        self.at_start = look_outside(train_step, parts)
        self.at_save: Outside = self.at_start
        self._stuck: list[Unit] = []
        self._drawn: list[str] = []  # global random states that `after_resume` drew from

    def carry_out(self, factory: Any) -> tuple[list[Finding], list[str]]:
        for number in self.warm_up:
            self.call(number)
        save(self.saved, **self.parts)
        self.at_save = look_outside(self.train_step, self.parts)
        record(self.reference, self.parts, self.call, self.numbers)
        left = [] if self.at_save.complete else ["state beyond the first 20,000 objects in reach"]
        try:
            findings = self._in_this_process()
        except RestoreError as error:
            return list(error.report.findings), [*left, "the steps: a restore is refused"]
        if findings:
            return findings, [*left, "a fresh process: the steps differ in this one already"]
        found, more = self._in_a_fresh_process(factory)
        return found, [*left, *more]

    def _in_this_process(self) -> list[Finding]:
        as_left, as_begun = self._again(anew=False), self._again(anew=True)
        if as_left is None and as_begun is None:
            return []
        control = self._again(anew=False, put_back=_everything)
        if control is not None:
            return self._unexplained(control)
        findings: dict[str, Finding] = {}
        for found, anew in ((as_left, False), (as_begun, True)):
            if found is not None:
                self._name_states(found, anew, findings)
        return list(findings.values())

    def _name_states(self, found: Deviation, anew: bool, findings: dict[str, Finding]) -> None:
        """Which of the states, left as a resume leaves it, makes the steps differ.

        First whether one alone is the cause. Else each is left out in turn.
        """
        groups = _by_group(self._restore(anew, _nothing))
        tried = list(groups)[:_MOST_SUSPECTS]
        for group in tried:
            if self._again(anew, _only(group)) is None:
                findings.setdefault(group, self._named(groups[group], found, _CURED))
                return
        blamed = False
        for group in tried:
            alone = self._again(anew, _all_but(group))
            if alone is not None:
                findings.setdefault(group, self._named(groups[group], alone, _ALONE))
                blamed = True
        if not blamed:
            names = ", ".join(list(groups)[:5]) or "nothing in reach"
            finding = differs(found, f"changed since the save: {names}", _KEEP)
            findings[finding.where] = finding

    def _named(self, units: list[Unit], found: Deviation, proof: str) -> Finding:
        finding = not_captured(units, found, proof)
        given = as_part(units, tuple(self.parts))
        line = f"run = holdtrue.Run({str(self.path)!r}, {given})" if given else ""
        return msgspec.structs.replace(finding, command=line)

    def _unexplained(self, control: Deviation) -> list[Finding]:
        """Putting all back does not help: it is out of reach, or no state at all."""
        moved = _by_group(self._restore(False, _everything))
        stuck = [moved[group] for group in dict.fromkeys(unit.group for unit in self._stuck)]
        likely = [not_captured(units, control, _STUCK, "likely") for units in stuck]
        if self._repeats(nullcontext):
            if self._drawn:
                why = f"after_resume draws from the random state of {', '.join(self._drawn)}"
                return [differs(control, f"{why}, which the restore had put back", _DRAWN)]
            why = "all state in reach was put back, and it still went another way, always the same"
            return likely or [differs(control, why, _KEEP)]
        scope = getattr(getattr(self.train_step, "__func__", self.train_step), "__globals__", {})
        for source, (still, fix) in SOURCES.items():
            held = self._repeats(lambda still=still: still(scope))  # type: ignore[misc]
            # Steps that go another way a few times and then settle, whatever is held still, would
            # put it down to whichever source was tried just then.
            if held and not self._repeats(nullcontext):
                return [not_deterministic(control, source, fix)]
        return likely or [not_deterministic(control, "", _OUT_OF_REACH)]

    def _in_a_fresh_process(self, factory: Any) -> tuple[list[Finding], list[str]]:
        try:
            job = Job(
                **find_code(self.train_step, self.parts, factory, self.after_resume),
                saved=str(self.saved),
                folder=str(self.scratch / "fresh"),
                first=self.numbers.start,
                last=self.numbers.stop,
                arguments=tuple(sys.argv),
            )
            outcome = run_fresh(job, self.scratch)
        except NotPossibleError as error:
            return [], [f"a fresh process: {error}"]
        if outcome.refused is not None:
            return list(outcome.refused.findings), ["the steps in a fresh process"]
        found = deviation(self.reference, Path(job.folder), self.numbers)
        if found is None:
            return [], []
        there = outcome.outside
        self.at_save.put_back()
        units = [
            msgspec.structs.replace(unit, now=Told(there[unit.path]))
            for unit in self._units_at_save()
            if unit.path in there and there[unit.path] != shown(unit.then)
        ]
        if units:  # which of several it is has not been tried
            sure: Confidence = "likely" if len(_by_group(units)) == 1 else "hint"
            return [not_captured(units, found, _ELSEWHERE, sure)], []
        why = "in this process the steps repeat, in a fresh one they do not"
        return [differs(found, why, _ORDER)], []

    def _units_at_save(self) -> list[Unit]:
        """All single states; not the gradients, which a restore in this process does without too,
        nor what a process inherits, nor objects that are parts."""
        whole = {
            f"run.parts['{name}']"
            for name, part in self.parts.items()
            if not isinstance(part, torch.nn.Module)
        }
        return [
            Unit(held, key, value, value)
            for held, taken in self.at_save.states
            for key, value in taken.items()
            if held.group not in {GRADIENTS, *whole} and held.path != ENVIRONMENT
        ]

    # -- experiments ----------------------------------------------------------------------------

    def _again(self, anew: bool, put_back: Wanted | None = None) -> Deviation | None:
        """The same steps from the checkpoint; how they differ from the first time."""
        self._restore(anew, put_back or _nothing)
        record(self.scratch / "again", self.parts, self.call, self.numbers)
        return deviation(self.reference, self.scratch / "again", self.numbers)

    def _repeats(self, still: Callable[[], AbstractContextManager[None]]) -> bool:
        """Whether the steps, run twice from one state, are the same twice."""
        for name in ("once", "twice"):
            self._restore(False, _everything)
            with still():
                record(self.scratch / name, self.parts, self.call, self.numbers)
        return deviation(self.scratch / "once", self.scratch / "twice", self.numbers) is None

    def _restore(self, anew: bool, put_back: Wanted) -> list[Unit]:
        """The parts from the checkpoint, and of the rest what is wanted as it was at the save.

        `anew`: the rest begins as it was before the first step, as in a new process. Returns what
        of the rest a restore leaves changed.
        """
        if anew:
            self.at_start.put_back()
        open_checkpoint(self.saved).restore(rng=True, allow=ALLOWED, **self.parts)
        for part in self.parts.values():
            if isinstance(part, torch.nn.Module):
                part.zero_grad(set_to_none=True)  # a new process has no gradients
        if self.after_resume is not None:
            before = {name: source.get() for name, source in sources().items()}
            self.after_resume()
            now = {name: source.get() for name, source in sources().items()}
            self._drawn = sorted(name for name in now if not same(before.get(name), now[name]))
        changed = self.at_save.changed()
        self._stuck = self.at_save.put_back(put_back)
        return changed

    def put_back(self) -> None:
        """Everything as it was before."""
        before = open_checkpoint(self.scratch / "before")
        before.restore(rng=True, allow=ALLOWED, **self.parts)
        self._stuck = self.at_start.put_back()

    def not_put_back(self) -> list[str]:
        """What has moved on for good, in words."""
        return [f"{unit.path} could not be put back as it was" for unit in self._stuck[:5]]


def _everything(unit: Unit) -> bool:
    return True


def _nothing(unit: Unit) -> bool:
    return False


def _only(group: str) -> Wanted:
    return lambda unit: unit.group == group


def _all_but(group: str) -> Wanted:
    return lambda unit: unit.group != group


def _by_group(units: list[Unit]) -> dict[str, list[Unit]]:
    groups: dict[str, list[Unit]] = {}
    for unit in units:
        groups.setdefault(unit.group, []).append(unit)
    return groups


_KEEP = "keep what the training changes in a part of the run"
_OUT_OF_REACH = (
    "where the step counts in a file, a database or another process, take the step's number for "
    "it, or keep the count in a part of the run; else make the step repeatable, and prove it again"
)
_DRAWN = (
    "give what draws there a generator of its own, e.g. DataLoader(…, generator=torch.Generator())"
)
_ORDER = (
    "look for what differs from process to process: the order of a set, hash(), the time, files; "
    "PYTHONHASHSEED=0 makes the order of sets the same"
)
_STUCK = "It moved while training, and nothing can put it back to try whether it is the cause"
_ELSEWHERE = "A fresh process has another value there after the restore"
