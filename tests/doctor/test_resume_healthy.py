"""Trainings as they are commonly saved give nothing above a note, alone or beside their makers."""

import copy

import pytest
import torch
from trainings import OPTIMIZERS, SCHEDULERS, Net, loud, saved, train

import holdtrue


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer(tmp_path, name):
    model = Net()
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer)
    path = saved(tmp_path / "f.pt", model, optimizer)
    fresh = Net()
    report = holdtrue.diagnose(path, model=fresh, optimizer=OPTIMIZERS[name](fresh.parameters()))
    assert loud(report) == []
    assert "resume-completeness" in {f.code for f in report.findings}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler(tmp_path, name):
    model = Net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    scheduler = SCHEDULERS[name](optimizer)
    train(model, optimizer, scheduler)
    path = saved(tmp_path / "f.pt", model, optimizer, scheduler)
    fresh = Net()
    other = OPTIMIZERS["sgd"](fresh.parameters())
    report = holdtrue.diagnose(
        path, model=fresh, optimizer=other, scheduler=SCHEDULERS[name](other)
    )
    assert loud(report) == []


def test_plateau(tmp_path):
    model = Net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1)
    train(model, optimizer)
    for loss in (1.0, 2.0, 3.0, 4.0):
        scheduler.step(loss)
    path = saved(tmp_path / "f.pt", model, optimizer, scheduler)
    fresh = Net()
    other = OPTIMIZERS["sgd"](fresh.parameters())
    again = torch.optim.lr_scheduler.ReduceLROnPlateau(other, patience=1)
    assert loud(holdtrue.diagnose(path, model=fresh, optimizer=other, scheduler=again)) == []


def grouped(model):
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim < 2]
    return torch.optim.AdamW([{"params": decay}, {"params": rest, "weight_decay": 0.0}], 1e-3)


def test_groups_by_kind(tmp_path):
    model = Net()
    optimizer = grouped(model)
    train(model, optimizer)
    path = saved(tmp_path / "f.pt", model, optimizer)
    fresh = Net()
    assert loud(holdtrue.diagnose(path, model=fresh, optimizer=grouped(fresh))) == []


def test_frozen_layers(tmp_path):
    model = Net()
    model.stem.requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad])
    train(model, optimizer)
    path = saved(tmp_path / "f.pt", model, optimizer)
    assert loud(holdtrue.diagnose(path)) == []
    fresh = Net()
    fresh.stem.requires_grad_(False)
    other = torch.optim.Adam([p for p in fresh.parameters() if p.requires_grad])
    assert loud(holdtrue.diagnose(path, model=fresh, optimizer=other)) == []


def test_layers_unfrozen_midway(tmp_path):
    model = Net()
    model.stem.requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer, steps=10)
    model.stem.requires_grad_(True)
    train(model, optimizer, steps=10)
    report = holdtrue.diagnose(saved(tmp_path / "f.pt", model, optimizer))
    assert loud(report) == []
    assert "optimizer-steps-differ" in {f.code for f in report.findings}


def test_two_networks_of_a_gan(tmp_path):
    one, two = Net(), Net(1)
    first, second = torch.optim.Adam(one.parameters()), torch.optim.Adam(two.parameters(), 4e-4)
    train(one, first, steps=4)
    train(two, second, steps=9)
    path = tmp_path / "gan.pt"
    torch.save(
        {
            "generator": one.state_dict(),
            "discriminator": two.state_dict(),
            "opt_g": first.state_dict(),
            "opt_d": second.state_dict(),
        },
        path,
    )
    assert loud(holdtrue.diagnose(path)) == []
    a, b = Net(), Net(1)
    report = holdtrue.diagnose(
        path,
        opt_d=torch.optim.Adam(b.parameters(), 4e-4),
        opt_g=torch.optim.Adam(a.parameters()),
    )
    assert loud(report) == []


def test_a_lightning_checkpoint(tmp_path):
    model = Net()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    scheduler = SCHEDULERS["cosine"](optimizer)
    train(model, optimizer, scheduler)
    progress = {"total": {"ready": 8, "completed": 8}, "current": {"ready": 2, "completed": 2}}
    torch.save(
        {
            "epoch": 1,
            "global_step": 8,
            "pytorch-lightning_version": "2.4.0",
            "state_dict": {f"model.{k}": v for k, v in model.state_dict().items()},
            "loops": {
                "fit_loop": {
                    "state_dict": {},
                    "epoch_loop.state_dict": {"_batches_that_stepped": 8},
                    "epoch_loop.batch_progress": {**progress, "is_last_batch": False},
                    "epoch_progress": progress,
                }
            },
            "callbacks": {},
            "optimizer_states": [optimizer.state_dict()],
            "lr_schedulers": [scheduler.state_dict()],
        },
        tmp_path / "l.ckpt",
    )
    fresh = Net()
    other = OPTIMIZERS["adamw"](fresh.parameters())
    report = holdtrue.diagnose(
        tmp_path / "l.ckpt", model=fresh, optimizer=other, scheduler=SCHEDULERS["cosine"](other)
    )
    assert loud(report) == []
    (table,) = [f for f in report.findings if f.code == "resume-completeness"]
    assert any("optimizer_states/0, AdamW, 8 parameters, step 8" in row for row in table.places)
    assert any("lr_schedulers/0, CosineAnnealingLR, at 8" in row for row in table.places)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "rmsprop"])
def test_restore_goes_on_with_the_same_bits(tmp_path, name):
    model = Net()
    optimizer = OPTIMIZERS[name](model.parameters())
    scheduler = SCHEDULERS["cosine"](optimizer)
    train(model, optimizer, scheduler)
    path = saved(tmp_path / "f.pt", model, optimizer, scheduler)
    fresh = Net()
    other = OPTIMIZERS[name](fresh.parameters())
    again = SCHEDULERS["cosine"](other)
    holdtrue.open(path).restore(model=fresh, optimizer=other, scheduler=again)
    train(model, optimizer, scheduler, steps=5)
    train(fresh, other, again, steps=5)
    for key, value in model.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[key])
    assert again.get_last_lr() == scheduler.get_last_lr()


def test_the_live_objects_stay_as_they_are(tmp_path):
    model = Net()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    train(model, optimizer)
    path = saved(tmp_path / "f.pt", model, optimizer)
    before = copy.deepcopy(optimizer.state_dict())
    train(model, optimizer, steps=2)
    after = copy.deepcopy(optimizer.state_dict())
    holdtrue.diagnose(path, model=model, optimizer=optimizer)
    for number, state in optimizer.state_dict()["state"].items():
        assert all(torch.equal(v, after["state"][number][k]) for k, v in state.items())
        assert not torch.equal(state["exp_avg"], before["state"][number]["exp_avg"])


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_momentum_that_cycles(tmp_path, name):
    def cyclic(optimizer):
        return torch.optim.lr_scheduler.CyclicLR(optimizer, 1e-4, 1e-2, step_size_up=6)

    model = Net()
    optimizer = OPTIMIZERS[name](model.parameters())
    scheduler = cyclic(optimizer)
    train(model, optimizer, scheduler)
    path = saved(tmp_path / "f.pt", model, optimizer, scheduler)
    fresh = Net()
    other = OPTIMIZERS[name](fresh.parameters())
    report = holdtrue.diagnose(path, model=fresh, optimizer=other, scheduler=cyclic(other))
    assert loud(report) == []
    again = OPTIMIZERS[name](fresh.parameters())
    assert loud(holdtrue.diagnose(path, model=fresh, optimizer=again)) == []
