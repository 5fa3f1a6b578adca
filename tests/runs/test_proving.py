"""Forgotten state is found and named; a training that forgets nothing is found whole."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import forgetful
import pytest
import torch

import holdtrue

FORGOTTEN = {
    forgetful.torch_generator: "['own']",
    forgetful.numpy_generator: "['own']",
    forgetful.python_generator: "['own']",
    forgetful.global_counter: ".__globals__['COUNT']",
    forgetful.module_cache: ".__globals__['SEEN']",
    forgetful.attribute: "train_step.__self__.average",
    forgetful.closure_cell: ".__closure__['calls']",
    forgetful.default_argument: ".__defaults__['history']",
    forgetful.list_position: ".__closure__['places']",
    forgetful.opaque_position: ".__closure__['count']",
    forgetful.generator_position: ".__closure__['made']",
    forgetful.loader_position: ".__closure__['batches']",
    forgetful.environment_variable: "os.environ['FORGETFUL']",
    forgetful.scheduler: ".__closure__['made']",
    forgetful.gradients: ".grad",
    forgetful.norm_momentum: "run.parts['norm'].0.momentum",
    forgetful.module_attribute: "run.parts['counting'].calls",
    forgetful.first_batch: ".__globals__['SCALE']",
    forgetful.cached_function: ".__closure__['draw']",
    forgetful.loose_tensor: ".__closure__['average']",
    forgetful.history: ".__closure__['last']",
    forgetful.class_attribute: ".calls",
}
CHANCE = {
    forgetful.clock: "the clock",
    forgetful.entropy: "entropy",
    forgetful.unknown_chance: "another way",
}
# Nothing can put these back, so that the proof rests on their having moved.
LIKELY = {
    forgetful.opaque_position,
    forgetful.generator_position,
    forgetful.loader_position,
    forgetful.cached_function,
}
Make = Callable[[bool], forgetful.Made]


def prove(tmp_path: Path, made: forgetful.Made, **given: Any) -> holdtrue.Report:
    parts, train_step = made
    return holdtrue.prove_resume(holdtrue.Run(tmp_path / "run", **parts), train_step, **given)


@pytest.mark.parametrize("make", FORGOTTEN, ids=lambda make: make.__name__)
def test_forgotten_state_is_named(make: Make, tmp_path: Path, figure: Any) -> None:
    report = prove(tmp_path, make(False))
    assert not report.ok
    (finding,) = report.findings
    assert finding.code == "state-not-captured"
    assert FORGOTTEN[make] in finding.where
    assert "after step" in finding.why
    assert finding.saved != finding.expected
    assert finding.confidence == ("likely" if make in LIKELY else "certain")
    figure("kinds of forgotten state")


@pytest.mark.parametrize("make", CHANCE, ids=lambda make: make.__name__)
def test_what_is_not_deterministic_is_no_forgotten_state(make: Make, tmp_path: Path) -> None:
    (finding,) = prove(tmp_path, make(False)).findings
    assert finding.code == "not-deterministic"
    assert CHANCE[make] in finding.why


@pytest.mark.parametrize(
    "make", [*FORGOTTEN, *CHANCE, forgetful.log_only], ids=lambda make: make.__name__
)
def test_its_twin_is_whole(make: Make, tmp_path: Path, figure: Any) -> None:
    report = prove(tmp_path, make(True))
    assert report.findings == ()
    assert any("fresh process" in line for line in report.not_checked)  # no name to find it by
    figure("healthy trainings")


def test_everything_is_put_back(tmp_path: Path) -> None:
    parts, train_step = forgetful.numpy_generator(False)
    train_step(0)
    model, own = parts["model"], train_step.__closure__
    holdtrue.save(tmp_path / "before", **parts)
    gradients = [p.grad.clone() for p in model.parameters()]
    states = [cell.cell_contents for cell in own if hasattr(cell.cell_contents, "__closure__")]
    generator = states[0].__closure__[0].cell_contents
    drawn = generator.bit_generator.state
    run = holdtrue.Run(tmp_path / "run", **parts)
    assert not holdtrue.prove_resume(run, train_step).ok
    holdtrue.save(tmp_path / "after", **parts)
    assert holdtrue.diff(tmp_path / "before", tmp_path / "after").equal
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert generator.bit_generator.state == drawn
    assert not run.path.exists()


def test_the_first_tensor_that_differs_is_named(tmp_path: Path) -> None:
    model, own = torch.nn.Linear(2, 1), torch.Generator()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def train_step() -> None:
        optimizer.zero_grad()
        model(torch.rand(4, 2, generator=own)).sum().backward()
        optimizer.step()

    (finding,) = prove(tmp_path, ({"model": model, "optimizer": optimizer}, train_step)).findings
    assert "after step 4 model/weight is" in finding.why
    parts = "model=model, optimizer=optimizer, own=own"
    assert finding.command == f"run = holdtrue.Run({str(tmp_path / 'run')!r}, {parts})"
    assert "largest difference" in finding.why


def test_a_step_that_fails_leaves_all_as_it_was(tmp_path: Path) -> None:
    parts, train_step = forgetful.closure_cell(True)
    before = parts["model"].weight.clone()

    def failing(step: int) -> float:
        if step == 2:
            raise ZeroDivisionError
        value: float = train_step(step)
        return value

    with pytest.raises(ZeroDivisionError):
        prove(tmp_path, (parts, failing))
    assert torch.equal(parts["model"].weight, before)


def test_an_iterator_that_is_made_after_each_resume(tmp_path: Path) -> None:
    values = [i / 10 for i in range(100)]
    state = {"at": 0}
    places = iter(values)

    def begin() -> None:
        nonlocal places
        places = iter(values[state["at"] :])

    def factor(step: int) -> float:
        state["at"] += 1
        return next(places)

    made = forgetful.training(factor, state=state)
    assert prove(tmp_path, made, after_resume=begin).findings == ()


def test_what_draws_between_the_resume_and_the_first_step_is_told(tmp_path: Path) -> None:
    made = forgetful.training(lambda step: torch.rand(()).item())
    (finding,) = prove(tmp_path, made, after_resume=lambda: torch.rand(1)).findings
    assert finding.code == "resume-differs"
    assert "after_resume draws from the random state of torch" in finding.why


def test_a_scaler_and_the_like_count_as_one(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 1)
    average = torch.optim.swa_utils.AveragedModel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    own = torch.Generator()

    def train_step() -> torch.Tensor:
        optimizer.zero_grad()
        loss: torch.Tensor = model(torch.rand(4, 2, generator=own)).square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        average.update_parameters(model)
        return loss

    parts = {"model": model, "average": average, "optimizer": optimizer, "scaler": scaler}
    (finding,) = prove(tmp_path / "a", (parts, train_step)).findings
    assert finding.where == "train_step.__closure__['own']"
    assert prove(tmp_path / "b", ({**parts, "own": own}, train_step)).findings == ()


def test_two_forgotten_states_are_both_named(tmp_path: Path) -> None:
    one, other = torch.Generator(), torch.Generator()

    def factor(step: int) -> float:
        return (torch.rand((), generator=one) + torch.rand((), generator=other)).item()

    report = prove(tmp_path, forgetful.training(factor))
    assert [f.where.rpartition("__closure__")[2] for f in report.findings] == [
        "['one']",
        "['other']",
    ]


def test_a_step_that_saves_leaves_the_run_alone(tmp_path: Path) -> None:
    parts, train_step = forgetful.closure_cell(True)
    run = holdtrue.Run(tmp_path / "run", preemption=True, **parts)
    run.save(7)

    def saving(step: int) -> float:
        value: float = train_step(step)
        run.save(step + 1)
        run.stop_if_asked(step + 1)
        return value

    assert holdtrue.prove_resume(run, saving).findings == ()
    assert run.steps() == [7]
    run.close()


def test_two_arguments_are_refused(tmp_path: Path) -> None:
    run = holdtrue.Run(tmp_path / "run", model=torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="step's number or nothing"):
        holdtrue.prove_resume(run, lambda a, b: None)
    with pytest.raises(ValueError, match="from 1"):
        holdtrue.prove_resume(run, lambda: None, 0)


@pytest.mark.parametrize("most", [10**6, 16, 20, 26], ids=str)
def test_a_count_in_a_file_is_not_put_down_to_the_clock(most: int, tmp_path: Path) -> None:
    """Also where it stops to count in the middle of a trial with the clock held still."""
    (finding,) = prove(tmp_path, forgetful.file_count(tmp_path, most)).findings
    assert finding.confidence != "certain"
    assert finding.code in ("not-deterministic", "resume-differs")
    assert "with that held still" not in finding.why
    if finding.code == "not-deterministic":
        assert "a file that the step writes" in finding.why
        assert "counts in a file" in finding.fix
