"""Changed hyper-parameters: which win, and that it is said; learning rates stay one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler as schedules

from holdtrue import Run

STEPS, MORE = 6, 5


def chained(optimizer: Any, step: int = 3) -> Any:
    inner = [schedules.StepLR(optimizer, step), schedules.ExponentialLR(optimizer, 0.9)]
    return schedules.ChainedScheduler(inner)


def sequential(optimizer: Any, warm: int = 3) -> Any:
    inner = [schedules.LinearLR(optimizer, 0.1), schedules.CosineAnnealingLR(optimizer, 20)]
    return schedules.SequentialLR(optimizer, inner, [warm])


KINDS: dict[str, Any] = {
    "lambda": lambda o, rate=0.9: schedules.LambdaLR(o, lambda n: rate**n),
    "step": lambda o, size=2: schedules.StepLR(o, size),
    "cosine": lambda o, n=20: schedules.CosineAnnealingLR(o, n, eta_min=1e-4),
    "one-cycle": lambda o, n=30: schedules.OneCycleLR(o, 0.5, total_steps=n),
    "cyclic": lambda o, n=4: schedules.CyclicLR(o, 0.01, 0.1, step_size_up=n),
    "linear": lambda o, n=9: schedules.LinearLR(o, 0.2, total_iters=n),
    "polynomial": lambda o, n=12: schedules.PolynomialLR(o, n),
    "restarts": lambda o, n=4: schedules.CosineAnnealingWarmRestarts(o, n),
    "chained": chained,
    "sequential": sequential,
}
CHANGED = {"lambda": 0.5, "step": 4, "cosine": 9, "one-cycle": 50, "cyclic": 2, "linear": 3,
           "polynomial": 40, "restarts": 7, "chained": 2, "sequential": 5}  # fmt: skip


def parts(kind: str, lr: float = 0.1, more: tuple[Any, ...] = (), **settings: Any) -> Any:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, **{"momentum": 0.9, **settings})
    return {
        "model": model,
        "optimizer": optimizer,
        "scheduler": KINDS[kind](optimizer, *more),
    }


def advance(made: dict[str, Any], steps: int) -> list[float]:
    rates = []
    for _ in range(steps):
        made["optimizer"].zero_grad()
        made["model"](torch.randn(4, 3)).square().mean().backward()
        made["optimizer"].step()
        made["scheduler"].step()
        rates.append(float(made["optimizer"].param_groups[0]["lr"]))
    return rates


def saved(path: Path, kind: str, **settings: Any) -> list[float]:
    made = parts(kind, **settings)
    run = Run(path, **made)
    advance(made, STEPS)
    run.save(STEPS, wait=True)
    return advance(made, MORE)


def resumed(path: Path, made: dict[str, Any], **given: Any) -> dict[str, Any]:
    run = Run(path, **made)
    assert run.resume(**given) == STEPS
    assert run.report is not None
    scheduler, group = made["scheduler"], made["optimizer"].param_groups[0]
    assert scheduler.get_last_lr()[0] == pytest.approx(float(group["lr"]))
    return {f.code: f for f in run.report.findings}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wins", ["file", "code"])
def test_without_a_conflict_nothing_differs(kind: str, wins: Any, tmp_path: Path) -> None:
    rates = saved(tmp_path, kind)
    made = parts(kind)
    found = resumed(tmp_path, made, on_conflict=wins)
    assert not [code for code in found if "settings" in code or "rate" in code]
    assert advance(made, MORE) == rates


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_wins_and_says_so(kind: str, tmp_path: Path) -> None:
    rates = saved(tmp_path, kind)
    made = parts(kind, 0.3, (CHANGED[kind],) if kind != "lambda" else ())
    found = resumed(tmp_path, made)
    assert {"settings-from-file", "scheduler-settings-from-file"} & found.keys()
    assert advance(made, MORE) == rates


@pytest.mark.parametrize("kind", KINDS)
def test_the_code_wins_from_the_saved_step_on(kind: str, tmp_path: Path) -> None:
    saved(tmp_path, kind)
    more = (CHANGED[kind],)
    whole = parts(kind, 0.3, more)
    rates = advance(whole, STEPS + MORE)
    made = parts(kind, 0.3, more)
    found = resumed(tmp_path, made, on_conflict="code")
    assert "settings-from-code" in found
    assert advance(made, MORE) == rates[STEPS:]
    momentum = [s["momentum_buffer"] for s in made["optimizer"].state.values()]
    assert all(m.any() for m in momentum)


@pytest.mark.parametrize("wins", ["file", "code"])
def test_other_settings_of_the_optimizer(wins: Any, tmp_path: Path) -> None:
    rates = saved(tmp_path, "step", weight_decay=0.1)
    made = parts("step", weight_decay=0.5, momentum=0.8)
    found = resumed(tmp_path, made, on_conflict=wins)
    finding = found[f"settings-from-{wins}"]
    assert [p.partition(":")[0] for p in finding.places] == [
        "optimizer.groups[0].momentum",
        "optimizer.groups[0].weight_decay",
    ]
    group = made["optimizer"].param_groups[0]
    expected = (0.1, 0.9) if wins == "file" else (0.5, 0.8)
    assert (group["weight_decay"], group["momentum"]) == expected
    assert advance(made, MORE) == rates  # the learning rate was no conflict


def plateau(patience: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    scheduler = schedules.ReduceLROnPlateau(optimizer, patience=patience)
    return {"model": model, "optimizer": optimizer, "scheduler": scheduler}


@pytest.mark.parametrize(("wins", "patience", "rate"), [("file", 1, 0.01), ("code", 7, 0.1)])
def test_a_schedule_that_goes_by_metrics(
    wins: Any, patience: int, rate: float, tmp_path: Path
) -> None:
    made = plateau(1)
    for _ in range(4):
        made["optimizer"].step()
        made["scheduler"].step(1.0)
    Run(tmp_path, **made).save(STEPS, wait=True)
    fresh = plateau(7)
    run = Run(tmp_path, **fresh)
    run.resume(on_conflict=wins)
    scheduler = fresh["scheduler"]
    assert (scheduler.patience, scheduler.num_bad_epochs) == (patience, 1)
    assert fresh["optimizer"].param_groups[0]["lr"] == pytest.approx(rate)
    assert scheduler.best == 1.0


def test_a_schedule_that_has_gone_on_already_cannot_be_brought_there(tmp_path: Path) -> None:
    saved(tmp_path, "cosine")
    made = parts("cosine", more=(9,))
    advance(made, STEPS + 1)
    import holdtrue

    before = made["model"].weight.clone()
    with pytest.raises(holdtrue.RestoreError) as caught:
        Run(tmp_path, **made).resume(on_conflict="code")
    assert caught.value.report.errors[0].code == "scheduler-stepped-already"
    assert torch.equal(made["model"].weight, before)


def test_a_schedule_built_after_the_optimizer_was_restored(tmp_path: Path) -> None:
    rates = saved(tmp_path, "lambda")
    made = parts("lambda")
    run = Run(tmp_path, model=made["model"], optimizer=made["optimizer"])
    run.resume()
    late = KINDS["lambda"](made["optimizer"])
    report = __import__("holdtrue").open(tmp_path).restore(scheduler=late)
    # LambdaLR begins anew from the base rate: the two differ until its next step.
    assert "learning-rate-differs" in {f.code for f in report.findings}
    assert advance({**made, "scheduler": late}, MORE) == rates


def test_another_word_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, "step")
    with pytest.raises(ValueError, match="on_conflict"):
        Run(tmp_path, **parts("step")).resume(on_conflict="mine")  # type: ignore[arg-type]
