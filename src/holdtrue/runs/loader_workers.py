"""What runs where the samples are read: in the workers of a loader, or in the process itself.

A worker sends its random states along with each batch after which they are others. A worker that
takes its place later begins with those: what is skipped need not be read to get there.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from torch.utils.data._utils.fetch import _MapDatasetFetcher

from holdtrue.runs import loader_random

Task = tuple[Any] | None  # the index, or the indices, of one batch; None: nothing to be done


class Reading:
    """The dataset as the inner loader sees it: one task in, one batch out."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.dataset: Any = loader.dataset
        # torch's own way of reading, so that `__getitems__` and the like work as they do there.
        self._fetcher: Any = _MapDatasetFetcher(
            loader.dataset, loader.batch_size is not None or loader.batch_sampler is not None,
            loader.collate_fn, loader.drop_last,
        )  # fmt: skip
        self._told: dict[str, Any] | None = None

    def __getitem__(self, task: Task) -> tuple[Any, dict[str, Any] | None]:
        """The batch, and in a worker its state where it is another than was told before."""
        batch = None if task is None else self._fetcher.fetch(task[0])
        if get_worker_info() is None:
            return batch, None
        state = worker_state(self.dataset)
        changed = state if state != self._told else None
        self._told = state
        return batch, changed

    def begin(self, state: Mapping[str, Any] | None) -> None:
        """In a worker, after it was seeded: take the place of the one that left this state."""
        if state is not None:
            loader_random.put(state["random"])
            if "dataset" in state:
                self.dataset.load_state_dict(state["dataset"])
        self._told = worker_state(self.dataset)


class Stream(IterableDataset[Any]):
    """A dataset that is read from beginning to end, and whether the end was met.

    The last batch is short, and then the dataset has begun again before the batch is handed out.
    """

    def __init__(self, dataset: Any) -> None:
        self._dataset, self.ended = dataset, False

    def __iter__(self) -> Iterator[Any]:
        self.ended = False
        yield from self._dataset
        self.ended = True


class WorkerStart:
    """What each worker does first: the loader's own function, then its place in the training."""

    def __init__(
        self, given: Callable[[int], None] | None, states: Mapping[int, Mapping[str, Any]]
    ) -> None:
        self._given, self._states = given, states

    def __call__(self, worker: int) -> None:
        info: Any = get_worker_info()
        reading: Reading = info.dataset
        # What the caller's own functions expect to find there; torch freezes it against mistakes.
        object.__setattr__(info, "dataset", reading.dataset)
        if self._given is not None:
            self._given(worker)
        reading.begin(self._states.get(worker))


def worker_state(dataset: Any) -> dict[str, Any]:
    """The random states here, and what the dataset gives of itself."""
    state: dict[str, Any] = {"random": loader_random.take()}
    if keeps_state(dataset):
        state["dataset"] = dataset.state_dict()
    return state


def keeps_state(value: Any) -> bool:
    return callable(getattr(value, "state_dict", None)) and callable(
        getattr(value, "load_state_dict", None)
    )


def as_it_is(value: Any) -> Any:
    """Collates nothing: `Reading` gives whole batches."""
    return value


def one_by_one(loader: DataLoader[Any]) -> bool:
    """True for a dataset that is read from beginning to end, and has no indices."""
    return isinstance(loader.dataset, IterableDataset)
