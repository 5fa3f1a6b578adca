"""ResumableLoader: the very next batch, whatever the loader is; nothing is read twice."""

import random
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loading import KINDS, SIZE, Numbers, Stream, distributed, in_order, seed_by_worker, shuffled
from torch.utils.data import DataLoader, IterableDataset, Sampler

import holdtrue
from holdtrue import ResumableLoader, Run

torch.manual_seed(0)


def seed(number: int) -> None:
    torch.manual_seed(number)
    np.random.seed(number)
    random.seed(number)


def flat(batch: Any) -> list[float]:
    if isinstance(batch, dict):
        return [n for value in batch.values() for n in flat(value)]
    return batch.flatten().tolist()


def hand_out(loader: ResumableLoader, count: int) -> list[list[float]]:
    """The next batches, over the ends of epochs; the training draws random numbers meanwhile."""
    got: list[list[float]] = []
    while len(got) < count:
        before = len(got)
        told = getattr(loader.loader.sampler, "set_epoch", None)
        if told:
            told(loader.epoch)
        for batch in islice(loader, count - len(got)):
            got.append([*flat(batch), torch.rand(()).item(), random.random()])
        assert len(got) > before or loader.batches == 0
    return got


def batches_left_read(whole: list[Any], done: int) -> int:
    return len(whole) - done


def same_as_uninterrupted(make: Any, done: int, more: int, path: Path) -> None:
    seed(1)
    whole = hand_out(ResumableLoader(make()), done + more)

    seed(1)
    loader = ResumableLoader(make())
    before = hand_out(loader, done)
    Run(path, loader=loader).save(done, wait=True)
    hand_out(loader, 2)  # what goes on here is lost with the process

    seed(99)
    dataset = (fresh := ResumableLoader(make())).loader.dataset
    run = Run(path, loader=fresh)
    assert run.resume() == done
    after = hand_out(fresh, more)
    assert before + after == whole
    if fresh.loader.num_workers == 0:
        handed = [i for batch in after for i in indices(batch, fresh)]
        assert dataset.read == handed  # not one sample more


def indices(batch: list[float], loader: ResumableLoader) -> list[int]:
    body = batch[:-4] if loader.loader.collate_fn.__name__ == "stacked" else batch[:-2]
    return [int(i) for i in body[::4]]


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("done", [1, 5, 6, 13])
def test_goes_on_with_the_very_next_batch(make: Any, done: int, tmp_path: Path) -> None:
    same_as_uninterrupted(make, done, 14, tmp_path / "run")


WORKERS = [
    {},
    {"persistent_workers": True},
    {"prefetch_factor": 3, "worker_init_fn": seed_by_worker},
    {"persistent_workers": True, "worker_init_fn": seed_by_worker, "num_workers": 2},
]


@pytest.mark.parametrize("workers", WORKERS, ids=["plain", "persistent", "seeded", "both"])
@pytest.mark.parametrize(("kind", "done"), [(0, 3), (1, 8), (4, 1), (7, 6), (10, 7), (10, 12)])
def test_workers_go_on_too_with_what_they_draw_at_random(
    kind: int, done: int, workers: dict[str, Any], tmp_path: Path
) -> None:
    more = {"num_workers": 2, **workers}
    same_as_uninterrupted(lambda: KINDS[kind](**more), done, 9, tmp_path / "run")


def test_workers_do_not_read_what_was_handed_out(tmp_path: Path) -> None:
    def made() -> ResumableLoader:
        return ResumableLoader(DataLoader(Logging(tmp_path / "log"), batch_size=2, num_workers=2))

    loader = made()
    list(islice(loader, 7))
    state = loader.state_dict()
    del loader
    (tmp_path / "log").unlink()
    fresh = made()
    fresh.load_state_dict(state)
    assert len(list(fresh)) == 5
    read = sorted(int(line) for line in (tmp_path / "log").read_text().split())
    assert read == list(range(14, SIZE))


class Logging(Numbers):
    """Writes down, in whichever process, what is read."""

    def __init__(self, log: Path) -> None:
        super().__init__()
        self.log = log

    def __getitem__(self, index: int) -> Any:
        with self.log.open("a") as file:
            file.write(f"{index}\n")
        return super().__getitem__(index)


# Without `own_batches`: a plain loader draws its order between the samples.
@pytest.mark.parametrize("make", [kind for kind in KINDS if kind.__name__ != "own_batches"])
@pytest.mark.parametrize("workers", [0, 2])
def test_hands_out_what_the_plain_loader_does(make: Any, workers: int) -> None:
    seed(3)
    plain = make(num_workers=workers)
    expected = [[flat(b) for b in plain] for _ in range(2)]
    seed(3)
    loader = ResumableLoader(make(num_workers=workers))
    assert [[flat(b) for b in loader] for _ in range(2)] == expected
    assert loader.epoch == 2


@settings(max_examples=60, deadline=None)
@given(
    kind=st.integers(0, len(KINDS) - 1),
    stops=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    more=st.integers(1, 8),
)
def test_stopped_again_and_again(kind: int, stops: list[int], more: int) -> None:
    make = KINDS[kind]
    seed(7)
    whole = hand_out(ResumableLoader(make()), sum(stops) + more)
    seed(7)
    loader, got = ResumableLoader(make()), []
    for stop in stops:
        got += hand_out(loader, stop)
        state, random_states = loader.state_dict(), states()
        seed(1234)
        loader = ResumableLoader(make())
        loader.load_state_dict(state)
        assert loader.state_dict().keys() == state.keys()
        set_states(random_states)
    assert got + hand_out(loader, more) == whole


def states() -> Any:
    return torch.get_rng_state(), np.random.get_state(), random.getstate()


def set_states(kept: Any) -> None:
    torch.set_rng_state(kept[0])
    np.random.set_state(kept[1])
    random.setstate(kept[2])


@pytest.mark.parametrize("done", [0, 1, 5, 6, 7])
def test_a_stream_that_knows_its_place(done: int, tmp_path: Path) -> None:
    def made() -> ResumableLoader:
        return ResumableLoader(DataLoader(Stream(), batch_size=4))

    seed(2)
    whole = hand_out(made(), done + 8)
    seed(2)
    loader = made()
    before = hand_out(loader, done)
    Run(tmp_path / "run", loader=loader).save(done, wait=True)
    seed(98)
    fresh = made()
    Run(tmp_path / "run", loader=fresh).resume()
    after = hand_out(fresh, 8)
    assert before + after == whole
    assert fresh.loader.dataset.read == sum((len(b) - 2) // 2 for b in after)


class Endless(Sampler[int]):
    def __iter__(self) -> Any:
        while True:
            yield 0


class EndlessWithLength(Endless):
    def __len__(self) -> int:
        return 5


class Deaf(IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield from range(5)


@pytest.mark.parametrize(
    ("loader", "says"),
    [
        (lambda: DataLoader(Deaf()), "StatefulDataLoader"),
        (lambda: DataLoader(Stream(), num_workers=2), "StatefulDataLoader"),
        (lambda: shuffled(num_workers=2, in_order=False), "in_order=True"),
        (lambda: DataLoader(Numbers(), sampler=Endless(), batch_size=None), "__len__"),
        (lambda: [1, 2], "DataLoader"),
    ],
)
def test_a_loader_whose_place_cannot_be_known_is_refused(loader: Any, says: str) -> None:
    with pytest.raises(holdtrue.HoldtrueError) as caught:
        ResumableLoader(loader())
    (finding,) = caught.value.report.findings
    assert finding.code == "loader-not-resumable"
    assert says in finding.command + finding.fix


def test_an_endless_sampler_that_claims_a_length_is_refused_when_drawn() -> None:
    loader = DataLoader(Numbers(), sampler=EndlessWithLength(), batch_size=None)
    with pytest.raises(holdtrue.HoldtrueError) as caught:
        next(iter(ResumableLoader(loader)))
    assert caught.value.report.findings[0].code == "loader-not-resumable"


def saved_in_the_middle(path: Path, loader: DataLoader[Any], batches: int = 2) -> list[list[float]]:
    resumable = ResumableLoader(loader)
    got = [flat(b) for b in islice(resumable, batches)]
    Run(path, loader=resumable).save(1, wait=True)
    return got


def test_another_batch_size_is_refused_or_cuts_the_rest_anew(tmp_path: Path) -> None:
    used = saved_in_the_middle(tmp_path / "run", shuffled())
    other = ResumableLoader(DataLoader(Numbers(), batch_size=5, shuffle=True))
    run = Run(tmp_path / "run", loader=other)
    with pytest.raises(holdtrue.RestoreError) as caught:
        run.resume()
    assert [f.code for f in caught.value.report.errors] == ["loader-changed"]
    assert other.batches == 0
    run.resume(allow=["loader-changed"])
    rest = [flat(b) for b in islice(other, 1)]
    state = other.state_dict()
    third = ResumableLoader(DataLoader(Numbers(), batch_size=5, shuffle=True))
    third.load_state_dict(state)
    rest += [flat(b) for b in third]
    assert [len(b) // 4 for b in rest] == [5, 5, 5]
    assert sorted(int(i) for b in used + rest for i in b[::4]) == list(range(SIZE))
    assert [
        i for i in other.loader.dataset.read if i in {int(n) for b in used for n in b[::4]}
    ] == []


def test_another_dataset_begins_the_epoch_anew_when_allowed(tmp_path: Path) -> None:
    saved_in_the_middle(tmp_path / "run", shuffled())
    other = ResumableLoader(DataLoader(Numbers(30), batch_size=4, shuffle=True))
    Run(tmp_path / "run", loader=other).resume(allow=["loader-changed"])
    assert sorted(int(i) for b in other for i in flat(b)[::4]) == list(range(30))


def test_other_workers_give_the_same_samples_and_it_is_said(tmp_path: Path) -> None:
    seed(4)
    whole = [flat(b)[::4] for b in ResumableLoader(shuffled())]
    seed(4)
    used = saved_in_the_middle(tmp_path / "run", shuffled())
    other = ResumableLoader(shuffled(num_workers=2))
    run = Run(tmp_path / "run", loader=other)
    run.resume()
    assert run.report is not None
    assert "loader-workers-changed" in {f.code for f in run.report.findings}
    assert [b[::4] for b in used] + [flat(b)[::4] for b in other] == whole


def test_another_order_of_the_same_sampler_is_found(tmp_path: Path) -> None:
    def made(weights: list[float]) -> ResumableLoader:
        sampler = torch.utils.data.WeightedRandomSampler(weights, SIZE)
        return ResumableLoader(DataLoader(Numbers(), batch_size=4, sampler=sampler))

    first = made([1.0] * SIZE)
    list(islice(first, 2))
    second = made([1.0 + i for i in range(SIZE)])
    second.load_state_dict(first.state_dict())
    before = states()
    with pytest.raises(holdtrue.RestoreError) as caught:
        iter(second)
    assert caught.value.report.errors[0].code == "loader-order-differs"
    assert torch.equal(before[0], torch.get_rng_state())
    second.restart_epoch()
    assert len(list(second)) == 6


def test_left_early_the_next_loop_is_the_next_epoch() -> None:
    loader = ResumableLoader(in_order())
    list(islice(loader, 2))
    assert (loader.epoch, loader.batches) == (0, 2)
    assert int(flat(next(iter(loader)))[0]) == 0
    assert (loader.epoch, loader.batches) == (1, 1)


@pytest.mark.parametrize("state", [{}, {"epoch": -1}, {"epoch": "x"}])
def test_what_is_no_place_is_refused_and_nothing_changes(state: dict[str, Any]) -> None:
    loader = ResumableLoader(shuffled())
    good = loader.state_dict()
    with pytest.raises(holdtrue.RestoreError) as caught:
        loader.load_state_dict({**good, **state} if state else state)
    assert caught.value.report.errors[0].code == "loader-state-unusable"


def test_set_epoch_is_told_to_the_sampler_of_the_fresh_process(tmp_path: Path) -> None:
    loader = ResumableLoader(distributed())
    for epoch in range(2):
        loader.loader.sampler.set_epoch(epoch)
        got = [flat(b)[::4] for b in islice(loader, 6 - 3 * epoch)]
    fresh = ResumableLoader(distributed())
    fresh.load_state_dict(loader.state_dict())
    assert fresh.loader.sampler.epoch == 1
    whole = distributed()
    whole.sampler.set_epoch(1)
    assert got + [flat(b)[::4] for b in fresh] == [flat(b)[::4] for b in whole]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("done", [3, 8])
def test_the_stateful_loader_of_torchdata_in_a_run(done: int, workers: int, tmp_path: Path) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader

    def made() -> Any:
        return stateful(Numbers(random_too=False), batch_size=4, shuffle=True, num_workers=workers)

    def forever(loader: Any) -> Any:
        while True:
            yield from loader

    seed(6)
    loader = made()
    source = forever(loader)
    for _ in range(done):
        next(source)
    Run(tmp_path, loader=loader).save(done, wait=True)
    whole = [flat(next(source)) for _ in range(6)]
    seed(97)
    fresh = made()
    Run(tmp_path, loader=fresh).resume()
    assert [flat(b) for b in islice(forever(fresh), 6)] == whole


def test_the_code_wins_for_the_settings_of_loaders_too(tmp_path: Path) -> None:
    seed(6)
    saved_in_the_middle(tmp_path, shuffled())
    other = ResumableLoader(DataLoader(Numbers(), batch_size=3, shuffle=True))
    run = Run(tmp_path, loader=other)
    run.resume(on_conflict="code")
    assert run.report is not None
    assert [f.severity for f in run.report.findings if f.code == "loader-changed"] == ["warning"]
    assert [len(flat(b)) // 4 for b in other] == [3, 3, 3, 3, 3]


class Counting(Numbers):
    """Has a generator of its own, and says what it needs to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.own = random.Random(3)

    def __getitem__(self, index: int) -> Any:
        return torch.cat([super().__getitem__(index), torch.tensor([self.own.random()])])

    def state_dict(self) -> dict[str, Any]:
        return {"own": self.own.getstate()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        version, words, gauss = state["own"]
        self.own.setstate((version, tuple(words), gauss))


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"num_workers": 2},
        pytest.param(
            {"num_workers": 2, "persistent_workers": True, "multiprocessing_context": "spawn"},
            marks=pytest.mark.slow,
        ),
    ],
    ids=str,
)
def test_a_dataset_that_says_what_it_needs(more: dict[str, Any], tmp_path: Path) -> None:
    def made() -> ResumableLoader:
        return ResumableLoader(DataLoader(Counting(), batch_size=4, shuffle=True, **more))

    seed(8)
    whole = [flat(b) for b in made()]
    seed(8)
    loader = made()
    before = [flat(b) for b in islice(loader, 3)]
    Run(tmp_path, loader=loader).save(3, wait=True)
    del loader
    fresh = made()
    Run(tmp_path, loader=fresh).resume()
    assert before + [flat(b) for b in fresh] == whole


def test_an_error_in_the_dataset_comes_through_and_the_place_stays() -> None:
    class Broken(Numbers):
        def __getitem__(self, index: int) -> Any:
            if index == 9:
                raise KeyError("no such sample")
            return super().__getitem__(index)

    loader = ResumableLoader(DataLoader(Broken(), batch_size=4))
    with pytest.raises(KeyError, match="no such sample"):
        list(loader)
    assert (loader.epoch, loader.batches) == (0, 2)


@pytest.mark.parametrize("make", [shuffled, KINDS[4]])
def test_a_restore_that_fails_elsewhere_leaves_the_place(make: Any, tmp_path: Path) -> None:
    class Refusing:
        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            raise RuntimeError("not now")

    loader = ResumableLoader(make())
    source = iter(loader)
    next(source)
    Run(tmp_path, a=loader, z=Refusing()).save(1, wait=True)
    kept = loader.state_dict()
    seed(5)
    next(source)
    ahead = ResumableLoader(make())
    ahead.load_state_dict(loader.state_dict())
    expected = [flat(b)[::4] for b in ahead]
    with pytest.raises(holdtrue.RestoreError):
        Run(tmp_path, a=loader, z=Refusing()).resume()
    assert (loader.epoch, loader.batches) == (0, 2)
    left = loader.state_dict()["order"]
    assert left["digest"] == kept["order"]["digest"]
    assert [flat(b)[::4] for b in source] == expected
    if left["rest"] is not None:
        assert len(left["rest"]["lengths"]) == 4
