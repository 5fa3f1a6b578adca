"""Schedulers, scalers, averages, loaders and random states: the next steps are those of the run."""

import math
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from same import bits, same
from torch import Tensor, nn
from torch.optim import lr_scheduler as lrs
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset, WeightedRandomSampler

import holdtrue

STEPS = 10
pytestmark = pytest.mark.filterwarnings("ignore")


class Warmup:
    """A callable object: torch keeps its attributes, and so do we."""

    def __init__(self, steps: int) -> None:
        self.steps, self.calls = steps, 0

    def __call__(self, epoch: int) -> float:
        self.calls += 1
        return min(1.0, (epoch + 1) / self.steps) * (1 + 0.01 * self.calls)


def wave(x: float) -> float:
    return 0.5 * (1 + math.sin(x))


def halves(epoch: int) -> float:
    return 0.5 ** (epoch // 3)


Make = Callable[[Any], Any]
SCHEDULERS: dict[str, Make] = {
    "LambdaLR": lambda o: lrs.LambdaLR(o, halves),
    "LambdaLR of a lambda": lambda o: lrs.LambdaLR(o, lambda e: 1 / (1 + e)),
    "LambdaLR of objects": lambda o: lrs.LambdaLR(o, [Warmup(4), Warmup(7)]),
    "MultiplicativeLR": lambda o: lrs.MultiplicativeLR(o, lambda e: 0.9),
    "MultiplicativeLR of objects": lambda o: lrs.MultiplicativeLR(o, [Warmup(3), halves]),
    "StepLR": lambda o: lrs.StepLR(o, 3, 0.5),
    "MultiStepLR": lambda o: lrs.MultiStepLR(o, [2, 5, 5, 9], 0.3),
    "ConstantLR": lambda o: lrs.ConstantLR(o, 0.5, 6),
    "LinearLR": lambda o: lrs.LinearLR(o, 0.1, 1.0, 8),
    "ExponentialLR": lambda o: lrs.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: lrs.PolynomialLR(o, 12, 2.0),
    "CosineAnnealingLR": lambda o: lrs.CosineAnnealingLR(o, 7, 0.001),
    "CosineAnnealingWarmRestarts": lambda o: lrs.CosineAnnealingWarmRestarts(o, 3, 2),
    "OneCycleLR": lambda o: lrs.OneCycleLR(o, [0.5, 0.2], total_steps=20),
    "OneCycleLR linear": lambda o: lrs.OneCycleLR(
        o, 0.5, total_steps=20, anneal_strategy="linear", three_phase=True, cycle_momentum=False
    ),
    "CyclicLR": lambda o: lrs.CyclicLR(o, 0.01, 0.5, 4),
    "CyclicLR exp": lambda o: lrs.CyclicLR(o, 0.01, 0.5, 3, mode="exp_range", gamma=0.9),
    "CyclicLR own scale": lambda o: lrs.CyclicLR(o, 0.01, 0.5, 4, scale_fn=wave),
    "CyclicLR scale object": lambda o: lrs.CyclicLR(o, 0.01, 0.5, 4, scale_fn=Warmup(5)),
    "SequentialLR": lambda o: lrs.SequentialLR(
        o, [lrs.LinearLR(o, 0.1, 1.0, 3), lrs.CosineAnnealingLR(o, 9)], [5]
    ),
    "SequentialLR of objects": lambda o: lrs.SequentialLR(
        o, [lrs.LambdaLR(o, Warmup(3)), lrs.ExponentialLR(o, 0.8)], [6]
    ),
    "ChainedScheduler": lambda o: lrs.ChainedScheduler(
        [lrs.ConstantLR(o, 0.5, 4), lrs.ExponentialLR(o, 0.9)]
    ),
    "ReduceLROnPlateau": lambda o: lrs.ReduceLROnPlateau(o, patience=1, cooldown=1),
    "ReduceLROnPlateau max": lambda o: lrs.ReduceLROnPlateau(
        o, mode="max", threshold_mode="abs", min_lr=[0.001, 0.002]
    ),
    "SWALR": lambda o: SWALR(o, swa_lr=0.05, anneal_epochs=6),
    "SWALR linear": lambda o: SWALR(o, swa_lr=[0.05, 0.5], anneal_strategy="linear"),
}


def make(name: str, seed: int, tensor_lr: bool = False) -> tuple[nn.Module, Any, Any]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))
    rates = [torch.tensor(0.1), torch.tensor(0.2)] if tensor_lr else [0.1, 0.2]
    groups = [{"params": list(model[i].parameters()), "lr": r} for i, r in zip((0, 2), rates)]
    optimizer = torch.optim.SGD(groups, momentum=0.9, foreach=False)
    return model, optimizer, SCHEDULERS[name](optimizer)


def go(model: nn.Module, optimizer: Any, scheduler: Any, start: int, steps: int) -> list[Any]:
    story: list[Any] = []
    for step in range(start, start + steps):
        x = torch.randn(6, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss = (model(x) - 1).pow(2).mean()
        loss.backward()
        optimizer.step()
        plateau = isinstance(scheduler, lrs.ReduceLROnPlateau)
        scheduler.step(1.0 + (step % 3) / 10) if plateau else scheduler.step()
        story += [bits(p) for p in model.parameters()]
        story += [(float(g["lr"]), g["momentum"]) for g in optimizer.param_groups]
        story += [[float(v) for v in scheduler.get_last_lr()]]
    return story


def test_every_scheduler_of_torch_is_tried() -> None:
    known = {
        n for n, c in vars(lrs).items()
        if isinstance(c, type) and issubclass(c, lrs.LRScheduler) and not n.startswith("_")
    } - {"LRScheduler"}  # fmt: skip
    print(f"schedulers: {len(known) + 1}, {len(SCHEDULERS)} with their settings")
    assert known | {"SWALR"} == {name.partition(" ")[0] for name in SCHEDULERS}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("tensor_lr", [False, True], ids=["float lr", "tensor lr"])
def test_the_next_ten_steps_are_the_same(tmp_path: Path, name: str, tensor_lr: bool) -> None:
    model, optimizer, scheduler = make(name, 1, tensor_lr)
    go(model, optimizer, scheduler, 0, 4)
    holdtrue.save(tmp_path / "c", model=model, optimizer=optimizer, scheduler=scheduler)
    expected = go(model, optimizer, scheduler, 4, STEPS)
    for before in (0, 2):
        fresh, other, schedule = make(name, 9, tensor_lr)
        go(fresh, other, schedule, 50, before)
        holdtrue.open(tmp_path / "c").restore(model=fresh, optimizer=other, scheduler=schedule)
        assert go(fresh, other, schedule, 4, STEPS) == expected
        assert not tensor_lr or isinstance(other.param_groups[0]["lr"], Tensor)


def test_another_scheduler_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    model, optimizer, scheduler = make("StepLR", 1)
    go(model, optimizer, scheduler, 0, 2)
    holdtrue.save(tmp_path / "c", model=model, optimizer=optimizer, scheduler=scheduler)
    fresh, other, schedule = make("CosineAnnealingLR", 2)
    before = schedule.state_dict(), [bits(p) for p in fresh.parameters()]
    with pytest.raises(holdtrue.RestoreError):
        holdtrue.open(tmp_path / "c").restore(model=fresh, optimizer=other, scheduler=schedule)
    assert same(before, (schedule.state_dict(), [bits(p) for p in fresh.parameters()]))


# -- groups, settings and rates ------------------------------------------------------------


def built(name: str, seed: int, groups: list[list[int]]) -> tuple[nn.Module, Any, Any]:
    """As `make`, with the layers of each group; its rate is that of its first layer."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))
    rates = {0: 0.1, 2: 0.2}
    optimizer = torch.optim.SGD(
        [
            {"params": [p for i in group for p in model[i].parameters()], "lr": rates[group[0]]}
            for group in groups
        ],
        momentum=0.9,
        foreach=False,
    )
    return model, optimizer, SCHEDULERS[name](optimizer)


def weights(model: nn.Module) -> list[bytes]:
    return [bits(p) for p in model.parameters()]


# One object that counts the calls of both groups knows in which order they come.
INDIFFERENT = [n for n in SCHEDULERS if "object" not in n or n == "LambdaLR of objects"]


@pytest.mark.parametrize("name", INDIFFERENT)
def test_reordered_groups_keep_their_own_rates(tmp_path: Path, name: str) -> None:
    model, optimizer, scheduler = built(name, 1, [[0], [2]])
    go(model, optimizer, scheduler, 0, 4)
    holdtrue.save(tmp_path / "c", model=model, optimizer=optimizer, scheduler=scheduler)
    fresh, other, schedule = built(name, 9, [[2], [0]])
    report = holdtrue.open(tmp_path / "c").restore(scheduler=schedule, model=fresh, optimizer=other)
    assert "learning-rate-differs" not in {f.code for f in report.findings}
    for step in range(4, 12):
        go(model, optimizer, scheduler, step, 1)
        go(fresh, other, schedule, step, 1)
        rates = [[g["lr"] for g in o.param_groups] for o in (optimizer, other)]
        assert rates[0] == rates[1][::-1], step
        assert weights(fresh) == weights(model), step


@pytest.mark.parametrize("groups", [[[0, 2]], [[0], [2], []]], ids=["merged", "added"])
@pytest.mark.parametrize("name", ["StepLR", "SequentialLR", "LambdaLR of a lambda"])
def test_groups_that_are_no_more_are_refused(
    tmp_path: Path, name: str, groups: list[list[int]]
) -> None:
    model, optimizer, scheduler = built(name, 1, [[0], [2]])
    go(model, optimizer, scheduler, 0, 2)
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] = 0.1
    holdtrue.save(tmp_path / "c", model=model, optimizer=optimizer, scheduler=scheduler)
    fresh, other, schedule = built(name, 9, [g for g in groups if g])
    if [] in groups:
        other.add_param_group({"params": [], "lr": 0.3, "initial_lr": 0.3})
        schedule = SCHEDULERS[name](other)
    targets = {"model": fresh, "optimizer": other, "scheduler": schedule}
    before, held = weights(fresh), schedule.state_dict()
    opened = holdtrue.open(tmp_path / "c")
    with pytest.raises(holdtrue.RestoreError) as caught:
        opened.restore(**targets)
    assert [f.code for f in caught.value.report.errors] == ["scheduler-groups-changed"]
    assert weights(fresh) == before
    assert same(held, schedule.state_dict())
    opened.restore(**targets, allow=["scheduler-groups-changed"])
    assert schedule.last_epoch == 2
    assert len(schedule.get_last_lr()) == len(other.param_groups)
    go(fresh, other, schedule, 2, 8)


def test_a_scheduler_alone_says_which_rates_and_settings_differ(tmp_path: Path) -> None:
    model, optimizer, _ = make("StepLR", 1)
    scheduler = lrs.CosineAnnealingLR(optimizer, 10)
    go(model, optimizer, scheduler, 0, 4)
    holdtrue.save(tmp_path / "c", model=model, optimizer=optimizer, scheduler=scheduler)
    fresh, other, _ = make("StepLR", 2)
    schedule = lrs.CosineAnnealingLR(other, 99)
    report = holdtrue.open(tmp_path / "c").restore(scheduler=schedule)
    found = {f.code: f for f in report.findings if f.severity == "warning"}
    assert found.keys() == {"scheduler-settings-from-file", "learning-rate-differs"}
    assert found["scheduler-settings-from-file"].where == "scheduler.T_max: saved 10, here 99"
    assert len(found["learning-rate-differs"].places) == 2
    assert "here 0.1" in found["learning-rate-differs"].where
    report = holdtrue.open(tmp_path / "c").restore(
        model=fresh, optimizer=other, scheduler=lrs.CosineAnnealingLR(other, 10)
    )
    assert not [f for f in report.findings if f.severity == "warning"]


def test_functions_that_are_not_in_the_file_are_a_note(tmp_path: Path) -> None:
    for name, places in (("LambdaLR of a lambda", 2), ("LambdaLR of objects", 0)):
        model, optimizer, scheduler = make(name, 1)
        holdtrue.save(
            tmp_path / "c", overwrite=True, model=model, optimizer=optimizer, scheduler=scheduler
        )
        report = holdtrue.open(tmp_path / "c").restore(
            model=model, optimizer=optimizer, scheduler=scheduler
        )
        found = [f for f in report.findings if f.code == "scheduler-functions"]
        assert [(f.severity, len(f.places)) for f in found] == [("note", 2)] * bool(places)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_built_alike_differs_in_nothing(tmp_path: Path, name: str) -> None:
    model, optimizer, scheduler = make(name, 1)
    go(model, optimizer, scheduler, 0, 5)
    holdtrue.save(tmp_path / "c", model=model, optimizer=optimizer, scheduler=scheduler)
    fresh, other, schedule = make(name, 2)
    report = holdtrue.open(tmp_path / "c").restore(model=fresh, optimizer=other, scheduler=schedule)
    assert not [f for f in report.findings if f.severity != "note"]


# -- scaler and averages -----------------------------------------------------------------


def test_a_gradient_scaler_goes_on(tmp_path: Path) -> None:
    def train(parts: dict[str, Any], start: int, steps: int) -> list[Any]:
        model, optimizer, scaler = (parts[n] for n in ("model", "optimizer", "scaler"))
        story: list[Any] = []
        for step in range(start, start + steps):
            x = torch.randn(6, 4, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            loss = model(x).pow(2).mean() * (1e38 if step % 5 == 4 else 1)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            story += [scaler.get_scale(), *(bits(p) for p in model.parameters())]
        return story

    def parts(seed: int) -> dict[str, Any]:
        model, optimizer, _ = make("StepLR", seed)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0 ** (10 + seed), growth_interval=3)
        return {"model": model, "optimizer": optimizer, "scaler": scaler}

    saved = parts(1)
    train(saved, 0, 4)
    holdtrue.save(tmp_path / "c", **saved)
    expected = train(saved, 4, STEPS)
    for before in (0, 3):
        fresh = parts(2)
        train(fresh, 0, before)
        holdtrue.open(tmp_path / "c").restore(**fresh)
        assert train(fresh, 4, STEPS) == expected


# torch's own stochastic average fails on integer buffers, so it is tried without.
@pytest.mark.parametrize(
    ("kind", "buffers"),
    [("ema", False), ("ema", True), ("swa", False), ("own", False), ("own", True)],
)
def test_averaged_models_go_on(tmp_path: Path, kind: str, buffers: bool) -> None:
    average: dict[str, dict[str, Any]] = {
        "ema": {"multi_avg_fn": get_ema_multi_avg_fn(0.9)},
        "swa": {"multi_avg_fn": get_swa_multi_avg_fn()},
        "own": {"avg_fn": lambda a, b, n: a * 0.7 + b * 0.3},
    }

    def parts(seed: int) -> dict[str, Any]:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
        ema = AveragedModel(model, use_buffers=buffers, **average[kind])
        return {"model": model, "ema": ema, "optimizer": torch.optim.Adam(model.parameters())}

    def train(p: dict[str, Any], start: int, steps: int) -> list[bytes]:
        story = []
        for step in range(start, start + steps):
            x = torch.randn(6, 4, generator=torch.Generator().manual_seed(step))
            p["optimizer"].zero_grad()
            p["model"](x).pow(2).mean().backward()
            p["optimizer"].step()
            p["ema"].update_parameters(p["model"])
            story += [bits(t) for t in (*p["ema"].state_dict().values(), *p["model"].parameters())]
        return story

    saved, fresh = parts(1), parts(2)
    train(saved, 0, 3)
    holdtrue.save(tmp_path / "c", **saved)
    holdtrue.open(tmp_path / "c").restore(**fresh)
    assert train(fresh, 3, STEPS) == train(saved, 3, STEPS)


# -- loaders -----------------------------------------------------------------------------

DATA = TensorDataset(torch.arange(24))


def batches(loader: Any) -> list[list[int]]:
    return [batch[0].tolist() for batch in loader]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


LOADERS: dict[str, Callable[[int], Any]] = {
    "global": lambda seed: DataLoader(DATA, 4, shuffle=True),
    "own generator": lambda seed: DataLoader(DATA, 4, shuffle=True, generator=generator(seed)),
    "sampler": lambda seed: DataLoader(
        DATA, 4, sampler=RandomSampler(DATA, generator=generator(seed))
    ),
    "weighted": lambda seed: DataLoader(
        DATA, 4, sampler=WeightedRandomSampler(torch.ones(24), 24, generator=generator(seed))
    ),
    "two generators": lambda seed: DataLoader(
        DATA,
        4,
        generator=generator(seed),
        sampler=RandomSampler(DATA, generator=generator(seed + 9)),
    ),
}


@pytest.mark.parametrize("name", LOADERS)
def test_a_shuffling_loader_goes_on_at_the_next_epoch(tmp_path: Path, name: str) -> None:
    loader = LOADERS[name](1)
    torch.manual_seed(5)
    batches(loader)
    holdtrue.save(tmp_path / "c", loader=loader)
    expected = [batches(loader) for _ in range(3)]
    assert expected[0] != expected[1]
    torch.manual_seed(77)
    other = LOADERS[name](2)
    batches(other)
    holdtrue.open(tmp_path / "c").restore(loader=other, rng=True)
    assert [batches(other) for _ in range(3)] == expected


def test_a_loader_of_another_size_is_a_finding(tmp_path: Path) -> None:
    holdtrue.save(tmp_path / "c", loader=LOADERS["own generator"](1))
    other = DataLoader(DATA, 5, shuffle=True, generator=generator(3))
    state = other.generator.get_state()
    with pytest.raises(holdtrue.RestoreError) as caught:
        holdtrue.open(tmp_path / "c").restore(loader=other)
    assert [f.code for f in caught.value.report.errors] == ["loader-changed"]
    assert torch.equal(other.generator.get_state(), state)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stateful_loader_goes_on_in_the_middle_of_an_epoch(tmp_path: Path, workers: int) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader")

    def loader() -> Any:
        return stateful.StatefulDataLoader(DATA, 4, shuffle=True, num_workers=workers)

    torch.manual_seed(3)
    running = loader()
    stream = iter(running)
    first = [next(stream)[0].tolist() for _ in range(2)]
    holdtrue.save(tmp_path / "c", loader=running)
    rest = [batch[0].tolist() for batch in stream] + batches(running)
    assert sorted(sum(first + rest[:4], [])) == list(range(24))
    torch.manual_seed(99)
    fresh = loader()
    holdtrue.open(tmp_path / "c").restore(loader=fresh, rng=True)
    assert batches(fresh) + batches(fresh) == rest


def test_a_save_draws_no_random_numbers(tmp_path: Path) -> None:
    class Greedy:
        def state_dict(self) -> dict[str, Any]:
            return {"seen": (torch.rand(1).item(), random.random(), np.random.rand())}

        def load_state_dict(self, state: Any) -> None:
            self.seen = state["seen"]

    def draw() -> Any:
        return torch.rand(2).tolist(), random.random(), float(np.random.rand())

    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(4)
    expected = draw()
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(4)
    holdtrue.save(tmp_path / "c", greedy=Greedy())
    assert draw() == expected
    holdtrue.open(tmp_path / "c").restore(greedy=Greedy(), rng=True)
    assert draw() == expected


# -- random states -----------------------------------------------------------------------

DRAWS = (
    "import random, numpy as np, torch\n"
    "def draws():\n"
    "    return [torch.rand(3).tolist(), torch.randn(5).tolist(), random.random(),\n"
    "            random.gauss(0, 1), np.random.rand(3).tolist(), float(np.random.normal()),\n"
    "            torch.randperm(9).tolist()]\n"
)


def test_random_states_in_a_fresh_process(tmp_path: Path) -> None:
    scope: dict[str, Any] = {}
    exec(DRAWS, scope)
    torch.manual_seed(1), random.seed(2), np.random.seed(3)
    scope["draws"]()  # half of a pair of normal numbers is left in each
    own = {"drawn": np.random.default_rng(5), "noise": torch.Generator().manual_seed(6),
           "python": random.Random(7), "legacy": np.random.RandomState(8)}  # fmt: skip
    own["legacy"].normal(), own["python"].gauss(0, 1)
    holdtrue.save(tmp_path / "c", **own)

    def mine(parts: dict[str, Any]) -> Any:
        return [parts["drawn"].random(3).tolist(), torch.rand(2, generator=parts["noise"]).tolist(),
                parts["python"].gauss(0, 1), float(parts["legacy"].normal())]  # fmt: skip

    expected = [scope["draws"](), mine(own)]
    code = (
        DRAWS + "import holdtrue, sys\n"
        "own = {'drawn': np.random.default_rng(), 'noise': torch.Generator(),\n"
        "       'python': random.Random(), 'legacy': np.random.RandomState()}\n"
        f"holdtrue.open({str(tmp_path / 'c')!r}).restore(**own, rng=True)\n"
        "p = own\n"
        "print([draws(), [p['drawn'].random(3).tolist(),"
        " torch.rand(2, generator=p['noise']).tolist(),"
        " p['python'].gauss(0, 1), float(p['legacy'].normal())]])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == repr(expected)


def test_random_states_are_left_alone_unless_it_is_a_resume(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    holdtrue.save(tmp_path / "c", model=model)
    torch.manual_seed(8)
    expected = torch.rand(2)
    torch.manual_seed(8)
    holdtrue.open(tmp_path / "c").restore(model=model)
    assert torch.equal(torch.rand(2), expected)
