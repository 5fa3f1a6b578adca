"""Datasets and loaders for the tests of resuming in the middle of an epoch."""

import random
from typing import Any

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    WeightedRandomSampler,
    get_worker_info,
)

SIZE = 23


class Numbers(Dataset[Any]):
    """Its samples are its indices, each with random numbers of all three kinds."""

    def __init__(self, size: int = SIZE, random_too: bool = True) -> None:
        self.size, self.random_too, self.read = size, random_too, []

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        self.read.append(index)
        noise = (torch.rand(()).item(), float(np.random.rand()), random.random())
        info = get_worker_info()
        assert info is None or info.dataset is self
        return torch.tensor(
            [index, *(noise if self.random_too else (0, 0, 0))], dtype=torch.float64
        )


class Backwards(Sampler[int]):
    """A sampler of the user's own; draws from Python's global random numbers."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Any:
        order = list(range(self.size))
        random.shuffle(order)
        yield from order


class Ragged(Sampler[list[int]]):
    """Batches of uneven sizes; one list that is filled again and again."""

    def __len__(self) -> int:
        return 9

    def __iter__(self) -> Any:
        batch: list[int] = []
        for n in range(9):
            batch[:] = np.random.choice(SIZE, 1 + n % 4, replace=False).tolist()
            yield batch


def seed_by_worker(worker: int) -> None:
    info: Any = get_worker_info()
    np.random.seed((torch.initial_seed() + 7 * info.id) % 2**32)


def stacked(samples: Any) -> dict[str, Any]:
    return {"x": torch.stack(samples), "jitter": torch.rand(2, dtype=torch.float64)}


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def shuffled(**more: Any) -> DataLoader[Any]:
    return DataLoader(Numbers(), batch_size=4, shuffle=True, **more)


def with_generator(**more: Any) -> DataLoader[Any]:
    return DataLoader(Numbers(), batch_size=3, shuffle=True, generator=generator(), **more)


def weighted(**more: Any) -> DataLoader[Any]:
    sampler = WeightedRandomSampler([1.0 + i for i in range(SIZE)], 17, generator=generator())
    return DataLoader(Numbers(), batch_size=5, sampler=sampler, drop_last=True, **more)


def replacing(**more: Any) -> DataLoader[Any]:
    data = Numbers()
    return DataLoader(data, batch_size=4, sampler=RandomSampler(data, True, 40), **more)


def own_sampler(**more: Any) -> DataLoader[Any]:
    return DataLoader(Numbers(), batch_size=4, sampler=Backwards(SIZE), **more)


def own_batches(**more: Any) -> DataLoader[Any]:
    return DataLoader(Numbers(), batch_sampler=Ragged(), **more)


def batch_sampler(**more: Any) -> DataLoader[Any]:
    batches = BatchSampler(RandomSampler(range(SIZE), generator=generator()), 5, drop_last=False)
    return DataLoader(Numbers(), batch_sampler=batches, **more)


def distributed(**more: Any) -> DataLoader[Any]:
    data = Numbers()
    sampler = DistributedSampler(data, num_replicas=2, rank=1, seed=3)
    return DataLoader(data, batch_size=2, sampler=sampler, **more)


def unbatched(**more: Any) -> DataLoader[Any]:
    return DataLoader(Numbers(), batch_size=None, shuffle=True, **more)


def in_order(**more: Any) -> DataLoader[Any]:
    data = Numbers()
    return DataLoader(data, batch_size=4, sampler=SequentialSampler(data), **more)


def collated(**more: Any) -> DataLoader[Any]:
    return DataLoader(Numbers(), batch_size=4, shuffle=True, collate_fn=stacked, **more)


KINDS = [
    shuffled,
    with_generator,
    weighted,
    replacing,
    own_sampler,
    own_batches,
    batch_sampler,
    distributed,
    unbatched,
    in_order,
    collated,
]


class Stream(IterableDataset[Any]):
    """Knows its place, and shuffles within a window from a generator of its own."""

    def __init__(self, size: int = SIZE) -> None:
        self.size, self.at, self.read = size, 0, 0

    def __iter__(self) -> Any:
        while self.at < self.size:
            self.at += 1
            self.read += 1
            yield torch.tensor([self.at, torch.rand(()).item()], dtype=torch.float64)
        self.at = 0

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]
