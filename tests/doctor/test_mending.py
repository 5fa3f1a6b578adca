"""The commands that are printed for damaged files and folders do what they say."""

import json
import shlex

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

import holdtrue
from holdtrue.cli import cli


def _found(report, code):
    (finding,) = [f for f in report.findings if f.code == code]
    return finding


def _run(command):
    program, *arguments = shlex.split(command)
    assert program == "holdtrue"
    result = CliRunner().invoke(cli, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return arguments[-1]


def _tensors(count=40):
    generator = torch.Generator().manual_seed(5)
    return {f"layer.{n}.weight": torch.randn(20, 30, generator=generator) for n in range(count)}


@pytest.mark.parametrize("count", [1, 100, 100_000])
def test_what_follows_a_zip_is_left_out(tmp_path, count):
    truth = _tensors()
    torch.save(truth, tmp_path / "m.pt")
    with (tmp_path / "m.pt").open("ab") as file:
        file.write(b"\x07" * count)
    finding = _found(holdtrue.diagnose(tmp_path / "m.pt"), "trailing-bytes")
    mended = torch.load(_run(finding.command))
    assert mended.keys() == truth.keys()
    assert all(torch.equal(mended[name], truth[name]) for name in truth)


@pytest.mark.parametrize("lost", [64, 4096, 8192, 16384, 40_000])
def test_a_zip_with_a_lost_head_keeps_what_is_whole(tmp_path, lost):
    truth = _tensors()
    torch.save(truth, tmp_path / "m.pt")
    data = bytearray((tmp_path / "m.pt").read_bytes())
    data[:lost] = bytes(lost)
    (tmp_path / "m.pt").write_bytes(data)
    finding = _found(holdtrue.diagnose(tmp_path / "m.pt"), "file-zeroed")
    left = holdtrue.open(_run(finding.command)).tensors
    whole = {bytes(tensor.numpy().tobytes()) for tensor in left.values()}
    written = {tensor.numpy().tobytes() for tensor in truth.values()}
    assert len(whole & written) >= len(truth) - (lost // 2400 + 2)


def test_zeros_before_anything_else_are_told(tmp_path):
    (tmp_path / "m.bin").write_bytes(bytes(200) + b"numbers" * 400)
    with pytest.raises(holdtrue.OpenError) as caught:
        holdtrue.open(tmp_path / "m.bin")
    assert [f.code for f in caught.value.report.findings] == ["file-zeroed"]
    assert "first 200 bytes" in caught.value.report.findings[0].why


@pytest.fixture
def trainer(tmp_path):
    """A folder as transformers' Trainer writes it, and the model whose weights are in it."""
    place = tmp_path / "checkpoint-500"
    place.mkdir()
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Linear(6, 3))
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer)
    save_file(model.state_dict(), place / "model.safetensors")
    torch.save(optimizer.state_dict(), place / "optimizer.pt")
    torch.save(scheduler.state_dict(), place / "scheduler.pt")
    (place / "trainer_state.json").write_text(json.dumps({"global_step": 500, "epoch": 1.0}))
    return place, model


def test_a_trainers_folder_without_weights(trainer):
    place, model = trainer
    assert holdtrue.diagnose(place).ok
    (place / "model.safetensors").unlink()
    assert [f.code for f in holdtrue.diagnose(place).errors] == ["weights-absent"]
    # Beside a model, one finding says it, not two.
    assert [f.code for f in holdtrue.diagnose(place, model=model).errors] == ["part-missing"]


def test_weights_in_a_folder_below_are_weights(trainer):
    place, _ = trainer
    (place / "weights").mkdir()
    (place / "model.safetensors").rename(place / "weights" / "model.safetensors")
    assert holdtrue.diagnose(place).ok


def test_the_call_for_a_folder_can_be_executed(trainer):
    place, saved = trainer
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Linear(6, 5))
    finding = _found(holdtrue.diagnose(place, model=model), "shape-mismatch")
    exec(finding.command, {"holdtrue": holdtrue, "model": model})
    assert torch.equal(model[0].weight, saved[0].weight)


def test_a_series_says_that_no_model_was_compared(tmp_path):
    for number in range(2):
        torch.save({"w": torch.full((2,), float(number))}, tmp_path / f"e{number}.pt")
    report = holdtrue.diagnose(tmp_path, model=torch.nn.Linear(2, 2))
    assert any("fits model" in text for text in report.not_checked)


def test_one_cause_for_pieces_without_their_metadata(tmp_path):
    import torch.distributed.checkpoint as dcp

    dcp.save({"w": torch.ones(3), "b": torch.ones(500)}, checkpoint_id=tmp_path / "d", no_dist=True)
    (tmp_path / "d" / ".metadata").unlink()
    assert [f.code for f in holdtrue.diagnose(tmp_path / "d").errors] == ["save-unfinished"]


@pytest.mark.parametrize("prefix", ["", "module.", "encoder.net."])
@pytest.mark.parametrize("made", [False, True])
def test_values_beyond_the_models_dtype_are_found_by_fitted_names(tmp_path, prefix, made):
    state = torch.nn.Linear(3, 2).state_dict()
    state["weight"][0, 1] = 1e6
    torch.save({prefix + name: tensor for name, tensor in state.items()}, tmp_path / "m.pt")

    def half():
        return torch.nn.Linear(3, 2).half()

    report = holdtrue.diagnose(tmp_path / "m.pt", model=half if made else half(), deep=True)
    assert f"{prefix}weight" in _found(report, "values-out-of-range").where
