"""ResumableLoader: a DataLoader that goes on in the middle of an epoch."""

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from msgspec.structs import replace
from torch.utils.data import DataLoader

from holdtrue.capture.loader import generators, settings
from holdtrue.errors import HoldtrueError, fail
from holdtrue.findings import Finding
from holdtrue.runs import loader_random
from holdtrue.runs.loader_order import (
    Tasks,
    epochs,
    pack,
    sampler_states,
    samplers,
    set_epochs,
)
from holdtrue.runs.loader_position import (
    Position,
    as_dict,
    as_position,
    compare,
    refuse,
    samples_changed,
)
from holdtrue.runs.loader_workers import (
    Reading,
    Stream,
    WorkerStart,
    as_it_is,
    keeps_state,
    one_by_one,
)

_log = logging.getLogger("holdtrue")


class ResumableLoader:
    """A DataLoader whose place in an epoch can be kept: `for batch in resumable:`.

    It hands out the batches that the DataLoader would, their order drawn when the epoch begins.
    After a resume of the run that it is a part of, or `load_state_dict`, the next loop goes on with
    the very next batch; the samples before it are not read. A loop that is left early and begun
    again begins the next epoch.

    Workers send their random states along, so random transforms in them go on as well. A dataset
    that is read from beginning to end (IterableDataset) needs a `state_dict` of its own. Raises
    HoldtrueError for a loader whose place cannot be known.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        refused = refuse(loader)
        if refused is not None:
            raise fail(HoldtrueError, type(loader).__name__, refused)
        self.loader = loader
        self.epoch = 0  # epochs that are over
        self.batches = 0  # handed out in the epoch under way
        self._under_way = False
        self._goes_on = False  # the next loop is the rest of an epoch
        self._turn = 0  # of the loop that counts: the last one begun
        self._first = 0  # the number of the batch that stands first in the tasks
        self._saved: Mapping[str, Any] = {}  # the settings with which the order was drawn
        self._tasks = Tasks(loader)
        self._inner: DataLoader[Any] | None = None
        self._stream: Stream | None = None
        self._ended = False  # what was loaded: the stream had met its end
        self._born: bytes | None = None  # what the seeds of the workers were drawn from
        self._workers: dict[int, dict[str, Any]] = {}  # what each left with its last batch

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return len(self.loader)

    def __repr__(self) -> str:
        return f"<resumable loader: epoch {self.epoch}, {self.batches} batches handed out>"

    def __iter__(self) -> Iterator[Any]:
        self._turn += 1
        goes_on, self._goes_on = self._goes_on, False
        if not goes_on:
            self.batches = 0
            if self._under_way:  # left early
                self.epoch += 1
                # Workers that live on have read ahead; where they are is not known.
                self._inner = self._born = None
        self._under_way = True
        if one_by_one(self.loader):
            found = self._read_on(goes_on)
        else:
            found = self._go_on() if goes_on and self._tasks.order else self._begin()
        return self._hand_out(found, self._turn)

    def restart_epoch(self) -> None:
        """Forget the place in the epoch: the next loop begins it anew, in an order drawn then."""
        self.batches = self._first = 0
        self._goes_on = self._under_way = False
        self._inner = self._born = None
        self._workers = {}
        self._tasks = Tasks(self.loader)  # not emptied: a restore that fails puts it back

    def state_dict(self) -> dict[str, Any]:
        """The place, by batches handed out: what workers have read ahead does not count."""
        order = self._tasks.order
        if order is not None and order.digest is None and not self._goes_on:
            order = replace(order, rest=pack(self._tasks.drawn()[self.batches - self._first :]))
        needed = self._under_way or self.loader.persistent_workers
        dataset: Any = self.loader.dataset
        return as_dict(
            Position(
                epoch=self.epoch,
                batches=self.batches,
                under_way=self._under_way,
                # Of an epoch that was begun with others, those others.
                settings=dict(self._saved) if self._goes_on else settings(self.loader),
                generators=loader_random.take_generators(generators(self.loader)),
                epochs=epochs(self.loader),
                samplers=sampler_states(self.loader),
                dataset=dataset.state_dict() if self._keeps_dataset else None,
                ended=self._ended if self._stream is None else self._stream.ended,
                order=order,
                born=self._born if needed else None,
                workers=dict(self._workers) if needed else {},
            )
        )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the place that `state_dict` gave. Where the samples are others now, the epoch
        begins anew, which is logged."""
        position = as_position(state)
        self._turn += 1
        self.restart_epoch()
        self.epoch = position.epoch
        loader_random.put_generators(generators(self.loader), position.generators)
        set_epochs(self.loader, position.epochs)
        for name, sampler in samplers(self.loader).items():
            if name in position.samplers and keeps_state(sampler):
                sampler.load_state_dict(position.samplers[name])
        if self._keeps_dataset and position.dataset is not None:
            dataset: Any = self.loader.dataset
            dataset.load_state_dict(position.dataset)
        if position.settings.get("workers") == self.loader.num_workers:
            self._born, self._workers = position.born, dict(position.workers)
        others = samples_changed(position.settings, settings(self.loader))
        if others and position.under_way and not one_by_one(self.loader):
            _log.warning("epoch %d begins anew: %s changed", self.epoch, ", ".join(others))
            return
        self.batches = self._first = position.batches
        self._under_way = self._goes_on = position.under_way
        self._stream, self._ended = None, position.ended
        self._tasks.order, self._saved = position.order, position.settings

    def __holdtrue_compare__(self, where: str, state: Mapping[str, Any]) -> Iterable[Finding]:
        """What a restore has to say before this state is taken."""
        return compare(where, as_position(state).settings, settings(self.loader))

    @property
    def _keeps_dataset(self) -> bool:
        return self.loader.num_workers == 0 and keeps_state(self.loader.dataset)

    def _read_on(self, goes_on: bool) -> Iterator[Any]:
        """The dataset knows where it is; what torch draws for an epoch was drawn when it began."""
        if goes_on and self._ended:
            return iter(())
        loader, self._stream = self.loader, Stream(self.loader.dataset)
        inner: DataLoader[Any] = DataLoader(
            self._stream,
            batch_size=loader.batch_size,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            drop_last=loader.drop_last,
            generator=loader.generator,
        )
        neutral = loader_random.put_back(generators(loader))
        with neutral if goes_on else contextlib.nullcontext():
            return iter(inner)

    def _begin(self) -> Iterator[Any]:
        """A new epoch: its order is drawn as a plain DataLoader would, and at the same time."""
        tasks, lives_on = self._tasks, self.loader.persistent_workers
        tasks.forget()
        self._first = 0
        found: Iterator[Any]
        if lives_on and self._inner is not None:
            found = iter(self._inner)
        elif lives_on and self._born is not None:  # as if the workers of before lived on
            tasks.drawn()
            with loader_random.put_back(generators(self.loader)):
                found = self._start()
        else:
            self._born, self._workers = None, {}
            found = self._start()
        tasks.drawn()
        return found

    def _go_on(self) -> Iterator[Any]:
        """The rest of an epoch. What is drawn for it was drawn before, and does not count."""
        tasks, workers = self._tasks, self.loader.num_workers
        with loader_random.put_back(generators(self.loader)):
            tasks.begin_at(self.batches, self._saved)
            # With nothing to do for the first ones, each worker gets the batches it would have.
            tasks.skips = self.batches % workers if workers else 0
            self._first = self.batches
            return self._start()

    def _start(self) -> Iterator[Any]:
        """New workers, in the place of those that left their states, if any."""
        loader = self.loader
        if self._born is not None:
            loader_random.put_torch(loader.generator, self._born)
        elif loader.num_workers:
            self._born = loader_random.take_torch(loader.generator)
        reading: Any = Reading(loader)
        begin = WorkerStart(loader.worker_init_fn, dict(self._workers))
        self._inner = DataLoader(
            reading,
            batch_size=None,
            sampler=self._tasks,
            num_workers=loader.num_workers,
            collate_fn=as_it_is,
            pin_memory=loader.pin_memory,
            timeout=loader.timeout,
            worker_init_fn=begin if loader.num_workers else None,
            multiprocessing_context=loader.multiprocessing_context,
            generator=loader.generator,
            prefetch_factor=loader.prefetch_factor,
            persistent_workers=loader.persistent_workers,
        )
        return iter(self._inner)

    def _hand_out(self, found: Iterator[Any], turn: int) -> Iterator[Any]:
        workers, raw = self.loader.num_workers, one_by_one(self.loader)
        for number, got in enumerate(found, self._first - self._tasks.skips):
            if number < self._first:
                continue
            batch, state = (got, None) if raw else got
            if self._turn == turn:
                self.batches += 1
                if state is not None:
                    self._workers[number % workers] = state
            yield batch
        if self._turn == turn:
            self.epoch, self.batches, self._under_way = self.epoch + 1, 0, False
            self._tasks.forget()
