"""Files that did not change are linked; each checkpoint stays whole without the others."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import holdtrue
from holdtrue.engine import linking

FROZEN = "model-00001-of-00002.safetensors"


def nearly_frozen() -> tuple[nn.Module, torch.optim.Optimizer]:
    """95 % of its bytes are frozen."""
    model = nn.Sequential(*[nn.Linear(256, 256) for _ in range(38)], nn.Linear(256, 512))
    for parameter in model[:-1].parameters():
        parameter.requires_grad_(False)
    return model, torch.optim.SGD(model[-1].parameters(), lr=0.1)


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.randn(4, 256)).square().mean().backward()
    optimizer.step()


@pytest.fixture
def run(tmp_path: Path) -> holdtrue.Run:
    model, optimizer = nearly_frozen()
    run = holdtrue.Run(tmp_path / "run", model=model, optimizer=optimizer)
    for step in (1, 2, 3):
        train(model, optimizer)
        run.save(step, wait=step == 2)
    run.close()
    return run


def test_a_frozen_backbone_is_written_once(run: holdtrue.Run, figure: Any) -> None:
    costs = [holdtrue.open(f"{run.path}@{step}").manifest.cost for step in (1, 2, 3)]
    assert [cost.linked for cost in costs] == [0, 2, 2]  # the frozen shard, and the index
    share = costs[2].written / costs[0].written
    assert share <= 0.06
    figure("percent of a full save written, 95 % frozen", round(100 * share, 1))


@pytest.mark.parametrize("gone", [1, 2, 3])
def test_removing_any_leaves_the_others_whole(gone: int, run: holdtrue.Run) -> None:
    shutil.rmtree(run.path / f"step-{gone:09d}")
    for step in {1, 2, 3} - {gone}:
        assert holdtrue.verify(f"{run.path}@{step}").findings == ()
        model, _ = nearly_frozen()
        assert not holdtrue.open(f"{run.path}@{step}").restore(model=model).errors


def test_other_tools_find_all_of_it(run: holdtrue.Run) -> None:
    index = run.path / "step-000000003" / "model.safetensors.index.json"
    state = holdtrue.open(index)["model"]
    expected = run.parts["model"].state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], value) for name, value in expected.items())


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.EXDEV])
def test_without_hard_links_everything_is_written(
    code: int, run: holdtrue.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refused)
    saved = run.save(4, wait=True).wait()
    assert saved is not None
    assert saved.linked == ()
    assert saved.not_linked == os.strerror(code)
    assert holdtrue.verify(f"{run.path}@4").findings == ()


def test_thawing_moves_parameters_to_the_trained_file(run: holdtrue.Run) -> None:
    run.parts["model"][0].weight.requires_grad_(True)
    saved = run.save(4, wait=True).wait()
    assert saved is not None
    assert saved.linked == ()
    assert run.save(5, wait=True).linked
    assert holdtrue.verify(f"{run.path}@5").findings == ()


def test_a_checkpoint_removed_by_someone_else_is_not_linked(run: holdtrue.Run) -> None:
    run._shelf.earlier()  # its manifest is known, its files are gone
    for step in (1, 2):
        shutil.rmtree(run.path / f"step-{step:09d}")
    (run.path / "step-000000003" / FROZEN).unlink()
    assert FROZEN not in (run.save(4, wait=True).linked or ())
    assert holdtrue.verify(f"{run.path}@4").findings == ()


def test_a_file_that_rotted_is_written_anew(run: holdtrue.Run) -> None:
    file = run.path / "step-000000003" / FROZEN
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    with file.open("r+b") as opened:  # in place: as bit rot, or an edit, does
        opened.write(data)
    assert FROZEN not in (run.save(4, wait=True).linked or ())
    assert holdtrue.verify(f"{run.path}@4").findings == ()
    assert run.save(5, wait=True).linked
    assert holdtrue.verify(f"{run.path}@5").findings == ()


def test_what_was_read_once_is_not_read_again(
    run: holdtrue.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.save(4, wait=True)
    before = dict(run._shelf._proved)
    assert before
    monkeypatch.setattr(linking, "_stands", lambda earlier, *_: earlier.proved == before)
    assert run.save(5, wait=True).linked
