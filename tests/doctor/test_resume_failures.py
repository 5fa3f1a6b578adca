"""Each way in which a resume goes wrong is named; where a command mends it, it is carried out."""

import copy

import pytest
import torch
from torch import nn
from trainings import OPTIMIZERS, SCHEDULERS, Net, Swapped, codes, saved, train

import holdtrue


def training(tmp_path, name="adamw", schedule=None, **more):
    """A training that was saved: (path, model, optimizer, scheduler)."""
    model = Net()
    optimizer = OPTIMIZERS[name](model.parameters())
    scheduler = SCHEDULERS[schedule](optimizer) if schedule else None
    train(model, optimizer, scheduler)
    path = saved(tmp_path / "f.pt", model, optimizer, scheduler, **more)
    return path, model, optimizer, scheduler


def found(report, code):
    (finding,) = [f for f in report.findings if f.code == code and f.severity != "note"]
    return finding


def rewrite(path, change):
    state = torch.load(path, weights_only=False)
    change(state)
    torch.save(state, path)


def mend(finding, **names):
    assert finding.command
    exec(finding.command, {"holdtrue": holdtrue, "torch": torch, **names}, names)
    return names


# -- the file alone ------------------------------------------------------------------------------


def test_the_optimizer_of_another_model(tmp_path):
    path, *_ = training(tmp_path)
    rewrite(path, lambda s: s.update(model=Net(7).state_dict()))
    finding = found(holdtrue.diagnose(path), "optimizer-other-model")
    assert "[3, 8]" in finding.where


def test_more_parameters_than_the_model_has_tensors(tmp_path):
    path, *_ = training(tmp_path, "plain-sgd")
    rewrite(path, lambda s: s.update(model=nn.Linear(4, 8).state_dict()))
    assert codes(holdtrue.diagnose(path)) == {"optimizer-other-model"}


def test_a_save_in_the_middle_of_a_step(tmp_path):
    path, *_ = training(tmp_path)

    def tear(state):
        for number in (5, 6, 7):
            state["optimizer"]["state"][number]["step"] -= 1

    rewrite(path, tear)
    finding = found(holdtrue.diagnose(path), "optimizer-steps-differ")
    assert finding.count == 3
    assert finding.saved == "7, 8"


def test_weight_and_bias_of_one_layer_apart(tmp_path):
    path, *_ = training(tmp_path)
    rewrite(path, lambda s: s["optimizer"]["state"][0]["step"].fill_(500))
    assert codes(holdtrue.diagnose(path)) == {"optimizer-steps-differ"}


def test_rates_of_optimizer_and_scheduler(tmp_path):
    path, *_ = training(tmp_path, schedule="cosine")
    rewrite(path, lambda s: s["optimizer"]["param_groups"][0].update(lr=0.5))
    assert found(holdtrue.diagnose(path), "learning-rate-differs").saved == "0.5"


def test_a_scheduler_of_other_groups(tmp_path):
    path, model, *_ = training(tmp_path, schedule="step")
    other = torch.optim.AdamW([{"params": [p]} for p in model.parameters()])
    rewrite(path, lambda s: s.update(scheduler=SCHEDULERS["step"](other).state_dict()))
    assert "scheduler-groups-changed" in codes(holdtrue.diagnose(path))


def test_a_scheduler_that_never_stepped(tmp_path):
    path, _, optimizer, _ = training(tmp_path, schedule="step")
    rewrite(path, lambda s: s["scheduler"].update(last_epoch=0))
    assert "step-counts-differ" in codes(holdtrue.diagnose(path))


def test_lambdas_are_not_in_the_file(tmp_path):
    path, *_ = training(tmp_path, schedule="lambda")
    report = holdtrue.diagnose(path)
    assert codes(report) == set()
    assert "scheduler-functions" in {f.code for f in report.findings}


def test_half_weights_without_a_scaler(tmp_path):
    path, model, *_ = training(tmp_path)
    half = copy.deepcopy(model).half().state_dict()
    rewrite(path, lambda s: s.update(model=half))
    assert codes(holdtrue.diagnose(path)) == {"scaler-missing"}
    scaler = {"scale": 1024.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 200}
    rewrite(path, lambda s: s.update(scaler={**scaler, "_growth_tracker": 1}))
    assert codes(holdtrue.diagnose(path)) == set()


def test_the_table_says_what_is_lacking(tmp_path):
    path, *_ = training(tmp_path, schedule="step", rng=torch.get_rng_state())
    (table,) = [f for f in holdtrue.diagnose(path).findings if f.code == "resume-completeness"]
    assert "without scaler, data position" in table.what
    assert "optimizer: optimizer, AdamW, 8 parameters, step 8" in table.places
    assert "random states: torch" in table.places


def test_weights_alone_get_no_table(tmp_path):
    torch.save(Net().state_dict(), tmp_path / "w.pt")
    assert "resume-completeness" not in {
        f.code for f in holdtrue.diagnose(tmp_path / "w.pt").findings
    }


# -- beside live objects -------------------------------------------------------------------------


def test_no_optimizer_in_the_file(tmp_path):
    model = Net()
    path = saved(tmp_path / "f.pt", model)
    report = holdtrue.diagnose(path, model=model, optimizer=OPTIMIZERS["adam"](model.parameters()))
    assert found(report, "part-missing").where == "optimizer"


def test_layers_that_are_frozen_here(tmp_path):
    path, *_ = training(tmp_path)
    model = Net()
    model.stem.requires_grad_(False)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], 1e-3, weight_decay=0.1
    )
    with pytest.raises(ValueError, match="doesn't match the size"):
        optimizer.load_state_dict(torch.load(path)["optimizer"])
    finding = found(
        holdtrue.diagnose(path, model=model, optimizer=optimizer), "optimizer-params-unexpected"
    )
    assert finding.places == ("saved only: stem.weight", "saved only: stem.bias")
    mend(finding, model=model, optimizer=optimizer)
    kept = torch.load(path)["optimizer"]["state"]
    assert torch.equal(optimizer.state[model.head.weight]["exp_avg"], kept[6]["exp_avg"])


def test_layers_that_came_in(tmp_path):
    model = Net()
    model.stem.requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad])
    train(model, optimizer)
    path = saved(tmp_path / "f.pt", model, optimizer)
    fresh = Net()
    other = torch.optim.Adam(fresh.parameters())
    finding = found(
        holdtrue.diagnose(path, model=fresh, optimizer=other), "optimizer-params-missing"
    )
    assert finding.saved == "groups of 6 parameters"


def test_other_groups(tmp_path):
    path, *_ = training(tmp_path)
    model = Net()
    optimizer = torch.optim.AdamW(
        [{"params": model.stem.parameters()}, {"params": [*model.norm.parameters()]},
         {"params": [*model.body.parameters(), *model.head.parameters()]}], 1e-3, weight_decay=0.1,
    )  # fmt: skip
    finding = found(
        holdtrue.diagnose(path, model=model, optimizer=optimizer), "optimizer-groups-changed"
    )
    mend(finding, model=model, optimizer=optimizer)
    train(model, optimizer, steps=1)


def test_the_order_changed_in_silence(tmp_path):
    path, *_ = training(tmp_path)
    model = Net()
    optimizer = OPTIMIZERS["adamw"]([*model.parameters()][::-1])
    finding = found(
        holdtrue.diagnose(path, model=model, optimizer=optimizer), "optimizer-order-changed"
    )
    mend(finding, model=model, optimizer=optimizer)
    kept = torch.load(path)["optimizer"]["state"]
    assert torch.equal(optimizer.state[model.stem.bias]["exp_avg"], kept[1]["exp_avg"])


def test_layers_defined_in_another_order(tmp_path):
    path, *_ = training(tmp_path)
    model = Swapped()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    finding = found(
        holdtrue.diagnose(path, model=model, optimizer=optimizer), "optimizer-order-changed"
    )
    mend(finding, model=model, optimizer=optimizer)
    kept = torch.load(path)["optimizer"]["state"]
    assert torch.equal(optimizer.state[model.stem.weight]["exp_avg"], kept[0]["exp_avg"])


def test_equal_shapes_named_in_the_file(tmp_path):
    model = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(3)))
    optimizer = torch.optim.Adam(model.named_parameters())
    train(model, optimizer)
    path = saved(tmp_path / "f.pt", model, optimizer)
    other = torch.optim.Adam([*model.named_parameters()][::-1])
    report = holdtrue.diagnose(path, model=model, optimizer=other)
    assert found(report, "optimizer-order-changed").confidence == "certain"


def test_other_shapes(tmp_path):
    path, *_ = training(tmp_path)
    model = Net(9)
    report = holdtrue.diagnose(path, optimizer=OPTIMIZERS["adamw"](model.parameters()))
    assert found(report, "optimizer-shapes").count == 2


@pytest.mark.parametrize(
    ("saved_as", "here"),
    [("adam", "sgd"), ("sgd", "adam"), ("rmsprop", "sgd"), ("adam", "rmsprop")],
)
def test_another_class(tmp_path, saved_as, here):
    path, *_ = training(tmp_path, saved_as)
    model = Net()
    report = holdtrue.diagnose(path, model=model, optimizer=OPTIMIZERS[here](model.parameters()))
    finding = found(report, "class-changed")
    assert finding.severity == "error"
    optimizer = mend(finding, optimizer=OPTIMIZERS[here](model.parameters()))["optimizer"]
    optimizer.load_state_dict(torch.load(path)["optimizer"])
    train(model, optimizer, steps=1)


def test_akin_classes(tmp_path):
    path, *_ = training(tmp_path, "adam")
    model = Net()
    report = holdtrue.diagnose(path, optimizer=torch.optim.AdamW(model.parameters(), 1e-3))
    assert found(report, "class-changed").severity == "warning"


def test_settings_that_the_file_overrides(tmp_path):
    path, *_ = training(tmp_path)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), 5e-4, weight_decay=0.0)
    finding = found(holdtrue.diagnose(path, model=model, optimizer=optimizer), "settings-from-file")
    assert "weight_decay: saved 0.1, here 0.0" in finding.places[0]
    optimizer.load_state_dict(torch.load(path)["optimizer"])
    mend(finding, optimizer=optimizer)
    assert optimizer.param_groups[0]["lr"] == 5e-4
    assert optimizer.param_groups[0]["weight_decay"] == 0.0


def test_a_schedule_of_another_length(tmp_path):
    path, *_ = training(tmp_path, schedule="cosine")
    model = Net()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
    report = holdtrue.diagnose(path, model=model, optimizer=optimizer, scheduler=scheduler)
    finding = found(report, "scheduler-settings-from-file")
    assert finding.where == "scheduler.T_max: saved 20, here 100"
    assert mend(finding, scheduler=scheduler)["scheduler"].T_max == 100


def test_other_milestones(tmp_path):
    path, *_ = training(tmp_path, schedule="multi-step")
    optimizer = OPTIMIZERS["adamw"](Net().parameters())
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [30, 60])
    report = holdtrue.diagnose(path, optimizer=optimizer, scheduler=scheduler)
    assert "saved [3, 6], here [30, 60]" in found(report, "scheduler-settings-from-file").where


@pytest.mark.parametrize("here", ["step", "one-cycle", "sequential", "lambda"])
def test_another_class_of_scheduler(tmp_path, here):
    path, *_ = training(tmp_path, schedule="cosine")
    optimizer = OPTIMIZERS["adamw"](Net().parameters())
    report = holdtrue.diagnose(path, optimizer=optimizer, scheduler=SCHEDULERS[here](optimizer))
    assert found(report, "class-changed").saved == "CosineAnnealingLR"


def test_a_scheduler_without_its_optimizer(tmp_path):
    path, *_ = training(tmp_path, schedule="exponential")
    optimizer = OPTIMIZERS["adamw"](Net().parameters())
    scheduler = SCHEDULERS["exponential"](optimizer)
    finding = found(holdtrue.diagnose(path, scheduler=scheduler), "learning-rate-differs")
    mend(finding, scheduler=scheduler)
    assert optimizer.param_groups[0]["lr"] == torch.load(path)["scheduler"]["_last_lr"][0]


def test_a_scheduler_and_a_scaler_that_were_not_saved(tmp_path):
    path, *_ = training(tmp_path)
    optimizer = OPTIMIZERS["adamw"](Net().parameters())
    report = holdtrue.diagnose(
        path,
        optimizer=optimizer,
        scheduler=SCHEDULERS["step"](optimizer),
        scaler=torch.amp.GradScaler("cpu"),
    )
    missing = [f.where for f in report.findings if f.code == "part-missing"]
    assert missing == ["scaler", "scheduler"]


def test_an_optimizer_of_dead_parameters(tmp_path):
    path, model, *_ = training(tmp_path)
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    model.load_state_dict(torch.load(path)["model"], assign=True)
    finding = found(
        holdtrue.diagnose(path, model=model, optimizer=optimizer), "optimizer-dead-parameters"
    )
    made = mend(finding, model=model, optimizer=optimizer)["optimizer"]
    assert made.param_groups[0]["params"][0] is model.stem.weight
    assert made.param_groups[0]["weight_decay"] == 0.1


def test_two_optimizers_with_one_state(tmp_path):
    path, model, optimizer, _ = training(tmp_path)
    other = OPTIMIZERS["adamw"](model.parameters())
    other.load_state_dict(optimizer.state_dict())
    finding = found(holdtrue.diagnose(path, a=optimizer, b=other), "optimizer-state-shared")
    mend(finding, a=optimizer, b=other)
    assert "optimizer-state-shared" not in codes(holdtrue.diagnose(path, a=optimizer, b=other))


def test_capturable_on_the_cpu(tmp_path):
    path, *_ = training(tmp_path)
    rewrite(path, lambda s: s["optimizer"]["param_groups"][0].update(capturable=True))
    model = Net()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    finding = found(
        holdtrue.diagnose(path, model=model, optimizer=optimizer), "optimizer-capturable"
    )
    optimizer.load_state_dict(torch.load(path)["optimizer"])
    mend(finding, optimizer=optimizer)
    train(model, optimizer, steps=1)


def test_a_model_on_meta_is_compared_as_well(tmp_path):
    path, *_ = training(tmp_path)
    with torch.device("meta"):
        model = Net(9)
    report = holdtrue.diagnose(path, optimizer=OPTIMIZERS["adamw"](model.parameters()))
    assert "optimizer-shapes" in codes(report)


def test_a_head_of_another_size_keeps_the_other_moments(tmp_path):
    path, *_ = training(tmp_path)
    model = Net(9)
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    finding = found(holdtrue.diagnose(path, model=model, optimizer=optimizer), "optimizer-shapes")
    mend(finding, model=model, optimizer=optimizer)
    kept = torch.load(path)["optimizer"]["state"]
    assert torch.equal(optimizer.state[model.stem.weight]["exp_avg"], kept[0]["exp_avg"])
    assert model.head.weight not in optimizer.state
    train(model, optimizer, steps=1)


def test_a_layer_that_came_in_starts_fresh(tmp_path):
    path, *_ = training(tmp_path)
    model = Net()
    model.extra = nn.Linear(3, 3)
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    finding = found(
        holdtrue.diagnose(path, model=model, optimizer=optimizer), "optimizer-params-missing"
    )
    assert "extra came in" in finding.what
    mend(finding, model=model, optimizer=optimizer)
    kept = torch.load(path)["optimizer"]["state"]
    assert torch.equal(optimizer.state[model.head.bias]["exp_avg"], kept[7]["exp_avg"])
    assert model.extra.weight not in optimizer.state


def test_a_scheduler_built_after_the_optimizer_was_loaded(tmp_path):
    path, *_ = training(tmp_path, schedule="linear")
    model = Net()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    optimizer.load_state_dict(torch.load(path)["optimizer"])
    scheduler = SCHEDULERS["linear"](optimizer)
    report = holdtrue.diagnose(path, model=model, optimizer=optimizer, scheduler=scheduler)
    mend(found(report, "learning-rate-differs"), optimizer=optimizer)
    assert optimizer.param_groups[0]["lr"] == torch.load(path)["scheduler"]["_last_lr"][0]


def test_an_optimizer_that_never_stepped(tmp_path):
    path, *_ = training(tmp_path, schedule="step")
    fresh = OPTIMIZERS["adamw"](Net().parameters())
    rewrite(path, lambda s: s["optimizer"].update(state=fresh.state_dict()["state"]))
    assert "optimizer-state-empty" in codes(holdtrue.diagnose(path))


def test_an_optimizer_that_began_again(tmp_path):
    path, *_ = training(tmp_path)
    rewrite(path, lambda s: s.update(epoch=90))
    report = holdtrue.diagnose(path)
    assert "step-counts-differ" in {f.code for f in report.findings}
    assert codes(report) == set()


def test_a_setting_of_another_kind_is_a_difference(tmp_path):
    path, *_ = training(tmp_path)
    rewrite(path, lambda s: s["optimizer"]["param_groups"][0].update(eps=torch.ones(3), betas=None))
    model = Net()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    report = holdtrue.diagnose(path, model=model, optimizer=optimizer)
    assert "rule-failed" not in {f.code for f in report.findings}
