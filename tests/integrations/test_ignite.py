"""What Ignite's `Checkpoint` drops, what it may not drop, and who is refused."""

import pytest
import torch

pytest.importorskip("ignite")

from ignite.engine import Engine, Events  # noqa: E402
from ignite.handlers import Checkpoint  # noqa: E402
from killing import parts_that_differ  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

import holdtrue  # noqa: E402
from holdtrue.integrations.ignite import HoldtrueSaver  # noqa: E402


class Stopped(Exception):
    pass


def made(path, stop_at=None, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def step(engine, batch):
        if engine.state.iteration == stop_at:
            raise Stopped
        optimizer.zero_grad()
        loss = model(batch).square().sum()
        loss.backward()
        optimizer.step()
        return loss.item()

    trainer = Engine(step)
    return trainer, HoldtrueSaver(path, trainer, model=model, optimizer=optimizer, **options)


def loader():
    return DataLoader(torch.arange(24.0).reshape(8, 3), batch_size=2, shuffle=True)


@pytest.mark.parametrize("failing", [{3}, {2, 3}, {4}, {8}, {7, 8}])
def test_a_save_that_fails_removes_nothing_and_ends_nothing(failing, tmp_path, monkeypatch):
    trainer, saver = made(tmp_path / "run", on_error="warn")
    handler = Checkpoint(saver.parts, saver, n_saved=1)
    real, there = holdtrue.saving.write_checkpoint, []

    def write(*args, **kwargs):
        if trainer.state.iteration in failing:
            raise OSError(28, "No space left on device")
        return real(*args, **kwargs)

    def wait(engine):  # so that the iteration is the one that was saved
        saver.run.flush()
        there.append(saver.run.steps())

    monkeypatch.setattr(holdtrue.saving, "write_checkpoint", write)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, handler)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, wait)
    trainer.run(loader(), max_epochs=2)
    assert all(there)
    assert saver.run.steps()[-1] == max(set(range(1, 9)) - failing)
    assert holdtrue.verify(tmp_path / "run").ok


def test_what_ignite_drops_goes_once_the_next_is_durable(tmp_path):
    trainer, saver = made(tmp_path / "run")
    handler = Checkpoint(saver.parts, saver, n_saved=1)
    least = []

    def look(engine):
        if engine.state.iteration > 1:
            least.append(len(saver.run.steps()))

    trainer.add_event_handler(Events.ITERATION_COMPLETED, look)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, handler)
    trainer.run(loader(), max_epochs=2)
    assert min(least) >= 1  # Ignite asks for the removal first
    assert saver.run.steps() == [8]
    assert holdtrue.verify(tmp_path / "run").ok


def test_scores_are_metrics(tmp_path):
    trainer, saver = made(tmp_path / "run")
    handler = Checkpoint(
        saver.parts, saver, n_saved=2, score_name="gain",
        score_function=lambda engine: -engine.state.output,
        global_step_transform=lambda engine, _: engine.state.iteration,
    )  # fmt: skip
    trainer.add_event_handler(Events.ITERATION_COMPLETED, handler)
    trainer.run(loader(), max_epochs=2)
    gains = {step: holdtrue.open(f"{tmp_path}/run@{step}").metrics for step in saver.run.steps()}
    assert len(gains) == 2
    assert all(list(metrics) == ["gain"] for metrics in gains.values())


@pytest.mark.parametrize("stop_at", [5, 6, 9])
def test_a_plain_loader_is_resumed_at_the_end_of_an_epoch(tmp_path, stop_at):
    for name, stop in (("whole", None), ("cut", stop_at), ("cut", None)):
        trainer, saver = made(tmp_path / name, stop)
        handler = Checkpoint(saver.parts, saver, n_saved=None)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, handler)
        first = saver.resume()
        try:
            trainer.run(loader(), max_epochs=3)
        except Stopped:
            saver.close()
    assert first == (stop_at - 1) // 4 * 4
    assert parts_that_differ(tmp_path / "whole", tmp_path / "cut") == set()


def test_an_object_that_the_saver_does_not_know_is_refused(tmp_path):
    trainer, saver = made(tmp_path / "run")
    handler = Checkpoint({**saver.parts, "teacher": nn.Linear(1, 1)}, saver)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, handler)
    with pytest.raises(holdtrue.SaveError) as caught:
        trainer.run(loader(), max_epochs=1)
    (finding,) = caught.value.report.findings
    assert (finding.code, finding.where) == ("part-not-given", "teacher")
    assert not list(tmp_path.glob("run/step-*"))
