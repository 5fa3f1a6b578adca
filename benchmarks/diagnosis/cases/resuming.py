"""Weights that fit, and an optimizer or a schedule that does not go on where it was."""

from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, RMSprop
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, MultiStepLR, OneCycleLR, StepLR

from benchmarks.diagnosis.broken import At, Broken, Tell, variants
from benchmarks.diagnosis.models import ConvNet, Mlp, lived, state, steps

_KEYS = (
    ("model", "optimizer", "scheduler"),
    ("state_dict", "optimizer_state_dict", "lr_scheduler"),
    ("model_state_dict", "optim", "sched"),
)


def _net(at: At, extra: int = 0) -> Mlp:
    """Names and shapes by chance, the same for one case; `extra` layers at the end."""
    names = [f"lay{i}" for i in range(3 + extra)]
    return Mlp(names, [5, 7, 6, 4, 9, 3, 8][: len(names) + 1])


def _checkpoint(
    at: At, model: nn.Module, optimizer: Any, scheduler: Any = None, **more: Any
) -> Any:
    """What training scripts write, under keys that vary."""
    keys = at.rng.choice(_KEYS)
    value = {keys[0]: state(model), keys[1]: optimizer.state_dict(), "epoch": 3, **more}
    if scheduler is not None:
        value[keys[2]] = scheduler.state_dict()
    return at.save(value)


def _trained(at: At, make: Any = AdamW, model: nn.Module | None = None, **settings: Any) -> Any:
    model = model or _net(at)
    optimizer = make(model.parameters(), **{"lr": 0.01, **settings})
    steps(lived(model), optimizer, count=at.rng.randint(2, 6))
    return model, optimizer


@variants("frozen here", "frozen then", "a layer more here", "a layer less here", "other groups")
def other_parameters(at: At, how: str) -> Broken:
    """torch: "parameter group that doesn't match the size of optimizer's group"."""
    extra = {"a layer more here": (0, 1), "a layer less here": (1, 0)}.get(how, (0, 0))
    saved, here = _net(at, extra[0]), _net(at, extra[1])
    if "frozen" in how:
        for p in list((here if how == "frozen here" else saved).parameters())[:2]:
            p.requires_grad_(False)

    def made(model: nn.Module, split: bool = False) -> Any:
        some = [p for p in model.parameters() if p.requires_grad]
        return AdamW([{"params": some[:2]}, {"params": some[2:]}] if split else some, lr=0.01)

    optimizer = made(saved)
    steps(lived(saved), optimizer)
    path = _checkpoint(at, saved, optimizer)
    target = made(here, how == "other groups")
    return Broken(
        path=path, finds="optimizer-parameters", place=("optimizer", "lay", path.name, "optim"),
        mend=Tell("froz|added|removed|layer|group|parameters|fresh|name"),
        targets={"model": here, "optimizer": target},
        cause="size of optimizer's group|different number of parameter groups",
        cure="froz|by name|fresh|groups of",
    )  # fmt: skip


def same_count_other_shapes(at: At) -> Broken:
    """Loads, and fails at the first step."""
    saved, optimizer = _trained(at)
    names = ["lay0", "lay1", "lay2"]
    here = Mlp(names, [5, 7, 6, 9])
    path = _checkpoint(at, saved, optimizer)
    return Broken(
        path=path, finds="optimizer-shapes", place=("lay2", "optimizer", "optim"),
        mend=Tell("shape|size|fresh|built"),
        targets={"model": here, "optimizer": AdamW(here.parameters())}, cause="shape|size",
        cure="fresh|by name",
    )  # fmt: skip


def shapes_in_another_order(at: At) -> Broken:
    """The same parameters, handed to the optimizer the other way round."""
    saved, optimizer = _trained(at)
    here = _net(at)
    path = _checkpoint(at, saved, optimizer)
    return Broken(
        path=path, finds=("optimizer-shapes", "optimizer-order"),
        place=("lay", "optimizer", "optim"), mend=Tell("order"),
        targets={"model": here, "optimizer": AdamW([*here.parameters()][::-1])}, cause="order",
        cure="order|by name",
    )  # fmt: skip


def names_in_another_order(at: At) -> Broken:
    """Equal shapes: only the names in the file tell; torch ignores them too."""
    names = [f"lay{i}" for i in range(4)]
    saved, here = (Mlp(names, [6] * 5) for _ in range(2))
    optimizer = AdamW(saved.named_parameters(), lr=0.01)
    steps(lived(saved), optimizer)
    path = _checkpoint(at, saved, optimizer)
    there = AdamW([*here.named_parameters()][::-1], lr=0.01)
    return Broken(
        path=path, finds="optimizer-order", place=("lay", "optimizer", "optim"),
        mend=Tell("order|name"), targets={"model": here, "optimizer": there}, cause="order",
        cure="order|by name",
    )  # fmt: skip


@variants(
    ("lr", 0.01, 0.0001), ("weight_decay", 0.0, 0.1), ("betas", (0.9, 0.999), (0.9, 0.95)),
    ("eps", 1e-8, 1e-6),
)  # fmt: skip
def settings_of_the_file_win(at: At, name: str, before: Any, after: Any) -> Broken:
    """load_state_dict takes the hyper-parameters too, whatever the script says now."""
    saved, optimizer = _trained(at, **{name: before})
    here = _net(at)
    path = _checkpoint(at, saved, optimizer)
    target = AdamW(here.parameters(), **{"lr": 0.01, name: after})
    return Broken(
        path=path,
        finds=("settings-from-file", "learning-rate") if name == "lr" else "settings-from-file",
        place=name, mend=Tell("after loading|keep|again|file"),
        targets={"model": here, "optimizer": target}, cause=name, cure="param_groups|after loading",
    )  # fmt: skip


@variants((Adam, SGD), (SGD, AdamW), (RMSprop, Adam))
def another_class_of_optimizer(at: At, before: Any, after: Any) -> Broken:
    saved, optimizer = _trained(at, before, **({"momentum": 0.9} if before is SGD else {}))
    here = _net(at)
    path = _checkpoint(at, saved, optimizer)
    target = after(here.parameters(), lr=0.01, **({"momentum": 0.9} if after is SGD else {}))
    return Broken(
        path=path, finds="optimizer-class", place=("optimizer", "optim"),
        mend=Tell(f"{before.__name__}|{after.__name__}"),
        targets={"model": here, "optimizer": target},
        cause=f"{before.__name__}|exp_avg|momentum|class", cure="fresh|same class",
    )  # fmt: skip


def schedule_not_in_the_file(at: At) -> Broken:
    saved, optimizer = _trained(at)
    here = _net(at)
    path = _checkpoint(at, saved, optimizer)
    target = AdamW(here.parameters(), lr=0.01)
    return Broken(
        path=path, finds="scheduler-absent", place=("scheduler", path.name),
        mend=Tell("start|fresh|last_epoch|again|save"),
        targets={"model": here, "optimizer": target, "scheduler": StepLR(target, 5)},
        cause="schedul", cure="fresh|last_epoch|save",
    )  # fmt: skip


@variants((StepLR, CosineAnnealingLR), (CosineAnnealingLR, OneCycleLR))
def another_class_of_schedule(at: At, before: Any, after: Any) -> Broken:
    saved, optimizer = _trained(at)
    here = _net(at)
    path = _checkpoint(at, saved, optimizer, _scheduled(before, optimizer, 30))
    target = AdamW(here.parameters(), lr=0.01)
    return Broken(
        path=path, finds="scheduler-class", place=("scheduler", "sched"),
        mend=Tell(f"{before.__name__}|{after.__name__}|step_size|T_max"),
        targets={"model": here, "optimizer": target, "scheduler": _scheduled(after, target, 30)},
        cause="schedul", cure="same class|fresh",
    )  # fmt: skip


def _scheduled(cls: Any, optimizer: Any, length: int) -> Any:
    if cls is OneCycleLR:
        return OneCycleLR(optimizer, 0.1, total_steps=length)
    if cls is MultiStepLR:
        return MultiStepLR(optimizer, [length])
    return cls(optimizer, length)


@variants(
    (CosineAnnealingLR, "T_max"),
    (StepLR, "step_size"),
    (OneCycleLR, "total_steps"),
    (MultiStepLR, "milestones"),
)
def another_length_of_schedule(at: At, cls: Any, name: str) -> Broken:
    """The new length is in the script; the old one is in the file, and wins."""
    saved = _net(at)
    optimizer = AdamW(saved.parameters(), lr=0.01)
    scheduler = _scheduled(cls, optimizer, 20)
    steps(lived(saved), optimizer, scheduler)
    here = _net(at)
    path = _checkpoint(at, saved, optimizer, scheduler)
    target = AdamW(here.parameters(), lr=0.01)
    return Broken(
        path=path, finds="scheduler-settings-from-file", place=name,
        mend=Tell("after loading|again"),
        targets={"model": here, "optimizer": target, "scheduler": _scheduled(cls, target, 70)},
        cause=name, cure="after loading|load",
    )  # fmt: skip


def rate_and_schedule_of_two_moments(at: At) -> Broken:
    """In the file itself the optimizer's rate is not what the schedule says."""
    saved = _net(at)
    optimizer = AdamW(saved.parameters(), lr=0.01)
    scheduler = StepLR(optimizer, 2)
    steps(lived(saved), optimizer, scheduler, count=5)
    path = _checkpoint(at, saved, optimizer, scheduler)
    value = torch.load(path)
    key = next(k for k, v in value.items() if isinstance(v, dict) and "param_groups" in v)
    value[key]["param_groups"][0]["lr"] = 0.01 * at.rng.uniform(2, 5)
    torch.save(value, path)
    return Broken(
        path=path, finds="learning-rate", place=(key, "schedul", "lr"), mend=Tell("lr|rate"),
        cause="learning rate|lr", cure="both|same moment",
    )  # fmt: skip


def functions_of_a_schedule(at: At) -> Broken:
    """LambdaLR keeps None where the lambdas were."""
    saved = _net(at)
    optimizer = AdamW(saved.parameters(), lr=0.01)
    scheduler = LambdaLR(optimizer, lambda epoch: 0.9**epoch)
    steps(lived(saved), optimizer, scheduler)
    path = _checkpoint(at, saved, optimizer, scheduler)
    return Broken(
        path=path, finds="scheduler-functions", place=("sched", "lr_lambdas"),
        mend=Tell("function|lambda"), cause="lambda", cure="same function|lambda",
    )  # fmt: skip


def half_precision_without_a_scaler(at: At) -> Broken:
    model = _net(at).half()
    optimizer = SGD(model.parameters(), lr=0.01, momentum=0.9)
    steps(lived(model), optimizer)
    path = _checkpoint(at, model, optimizer)
    return Broken(
        path=path, finds="scaler-absent",
        place=("scaler", "model", path.name, "state_dict", "float16"), mend=Tell("scaler"),
        cause="scaler", cure="scaler",
    )  # fmt: skip


def scaler_not_in_the_file(at: At) -> Broken:
    saved, optimizer = _trained(at)
    here = _net(at)
    path = _checkpoint(at, saved, optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    return Broken(
        path=path, finds=("scaler-absent", "part-missing"), place=("scaler", path.name),
        mend=Tell("scale|fresh|start"),
        targets={"model": here, "optimizer": AdamW(here.parameters(), lr=0.01), "scaler": scaler},
        cause="scaler", cure="scaler",
    )  # fmt: skip


@variants("random state", "loader", "schedule", "scaler")
def not_all_that_a_resume_needs(at: At, what: str) -> Broken:
    """A completeness table: what is there, and what will start anew."""
    saved, optimizer = _trained(at)
    path = _checkpoint(at, saved, optimizer)
    said = {
        "random state": "rng|random", "loader": "loader|data|sampl", "schedule": "schedul",
        "scaler": "scale",
    }  # fmt: skip
    places = {
        "random state": ("andom", "rng"), "loader": ("oader", "data"), "schedule": "chedule",
        "scaler": "cale",
    }  # fmt: skip
    return Broken(
        path=path, finds="resume-completeness",
        place=places[what],
        mend=Tell(said[what] + "|save"), cause=said[what], cure="save",
    )  # fmt: skip


def optimizer_of_another_model(at: At) -> Broken:
    """In one file: the moments are of other shapes than the weights."""
    model, _ = _trained(at)
    _, optimizer = _trained(at, model=ConvNet(8))
    path = _checkpoint(at, model, optimizer)
    return Broken(
        path=path, finds=("optimizer-shapes", "optimizer-of-another-model"),
        place=("optim", path.name), mend=Tell("model|shape|parameters"),
        cause="shape|size|another model", cure="fresh|model",
    )  # fmt: skip


def dead_parameters(at: At) -> Broken:
    """load_state_dict(assign=True) after the optimizer was built: it steps what is dead."""
    saved, optimizer = _trained(at)
    here = _net(at)
    target = AdamW(here.parameters(), lr=0.01)
    here.load_state_dict(state(saved), assign=True)
    path = _checkpoint(at, saved, optimizer)
    return Broken(
        path=path, finds="optimizer-dead", place=("optimizer", "lay"),
        mend=Tell("assign|after|not the model|build"), targets={"model": here, "optimizer": target},
        cause="not.*model|dead|stale", cure="assign|after",
    )  # fmt: skip


def optimizer_of_the_model_before(at: At) -> Broken:
    """model = Net() a second time; the optimizer holds the first one's parameters."""
    saved, optimizer = _trained(at)
    path = _checkpoint(at, saved, optimizer)
    return Broken(
        path=path, finds="optimizer-dead", place=("optimizer", "lay"),
        mend=Tell("not the model|build|another"),
        targets={"model": _net(at), "optimizer": AdamW(_net(at).parameters(), lr=0.01)},
        cause="not.*model|dead|stale", cure="after|build",
    )  # fmt: skip


def counters_disagree(at: At) -> Broken:
    """Schedule and optimizer come from two checkpoints."""
    saved = _net(at)
    optimizer = AdamW(saved.parameters(), lr=0.01)
    scheduler = StepLR(optimizer, 1000)
    steps(lived(saved), optimizer, scheduler, count=4)
    value = scheduler.state_dict()
    value["last_epoch"] = value["_step_count"] = 4000
    value["_last_lr"] = [0.01 * 0.1**4]
    path = at.save({"model": state(saved), "optimizer": optimizer.state_dict(), "scheduler": value})
    return Broken(
        path=path, finds=("counters", "learning-rate"),
        place=("scheduler", "last_epoch", "optimizer"), mend=Tell("step|epoch|rate"),
        cause="step|epoch", cure="same checkpoint|both",
    )  # fmt: skip


def lightning_with_another_optimizer(at: At) -> Broken:
    from benchmarks.diagnosis.lightning_files import fitted
    from benchmarks.diagnosis.models import sequential

    path, plain = fitted(at)
    target = sequential(plain.conv.out_channels)
    return Broken(
        path=path, finds="optimizer-class", place=("optimizer",), mend=Tell("SGD|Adam"),
        targets={"model": target, "optimizer": SGD(target.parameters(), lr=0.01, momentum=0.9)},
        cause="exp_avg|momentum|class", cure="fresh|same class",
    )  # fmt: skip
