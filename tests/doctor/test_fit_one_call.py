"""What is printed for a file and a model together: one call, told once, that works."""

import pytest
import torch
from fitting import codes, fill, run, same
from torch import nn

import holdtrue


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), nn.Dropout(), nn.Linear(5, 2))


def commands(report):
    return [(f.code, f.command) for f in report.findings if f.command]


def test_a_trainers_checkpoint_has_one_call(tmp_path):
    model = fill(net())
    state = {f"model._orig_mod.module.{n}": t for n, t in model.state_dict().items()}
    path = str(tmp_path / "a.ckpt")
    torch.save({"state_dict": state, "epoch": 3, "pytorch-lightning_version": "2.6"}, path)
    target = net()
    report = holdtrue.diagnose(path, model=target)
    assert [code for code, _ in commands(report)] == ["restore-call", "train-mode"]
    assert codes(report) >= {"nested-key", "prefix-removed"}
    assert "training-checkpoint" not in codes(report)
    run(commands(report)[0][1], target)
    assert same(target, model.state_dict())


def test_train_mode_is_right_beside_an_optimizer(tmp_path):
    model = fill(net())
    path = tmp_path / "a.pt"
    torch.save(model.state_dict(), path)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    assert "train-mode" in codes(holdtrue.diagnose(path, model=model))
    assert "train-mode" not in codes(holdtrue.diagnose(path, model=model, optimizer=optimizer))


def test_the_renaming_is_written_where_it_mends_most_and_where_it_was_tried(tmp_path):
    model, target = fill(nn.Sequential()), net()
    model.body = fill(nn.Linear(3, 5))
    model.left_over = fill(nn.Linear(9, 9))
    path = str(tmp_path / "a.pt")
    torch.save(model.state_dict(), path)
    report = holdtrue.diagnose(path, model=target)
    assert codes(report, "error") == {"names-differ", "missing-keys", "unexpected-keys"}
    said = [(code, command) for code, command in commands(report) if "rename=" in command]
    assert len(said) == 2
    assert said[1][0] == "restore-call"
    (call,) = {command for _, command in said}
    run(call, target)
    assert torch.equal(target[0].weight, model.body.weight)


def test_of_two_encoders_none_is_chosen_silently(tmp_path):
    one, two = fill(net()), fill(net(), 2)
    state = {f"encoder_q.{n}": t for n, t in one.state_dict().items()}
    state |= {f"encoder_k.{n}": t for n, t in two.state_dict().items()}
    path = str(tmp_path / "a.pt")
    torch.save({"state_dict": state, "epoch": 1}, path)
    report = holdtrue.diagnose(path, model=net())
    assert not codes(report) & {"restore-call", "training-checkpoint"}
    ((code, _),) = [c for c in commands(report) if "restore(" in c[1]]
    assert code == "state-dict-ambiguous"


def test_the_network_that_fits_is_not_contradicted(tmp_path):
    first, second = fill(nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 3))), fill(net())
    path = str(tmp_path / "gan.pt")
    torch.save({"G": first.state_dict(), "D": second.state_dict(), "it": 1}, path)
    report = holdtrue.diagnose(path, model=net())
    assert "training-checkpoint" not in codes(report)
    (chosen,) = [f for f in report.findings if f.code == "nested-key"]
    assert chosen.where.endswith(": D")
    (alone,) = [f for f in holdtrue.diagnose(path).findings if f.code == "training-checkpoint"]
    assert "`G`, `D`" in alone.why


def test_placeholders_have_no_call(tmp_path):
    state = {n: torch.empty(0) for n in net().state_dict()}
    path = str(tmp_path / "zero.pt")
    torch.save({"module": state, "epoch": 1}, path)
    for targets in ({}, {"model": net()}):
        report = holdtrue.diagnose(path, **targets)
        assert not [c for _, c in commands(report) if "restore(" in c]


def test_a_module_pickled_its_own_way_is_filled_from_a_state_dict(tmp_path):
    class Own(nn.Linear):
        def __getstate__(self):
            return dict(self.__dict__)

    model = fill(Own(2, 2))
    path = str(tmp_path / "a.pt")
    torch.save(model.state_dict(), path)
    target = Own(2, 2)
    assert codes(holdtrue.diagnose(path, model=target)) == set()
    assert holdtrue.open(path).restore(model=target).ok
    assert same(target, model.state_dict())


@pytest.mark.parametrize("given", ["hf", "hf/"])
def test_a_folder_with_one_file_prints_the_file(tmp_path, monkeypatch, given):
    from safetensors.torch import save_file

    monkeypatch.chdir(tmp_path)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/config.json").write_text("{}")
    model = fill(nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 4)))
    save_file(model.state_dict(), "hf/model.safetensors")
    target = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    report = holdtrue.diagnose(given, model=target)
    calls = {command for _, command in commands(report)}
    assert len(calls) == 1
    run(calls.pop(), target)
    assert torch.equal(target[0].weight, model[0].weight)


class Scaled(nn.Module):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.rand(shape))


@pytest.mark.parametrize(("before", "after"), [((), (1,)), ((1,), ())])
def test_one_number_goes_where_the_model_has_it(tmp_path, before, after):
    path = str(tmp_path / "a.pt")
    model, target = fill(Scaled(before)), Scaled(after)
    torch.save(model.state_dict(), path)
    report = holdtrue.diagnose(path, model=target)
    assert codes(report) == {"shape-mismatch", "restore-call"}
    assert not codes(report, "error")
    ((_, call),) = commands(report)
    run(call, target)
    assert target.scale.shape == after
    assert target.scale.item() == model.scale.item()
    assert torch.equal(target.inner.weight, model.inner.weight)


def test_a_missing_counter_of_batches_stops_nothing(tmp_path):
    path = str(tmp_path / "a.pt")
    model = fill(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))
    state = {n: t for n, t in model.state_dict().items() if "num_batches" not in n}
    torch.save(state, path)
    target = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    report = holdtrue.diagnose(path, model=target)
    assert not codes(report, "error", "warning")
    assert {"buffers-kept", "restore-call"} <= codes(report)
    run(next(c for _, c in commands(report) if "restore(" in c), target)
    assert torch.equal(target[1].running_mean, model[1].running_mean)
    assert target[1].num_batches_tracked == 0


@pytest.mark.parametrize("largest", [1e6, 10.0])
def test_no_call_makes_infinities(tmp_path, largest):
    path = str(tmp_path / "a.pt")
    model = fill(nn.Linear(3, 4))
    model.weight.data[0, 0] = largest
    torch.save(model.state_dict(), path)
    report = holdtrue.diagnose(path, model=nn.Linear(3, 4).half(), deep=True)
    narrowing = [command for _, command in commands(report) if "dtype-narrowed" in command]
    assert bool(narrowing) == (largest < 1e5)
    assert ("values-out-of-range" in codes(report)) == (largest > 1e5)
