"""The Trainer that is not told where it is, and a damaged newest checkpoint."""

import dataclasses
import subprocess
import sys

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments  # noqa: E402

import holdtrue  # noqa: E402
from holdtrue.integrations.transformers import HoldtrueCallback  # noqa: E402


def made(place, epochs=2, **settings):
    tokens = torch.arange(64).reshape(16, 4) % 10
    size = GPT2Config(vocab_size=10, n_positions=4, n_embd=8, n_layer=1, n_head=2)
    size.bos_token_id = size.eos_token_id = None
    callback = HoldtrueCallback(place / "run", every=1, **settings)
    arguments = TrainingArguments(
        output_dir=str(place / "trainer"), num_train_epochs=epochs, per_device_train_batch_size=4,
        save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    data = [{"input_ids": row, "labels": row} for row in tokens]
    return Trainer(
        GPT2LMHeadModel(size), arguments, train_dataset=data, callbacks=[callback]
    ), callback


def test_a_trainer_that_begins_again_over_a_run_is_stopped(tmp_path):
    trainer, callback = made(tmp_path)
    assert callback.resume_point() is None
    trainer.train(resume_from_checkpoint=callback.resume_point())
    assert callback.run.steps() == list(range(1, 9))
    trainer, callback = made(tmp_path)
    with pytest.raises(holdtrue.RestoreError) as caught:
        trainer.train()
    (finding,) = caught.value.report.findings
    assert finding.code == "run-not-resumed"
    assert "callback.resume_point()" in finding.command


def test_a_damaged_checkpoint_is_passed_over_by_both(tmp_path):
    trainer, callback = made(tmp_path)
    trainer.train()
    weights = tmp_path / "run" / "step-000000008" / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    trainer, callback = made(tmp_path, epochs=3)
    result = trainer.train(resume_from_checkpoint=callback.resume_point())
    assert result.global_step == 12
    assert any(f.code == "checkpoint-passed-over" for f in callback.run.report.findings)
    assert holdtrue.open(tmp_path / "run").step == 12
    assert holdtrue.open(tmp_path / "run")["trainer"].keys() == {
        field.name for field in dataclasses.fields(trainer.state)
    }


@pytest.mark.parametrize("name", ["lightning", "transformers", "ignite"])
def test_a_framework_that_is_absent_is_named(name):
    program = f"""
import sys
sys.modules["{name}"] = None
import holdtrue
try:
    import holdtrue.integrations.{name}
except holdtrue.HoldtrueError as error:
    (finding,) = error.report.findings
    assert finding.code == "package-missing"
    assert finding.command == "pip install 'holdtrue[{name}]'"
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", program], check=True)
