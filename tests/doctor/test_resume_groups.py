"""Optimizers of several groups: moments go by name, in whatever order and groups they come."""

import pytest
import torch
from torch import nn

import holdtrue
from holdtrue.doctor.parameter_order import assign


def net():
    return nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 7), nn.Linear(7, 5), nn.Linear(5, 7))


def per_layer(model, order):
    return torch.optim.Adam(
        [{"params": model[i].parameters(), "lr": 0.1 + i, "weight_decay": i / 100} for i in order]
    )


def by_kind(model):
    weights = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim < 2]
    return torch.optim.Adam([{"params": weights, "weight_decay": 0.1}, {"params": rest}], 1e-3)


def head_apart(model):
    rest = [*model[:3].parameters()]
    return torch.optim.Adam([{"params": model[3].parameters()}, {"params": rest}], 1e-3)


def one(model):
    return torch.optim.Adam(model.parameters(), 1e-3)


def trained(path, make):
    model = net()
    optimizer = make(model)
    model(torch.randn(4, 3)).square().sum().backward()
    optimizer.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
    return {n: optimizer.state[p]["exp_avg"] for n, p in model.named_parameters()}


@pytest.mark.parametrize("before", [by_kind, head_apart])
@pytest.mark.parametrize("after", [one, by_kind, lambda m: per_layer(m, (3, 1, 0, 2))])
def test_groups_go_into_any_groups(tmp_path, before, after):
    path = tmp_path / "f.pt"
    moments = trained(path, before)
    model = net()
    optimizer = after(model)
    holdtrue.open(path).restore(model=model, optimizer=optimizer, allow=["optimizer-groups-merged"])
    for name, parameter in model.named_parameters():
        assert torch.equal(optimizer.state[parameter]["exp_avg"], moments[name])


def test_swapped_groups_have_a_call_that_works(tmp_path):
    path = tmp_path / "f.pt"
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 7))
    optimizer = per_layer(model, (0, 1))
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
    kept = optimizer.state[model[1].weight]["exp_avg"]
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 7))
    optimizer = per_layer(model, (1, 0))
    report = holdtrue.diagnose(path, model=model, optimizer=optimizer)
    loud = [f for f in report.findings if f.severity != "note"]
    assert [f.code for f in loud] == ["optimizer-order-changed"]  # the settings go along by name
    exec(loud[0].command, {"holdtrue": holdtrue, "model": model, "optimizer": optimizer})
    assert torch.equal(optimizer.state[model[1].weight]["exp_avg"], kept)


def test_other_groups_have_a_call_that_works(tmp_path):
    path = tmp_path / "f.pt"
    moments = trained(path, by_kind)
    model = net()
    optimizer = one(model)
    report = holdtrue.diagnose(path, model=model, optimizer=optimizer)
    finding = next(f for f in report.findings if f.code == "optimizer-groups-changed")
    assert "settings-from-file" not in {f.code for f in report.findings}
    exec(finding.command, {"holdtrue": holdtrue, "model": model, "optimizer": optimizer})
    assert torch.equal(optimizer.state[model[2].bias]["exp_avg"], moments["2.bias"])


def test_groups_too_alike_are_not_guessed(tmp_path):
    """Layers 1 and 3 have equal shapes: which group was whose cannot be told."""
    path = tmp_path / "f.pt"
    trained(path, lambda m: per_layer(m, (0, 1, 2, 3)))
    model = net()
    with pytest.raises(holdtrue.HoldtrueError) as caught:
        holdtrue.open(path).restore(model=model, optimizer=one(model))
    assert [f.code for f in caught.value.report.findings if f.severity == "error"] == [
        "part-foreign"
    ]


def test_names_are_told_only_where_one_way_is_left():
    named = [("a", (2,)), ("b", (3,)), ("c", (2,)), ("d", (4,))]
    assert assign([[(3,), (4,)], [(2,), (2,)]], named) == ["b", "d", "a", "c"]
    assert assign([[(2,), (4,)], [(3,), (2,)]], named) == ["a", "d", "b", "c"]
    assert assign([[(2,)], [(2,)]], named) == [None, None]
    assert assign([[(4,), (3,)], [(2,)]], named) is None
    assert assign([[(3,)], [(4,)]], named) == ["b", "d"]
    assert assign([[(4,), (3,)]], named[1:2] + named[3:]) == ["d", "b"]
    alike = [(str(i), (2,)) for i in range(200)]
    assert assign([[(2,)] * 50] * 4, alike) is None
