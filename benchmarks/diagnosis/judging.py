"""Asks the doctor about a case, and judges the answer: code, place, fix."""

import re
import tempfile
import traceback
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

import holdtrue
from benchmarks.diagnosis.broken import Broken, Case, Tell
from benchmarks.diagnosis.mending import copied, works
from holdtrue.findings import Finding, Report


@dataclass
class Verdict:
    """What came of one case. `why` says what is missing where something is."""

    name: str
    family: str
    found: bool = False
    placed: bool = False
    mended: bool = False
    skipped: str = ""
    wanted: str = ""
    told: list[str] = field(default_factory=list)
    why: list[str] = field(default_factory=list)
    peers: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def right(self) -> bool:
        return self.found and self.placed and self.mended

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def judge(case: Case, seed: int, peers: Any = None) -> Verdict:
    """One case, start to end. Whatever goes wrong is in the verdict; nothing is raised."""
    verdict = Verdict(case.name, case.family)
    with tempfile.TemporaryDirectory(prefix="holdtrue-case-") as folder, quiet():
        try:
            broken = case.build(Path(folder), seed)
        except ModuleNotFoundError as error:
            verdict.skipped = f"{error.name} is not installed"
            return verdict
        verdict.wanted = " or ".join(sorted(broken.codes))
        try:
            judged(broken, verdict)
        except Exception:
            verdict.why.append(traceback.format_exc(limit=-3))
        if peers is not None:
            verdict.peers = peers.asked(broken)
    return verdict


def judged(broken: Broken, verdict: Verdict) -> None:
    before = _fingerprint(broken)
    report = diagnosed(broken)
    verdict.told = [f"{f.severity}[{f.code}] {f.where}: {f.what}" for f in report.findings]
    if _fingerprint(broken) != before:
        verdict.why.append("diagnose changed a target")
        return
    named = [f for f in report.findings if f.code in broken.codes]
    verdict.found = bool(named)
    if not named:
        verdict.why.append(f"no {verdict.wanted}")
        return
    places = [p for f in named for p in (f.where, *f.places)]
    verdict.placed = any(want in place for want in broken.places for place in places)
    if not verdict.placed:
        verdict.why.append(f"{broken.place!r} is not in {places[:4]}")
    verdict.mended = _mended(broken, named, report, verdict.why)


def diagnosed(broken: Broken) -> Report:
    """The report; that of the error where the path itself is refused."""
    try:
        return holdtrue.diagnose(broken.path, deep=broken.deep, **broken.targets)
    except holdtrue.HoldtrueError as error:
        return error.report


def _mended(broken: Broken, named: list[Finding], report: Report, why: list[str]) -> bool:
    if isinstance(broken.mend, Tell):
        words = " ".join(
            f"{f.what} {f.saved} {f.expected} {f.why} {f.fix} {f.command}" for f in named
        )
        if re.search(broken.mend.pattern, words, re.IGNORECASE):
            return True
        why.append(f"the words do not say {broken.mend.pattern!r}: {words[:400]}")
        return False
    # The finding's own command first; then the call that the report says makes it fit.
    commands = [f.command for f in named if f.command]
    commands += [f.command for f in report.findings if f.code == "restore-call"]
    for command in dict.fromkeys(commands):
        problem = works(command, broken, copied(broken.targets))
        if not problem:
            return True
        why.append(f"`{command}`: {problem}")
    if not commands:
        why.append("no command is printed")
    return False


def _fingerprint(broken: Broken) -> Any:
    """Enough of the targets' state to see that looking changed nothing."""
    found = []
    for name, target in broken.targets.items():
        kept = target.state_dict() if hasattr(target, "state_dict") else None
        for key, value in kept.items() if isinstance(kept, dict) else ():
            if isinstance(value, torch.Tensor) and value.device.type != "meta":
                value = (value.shape, value.double().sum().item() if value.numel() else 0)
            found.append((name, key, repr(value)[:200]))
    return found


class quiet(warnings.catch_warnings):  # noqa: N801
    """No warnings of the tools that build cases."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore")
