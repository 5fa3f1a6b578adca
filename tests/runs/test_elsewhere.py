"""Resumed elsewhere: what can differ is said, each as the record of another machine has it."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from msgspec.structs import replace

from holdtrue import Run
from holdtrue.formats.checkpoint_directory import read_manifest
from holdtrue.records.manifest import Manifest, encode_manifest


def parts() -> dict[str, Any]:
    model = torch.nn.Linear(2, 2)
    return {"model": model, "optimizer": torch.optim.SGD(model.parameters(), 0.1)}


def on_gpu(manifest: Manifest) -> Manifest:
    tensors = {k: replace(t, device="cuda:0") for k, t in manifest.tensors.items()}
    return replace(manifest, tensors=tensors)


def by(**changed: Any) -> Any:
    def change(manifest: Manifest) -> Manifest:
        return replace(manifest, environment=replace(manifest.environment, **changed))

    return change


def flags(**changed: Any) -> Any:
    def change(manifest: Manifest) -> Manifest:
        found = {**manifest.environment.flags, **changed}
        return replace(manifest, environment=replace(manifest.environment, flags=found))

    return change


CASES = {
    "torch: saved 2.1.0": by(torch="2.1.0"),
    "device: saved NVIDIA H100": by(accelerators=("NVIDIA H100",)),
    "model: saved on cuda, here on cpu": on_gpu,
    "threads": by(threads=77),
    "use_deterministic_algorithms: saved True": flags(deterministic=True),
    "cudnn.benchmark: saved True": flags(cudnn_benchmark=True),
    "TF32": flags(matmul_precision="medium"),
}


@pytest.mark.parametrize("what", CASES)
def test_what_can_differ_is_said(what: str, tmp_path: Path) -> None:
    Run(tmp_path, **parts()).save(1, wait=True)
    place = tmp_path / "step-000000001"
    changed = CASES[what](msgspec.convert(read_manifest(place), Manifest))
    (place / "manifest.json").write_bytes(encode_manifest(changed))
    run = Run(tmp_path, **parts())
    assert run.resume() == 1
    assert run.report is not None
    (found,) = [f for f in run.report.findings if f.code == "environment-changed"]
    assert found.severity == "warning"
    assert any(what in place for place in (found.where, *found.places))


def test_the_same_place_needs_no_word(tmp_path: Path) -> None:
    Run(tmp_path, **parts()).save(1, wait=True)
    run = Run(tmp_path, **parts())
    run.resume()
    assert run.report is not None
    assert run.report.findings == ()
