"""Folders: what only siblings show, and healthy ones of which nothing is said."""

import copy
import os

import pytest
import torch
from safetensors.torch import save_file

import holdtrue


def found(path, **more):
    return {finding.code: finding for finding in holdtrue.diagnose(path, **more).findings}


@pytest.fixture
def trained():
    """A model, and a function that trains it by one step."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.Linear(30, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def step():
        model(torch.randn(4, 20)).pow(2).sum().backward()
        optimizer.step()

    return model, step


@pytest.mark.parametrize("kept", [True, False])
def test_a_best_that_is_the_last(kept, trained, tmp_path):
    model, step = trained
    best = copy.deepcopy(model.state_dict()) if kept else model.state_dict()
    step()
    torch.save(best, tmp_path / "model_best.pth")
    torch.save(model.state_dict(), tmp_path / "last.pth")
    assert set(found(tmp_path)) == (set() if kept else {"best-equals-last"})


@pytest.mark.parametrize("said", [{"epoch": 5}, {"val_loss": 0.1, "classes": 3}])
def test_a_last_that_was_the_best(said, trained, tmp_path):
    model, _ = trained
    for name in ("best", "last"):
        torch.save({"model": model.state_dict(), **said}, tmp_path / f"{name}.pt")
    assert "best-equals-last" not in found(tmp_path)


def test_equal_settings_say_nothing_of_the_moment(trained, tmp_path):
    model, _ = trained
    for name in ("best", "last"):
        torch.save({"model": model.state_dict(), "classes": 3}, tmp_path / f"{name}.pt")
    assert "best-equals-last" in found(tmp_path)


def test_equal_safetensors_are_told_when_read_deep(trained, tmp_path):
    model, _ = trained
    for name in ("best", "last"):
        save_file(model.state_dict(), tmp_path / f"{name}.safetensors")
    assert not found(tmp_path)
    assert "best-equals-last" in found(tmp_path, deep=True)


def test_a_killed_save_among_its_siblings(trained, tmp_path):
    model, step = trained
    for epoch in range(4):
        step()
        torch.save({"state_dict": model.state_dict(), "epoch": epoch}, tmp_path / f"e{epoch}.ckpt")
    assert not found(tmp_path)
    os.truncate(tmp_path / "e2.ckpt", 3000)
    (tmp_path / "e4.ckpt.tmp").write_bytes(b"PK\3\4")
    codes = found(tmp_path)
    assert set(codes) == {"zip-no-directory", "half-written"}
    assert codes["zip-no-directory"].where.endswith("e2.ckpt")
    assert codes["zip-no-directory"].expected == "2.9 KiB"


def test_a_run_and_what_a_killed_save_left_in_it(trained, tmp_path):
    model, step = trained
    with holdtrue.Run(tmp_path / "run", model=model) as run:
        for number in range(3):
            step()
            run.save(number + 1, metrics={"loss": float(number)})
    assert not found(tmp_path / "run")
    assert not found(tmp_path / "run", deep=True)
    (tmp_path / "run/.staging/step-000000004.elsewhere-12.abcd").mkdir(parents=True)
    assert set(found(tmp_path / "run")) == {"half-written"}
    damaged = tmp_path / "run/step-000000002/model.safetensors"
    data = bytearray(damaged.read_bytes())
    data[-3] ^= 1
    damaged.unlink()
    damaged.write_bytes(data)
    assert "digest-mismatch" not in found(tmp_path / "run")
    assert "digest-mismatch" in found(tmp_path / "run", deep=True)


def test_a_folder_with_one_model_is_that_model(trained, tmp_path):
    model, _ = trained
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    torch.save({"step": 1}, tmp_path / "trainer_state.bin")
    report = holdtrue.diagnose(tmp_path)
    assert report.subject.endswith("model.safetensors")
    assert not report.findings


def test_a_transformers_folder_and_a_trainers(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        vocab_size=30,
    )  # fmt: skip
    model = transformers.BertModel(config)
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="3KB")
    for name in ("one", "many"):
        report = holdtrue.diagnose(tmp_path / name)
        assert all(f.severity == "note" for f in report.findings), str(report)
    (tmp_path / "many/model.safetensors.index.json").unlink()
    assert "index-missing" in found(tmp_path / "many")
    shard = sorted((tmp_path / "many").glob("*.safetensors"))[1]
    shard.unlink()
    assert shard.name in found(tmp_path / "many")["shard-missing"].fix


def test_an_empty_folder_and_none_are_as_before(tmp_path):
    assert set(found(tmp_path)) == {"directory-unknown"}
    with pytest.raises(holdtrue.OpenError):
        holdtrue.diagnose(tmp_path / "nothing")
