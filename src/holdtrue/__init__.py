"""Keep, open and diagnose PyTorch training state: what you save is what you load, exactly."""

# As type checkers know it; `typing` itself takes longer to import than all that is here.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from holdtrue.capture.buildable import buildable
    from holdtrue.capture.probe import Probe
    from holdtrue.checkpoint import Checkpoint, open
    from holdtrue.cli.progress import ProgressBar
    from holdtrue.diagnosis.diagnose import diagnose
    from holdtrue.doctor.convert import Converted, convert
    from holdtrue.doctor.diff import Difference, diff
    from holdtrue.doctor.salvage import salvage
    from holdtrue.errors import DamageError, HoldtrueError, OpenError, RestoreError, SaveError
    from holdtrue.findings import Finding, Report
    from holdtrue.runs.keep import Keep
    from holdtrue.runs.loader import ResumableLoader
    from holdtrue.runs.proving import prove_resume
    from holdtrue.runs.run import Run
    from holdtrue.saving import Saved, save
    from holdtrue.sealing import seal
    from holdtrue.verification import verify

__all__ = [
    "Checkpoint",
    "Converted",
    "DamageError",
    "Difference",
    "Finding",
    "HoldtrueError",
    "Keep",
    "OpenError",
    "Probe",
    "ProgressBar",
    "Report",
    "RestoreError",
    "ResumableLoader",
    "Run",
    "SaveError",
    "Saved",
    "buildable",
    "convert",
    "diagnose",
    "diff",
    "open",
    "prove_resume",
    "salvage",
    "save",
    "seal",
    "verify",
]

_HOMES = {
    "Checkpoint": "checkpoint",
    "Probe": "capture.probe",
    "buildable": "capture.buildable",
    "open": "checkpoint",
    "verify": "verification",
    "diagnose": "diagnosis.diagnose",
    "Converted": "doctor.convert",
    "convert": "doctor.convert",
    "salvage": "doctor.salvage",
    "ProgressBar": "cli.progress",
    "Difference": "doctor.diff",
    "diff": "doctor.diff",
    "DamageError": "errors",
    "HoldtrueError": "errors",
    "OpenError": "errors",
    "RestoreError": "errors",
    "SaveError": "errors",
    "Finding": "findings",
    "Report": "findings",
    "Keep": "runs.keep",
    "ResumableLoader": "runs.loader",
    "prove_resume": "runs.proving",
    "Run": "runs.run",
    "Saved": "saving",
    "save": "saving",
    "seal": "sealing",
}


def __getattr__(name: str) -> "Any":
    # On demand, so that `import holdtrue` is instant and `holdtrue.open` works without torch.
    if name not in _HOMES:
        raise AttributeError(f"module 'holdtrue' has no attribute {name!r}")
    from importlib import import_module

    try:
        value = getattr(import_module(f"holdtrue.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        from holdtrue.errors import torch_missing

        raise torch_missing(f"holdtrue.{name}") from None
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
