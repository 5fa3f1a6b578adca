"""Healthy checkpoints of every format: nothing above a note may be said of them.

Each is asked for alone and deep; those that come with a model (and an optimizer) with these too.
"""

import inspect
import random
import tempfile
import traceback
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import holdtrue
from benchmarks.diagnosis import healthy_files
from benchmarks.diagnosis.broken import At
from benchmarks.diagnosis.healthy_files import Healthy
from benchmarks.diagnosis.judging import quiet


@dataclass(frozen=True)
class Sample:
    name: str
    builder: Callable[..., Healthy]
    variant: tuple[Any, ...]

    def alarms(self, seed: int) -> list[str]:
        """What is said above a note; empty as it should be. A missing package raises."""
        chance = seed ^ zlib.crc32(self.name.encode())
        torch.manual_seed(chance)
        with tempfile.TemporaryDirectory(prefix="holdtrue-well-") as folder, quiet():
            well = self.builder(At(Path(folder), random.Random(chance)), *self.variant)
            try:
                asked: list[dict[str, Any]] = [{}, {"deep": True}]
                if well.targets:
                    asked.append({**well.targets, "deep": True})
                return [alarm for more in asked for alarm in _above_a_note(well.path, more)]
            except Exception:
                return [traceback.format_exc(limit=-2)]


def _above_a_note(path: Path, more: Mapping[str, Any]) -> Iterator[str]:
    asked = ", ".join(more) or "alone"
    try:
        found = holdtrue.diagnose(path, **more).findings
    except holdtrue.HoldtrueError as error:
        found = error.report.findings
    for finding in found:
        if finding.severity != "note":
            yield f"{asked}: {finding.severity}[{finding.code}] {finding.where}: {finding.what}"


def all_samples() -> list[Sample]:
    """Every public function of healthy_files.py that takes `at` is a sample, or several."""
    found = []
    for name, builder in vars(healthy_files).items():
        if not inspect.isfunction(builder) or builder.__module__ != healthy_files.__name__:
            continue
        if name.startswith("_") or next(iter(inspect.signature(builder).parameters), "") != "at":
            continue
        for variant in builder.__dict__.get("variants", [()]):
            label = ",".join(getattr(v, "__name__", None) or str(v) for v in variant)
            found.append(Sample(f"{name}[{label}]" if variant else name, builder, variant))
    return found
