"""A trainer's folder is read as one checkpoint: weights in one file, training in others."""

import json
import random

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from trainings import OPTIMIZERS, SCHEDULERS, Net, Swapped, codes, loud, train

import holdtrue


@pytest.fixture
def folder(tmp_path):
    """As the Trainer of transformers lays it out."""
    model = Net()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    scheduler = SCHEDULERS["lambda"](optimizer)
    train(model, optimizer, scheduler)
    place = tmp_path / "checkpoint-8"
    place.mkdir()
    save_file(model.state_dict(), place / "model.safetensors", {"format": "pt"})
    torch.save(optimizer.state_dict(), place / "optimizer.pt")
    torch.save(scheduler.state_dict(), place / "scheduler.pt")
    torch.save(
        {
            "python": random.getstate(),
            "numpy": np.random.get_state(),
            "cpu": torch.random.get_rng_state(),
        },
        place / "rng_state.pth",
    )
    (place / "trainer_state.json").write_text(json.dumps({"global_step": 8, "epoch": 1.0}))
    (place / "config.json").write_text("{}")
    return place


def test_it_is_complete(folder):
    report = holdtrue.diagnose(folder)
    assert loud(report) == []
    (table,) = [f for f in report.findings if f.code == "resume-completeness"]
    assert "random states: NumPy, Python, torch" in table.places
    assert any(row.startswith("optimizer: optimizer.pt, AdamW, 8 param") for row in table.places)
    assert any("trainer_state.json/global_step 8" in row for row in table.places)


def test_beside_its_makers(folder):
    model = Net()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    report = holdtrue.diagnose(
        folder, optimizer=optimizer, scheduler=SCHEDULERS["lambda"](optimizer)
    )
    assert loud(report) == []


def test_layers_in_another_order(folder):
    model = Swapped()
    report = holdtrue.diagnose(
        folder, model=model, optimizer=OPTIMIZERS["adamw"](model.parameters())
    )
    assert "optimizer-order-changed" in codes(report)


def test_sharded_weights(folder):
    weights = folder / "model.safetensors"
    weights.rename(folder / "model-00001-of-00001.safetensors")
    names = dict.fromkeys(Net().state_dict(), "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": names})
    )
    report = holdtrue.diagnose(folder)
    (table,) = [f for f in report.findings if f.code == "resume-completeness"]
    assert "model: model, 11 tensors" in table.places


def test_a_folder_of_anything_else_is_a_folder_of_checkpoints(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    torch.save({"b": torch.ones(2)}, tmp_path / "b.pt")
    found = holdtrue.diagnose(tmp_path)
    assert "resume-completeness" not in codes(found)
    assert found.about == "folder of 2 checkpoints"
