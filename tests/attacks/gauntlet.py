"""Everything that a person may do with a file, done with one: a line for each step.

A step ends in a value or in a HoldtrueError with findings; whatever else is raised is kept as what
it is, a bug.
"""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from click.testing import CliRunner
from torch import nn

import holdtrue
from holdtrue.cli import cli

# The most careless caller: trusts every package that an attack has ever named.
TRUSTED = ("os", "posix", "builtins", "subprocess", "pathlib", "functools", "collections", "torch",
           "numpy", "holdtrue_bait", "attack_package", "__main__", "sys", "pickle")  # fmt: skip
_MOST = 100  # tensors that are read of one file


class Trial:
    """What came of one attack: codes by step, and what was raised that may not be."""

    def __init__(self) -> None:
        self.codes: dict[str, list[str]] = {}
        self.whys: dict[str, str] = {}
        self.bare: list[str] = []
        self.done: list[str] = []

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        try:
            yield
        except holdtrue.HoldtrueError as error:
            self._keep(name, error.report.findings)
            if not error.report.findings:
                self.bare.append(f"{name}: an error without a finding")
        except BaseException as error:
            where = "".join(traceback.format_tb(error.__traceback__)[-4:])
            self.bare.append(f"{name}: {type(error).__name__}: {str(error)[:300]}\n{where}")
        else:
            self.done.append(name)

    def report(self, name: str, report: Any) -> None:
        self._keep(name, report.findings)
        for finding in report.findings:
            if finding.code == "rule-failed":
                self.bare.append(f"{name}: {finding.where}: {finding.why}")

    def _keep(self, name: str, findings: Any) -> None:
        for finding in findings:
            self.codes.setdefault(name, []).append(finding.code)
            key = f"{name}/{finding.code}"
            self.whys[key] = self.whys.get(key, "") + finding.why + "\n"
            if "weights_only=False" in finding.fix:
                self.bare.append(f"{name}: {finding.code} advises weights_only=False")


def small() -> dict[str, Any]:
    """What the manifests of attacks describe, too."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(3, 2)).sum().backward()
    optimizer.step()
    return {"model": model, "optimizer": optimizer}


def _bytes(targets: dict[str, Any]) -> list[bytes]:
    moments = targets["optimizer"].state.values()
    tensors = [*targets["model"].state_dict().values()]
    tensors += [t for s in moments for t in s.values() if isinstance(t, torch.Tensor)]
    return [tensor.numpy().tobytes() for tensor in tensors]


def run(path: Path, out: Path, thorough: bool = True) -> Trial:
    """All steps, with what they write beneath `out`; or those alone that look into the file."""
    trial = Trial()
    opened: list[Any] = []
    with trial.step("open"):
        checkpoint = holdtrue.open(path)
        opened.append(checkpoint)
        trial.report("open", holdtrue.findings.report(str(path), checkpoint.view.findings))
        repr(checkpoint), checkpoint.parts, checkpoint.metrics, checkpoint.step, checkpoint.about
    for checkpoint in opened:
        _read(trial, checkpoint)
    with trial.step("verify"):
        trial.report("verify", holdtrue.verify(path))
    with trial.step("doctor"):
        trial.report("doctor", holdtrue.diagnose(path))
    if thorough:
        _more(trial, path, out)
    _restore(trial, path, thorough)
    for checkpoint in opened:
        for part in list(checkpoint.parts)[:5]:
            for trusted in (TRUSTED, ("attack_package",)):
                with trial.step("build"):
                    checkpoint.build(part, trust=trusted)
    return trial


def _more(trial: Trial, path: Path, out: Path) -> None:
    with trial.step("open trusting"):
        _read(trial, holdtrue.open(path, trust=TRUSTED))
    with trial.step("doctor deep"):
        trial.report("doctor deep", holdtrue.diagnose(path, deep=True, **small()))
    for command in ("inspect", "doctor"):
        with trial.step(command):
            _command(command, str(path))
    for name in ("weights.safetensors", "kept", "again.pt"):
        with trial.step(f"convert to {name}"):
            holdtrue.convert(path, out / name)
    with trial.step("diff"):
        holdtrue.diff(path, path)
    with trial.step("salvage"):
        holdtrue.salvage(path, out / "salvaged")


def as_run(path: Path, folder: Path) -> Trial:
    """What a training and its owner do to a run, done to a directory that is said to be one, then
    to one of which it is a step. Its own folder may be written."""
    trial = Trial()
    if path.is_dir():
        _train(trial, path)
        if path.parent == folder and path.exists():
            path.rename(folder / "step-000000007")
            _train(trial, folder)
    return trial


def _train(trial: Trial, place: Path) -> None:
    for command in ("log", "log --verify"):
        with trial.step("run log"):
            _command(*command.split(), str(place))
    runs: list[Any] = []
    with trial.step("run"):
        runs.append(holdtrue.Run(place, keep=holdtrue.Keep(last=2), verify="after", **small()))
        runs[0].steps(), runs[0].latest(), repr(runs[0])
    for run in runs:
        with trial.step("run best"):
            run.best("loss")
        with trial.step("run resume"):
            run.resume()
        for step in (1_000_000, 1_000_001, 1_000_002):
            with trial.step("run save"):
                run.save(step, {"loss": 1.0}, wait=True)
        with trial.step("run close"):
            run.close()
    for found in sorted(place.glob("step-*"))[:4]:
        with trial.step("run seal"):
            holdtrue.seal(found, overwrite=True)
    with trial.step("run prune"):
        _command("prune", str(place), "--keep", "last=1")
    live = small()
    with trial.step("run save beside"):
        holdtrue.save(place / "beside", overwrite=True, **live)
    with trial.step("run convert into"):
        holdtrue.convert(place / "beside", place / "again", overwrite=True)
    with trial.step("run salvage into"):
        holdtrue.salvage(place / "beside", place / "again.pt", overwrite=True)
    for found in sorted(place.glob("step-*"))[:4]:
        with trial.step("run overwrite"):
            holdtrue.save(found, overwrite=True, **live)
    with trial.step("run overwrite"):
        holdtrue.save(place, overwrite=True, **live)


def _read(trial: Trial, checkpoint: Any) -> None:
    for tensor in list(checkpoint.tensors.values())[:_MOST]:
        for take in (tensor.torch, tensor.numpy):
            with trial.step("read"):
                take()
    for part in list(checkpoint.parts)[:_MOST]:
        with trial.step("values"):
            checkpoint[part]


def _command(*arguments: str) -> None:
    done = CliRunner().invoke(cli, arguments, standalone_mode=False)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception


def _restore(trial: Trial, path: Path, thorough: bool) -> None:
    """All or nothing: where it is refused, the live objects are as they were."""
    ways: list[Callable[[Any, Any], Any]] = [
        lambda ck, live: ck.restore(
            trust=TRUSTED, **live, **({"note": [2]} if "note" in ck else {})
        ),
        lambda ck, live: ck.restore(**live),
        lambda ck, live: ck.restore(model=live["model"], trust=TRUSTED),
    ]
    for way in ways if thorough else ways[:1]:
        live = small()
        before = _bytes(live)
        with trial.step("restore"):
            refused = True
            try:
                way(holdtrue.open(path), live)
                refused = False
            finally:
                if refused and _bytes(live) != before:
                    trial.bare.append("restore: refused, and yet something was changed")
