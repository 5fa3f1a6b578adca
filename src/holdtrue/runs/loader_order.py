"""The order of one epoch: which samples are in which batch, drawn at once when the epoch begins.

torch's own samplers are drawn again from the random states they were drawn from; only a digest is
kept to prove it. Of any other sampler nothing is known: the batches still to come are kept.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import xxhash
from msgspec import Struct
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from holdtrue.capture.loader import generators, settings
from holdtrue.errors import RestoreError, SaveError, fail
from holdtrue.findings import Finding
from holdtrue.runs import loader_random
from holdtrue.runs.loader_workers import Task, keeps_state

_KNOWN = frozenset(
    {
        BatchSampler,
        DistributedSampler,
        RandomSampler,
        SequentialSampler,
        SubsetRandomSampler,
        WeightedRandomSampler,
    }
)
_TOO_LONG = 16  # times as many batches as the sampler says: it never ends


class Order(Struct, frozen=True, kw_only=True):
    """How to get at the order of an epoch again, and which epoch the sampler then had."""

    count: int  # batches in all
    digest: str | None = None  # of torch's own samplers
    random: bytes = b""  # torch's global state when it was drawn
    generators: dict[str, bytes] = {}  # and those of the loader's own generators
    epochs: dict[str, int] = {}  # by place: what `set_epoch` was told
    rest: Any = None  # of other samplers: the batches still to come


def samplers(loader: DataLoader[Any]) -> dict[str, Any]:
    """Every sampler of the loader by place."""
    places = {
        "sampler": loader.sampler,
        "batch_sampler": loader.batch_sampler,
        "batch_sampler.sampler": getattr(loader.batch_sampler, "sampler", None),
    }
    return {name: place for name, place in places.items() if place is not None}


def is_known(loader: DataLoader[Any]) -> bool:
    """True where all samplers are torch's own, so that they can be drawn again."""
    return all(type(s) in _KNOWN for s in samplers(loader).values())


class Tasks:
    """The batches of an epoch, from some batch on, for the loader that reads them."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._loader = loader
        self._rest: list[Any] | None = None  # None: not drawn yet
        self.order: Order | None = None
        self.skips = 0  # tasks without anything to do that come first

    def forget(self) -> None:
        self._rest, self.order, self.skips = None, None, 0

    def drawn(self) -> list[Any]:
        if self._rest is None:
            self.order, self._rest = draw(self._loader)
        return self._rest

    def begin_at(self, done: int, saved: Mapping[str, Any]) -> None:
        """Draw the rest of the epoch that `order` is of. The caller puts the random states back."""
        here, order = settings(self._loader), self.order
        if order is None:
            raise ValueError("no epoch is under way")
        size, drop = saved.get("batch_size"), saved.get("drop_last")
        if (size, drop) == (here["batch_size"], here["drop_last"]) or size is None:
            self._rest = draw_again(self._loader, order, done)
        else:
            self._rest = cut_again(self._loader, order, done, size, bool(drop))
            self.order = Order(count=done + len(self._rest))

    def __len__(self) -> int:
        return self.skips + len(self._rest or ())

    def __iter__(self) -> Iterator[Task]:
        # Drawn when the first is asked for, after the seed of the workers: as a DataLoader does.
        rest = self.drawn()
        yield from (None for _ in range(self.skips))
        yield from ((batch,) for batch in rest)


def draw(loader: DataLoader[Any]) -> tuple[Order, list[Any]]:
    """The batches of an epoch as lists of indices, and how to get at them again."""
    random, own = loader_random.take_torch(None), loader_random.take_generators(generators(loader))
    told = epochs(loader)
    batches = _listed(_source(loader))
    if not is_known(loader):
        return Order(count=len(batches)), batches
    return (
        Order(
            count=len(batches), digest=_digest(batches), random=random, generators=own, epochs=told
        ),
        batches,
    )


def draw_again(loader: DataLoader[Any], order: Order, done: int) -> list[Any]:
    """The batches that are still to come. Draws random numbers: the caller puts them back."""
    if order.digest is None:
        return unpack(order.rest)
    batches = _as_then(loader, order, _source(loader))
    if _digest(batches) != order.digest:
        raise fail(RestoreError, "loader", _other_order())
    return batches[done:]


def cut_again(loader: DataLoader[Any], order: Order, done: int, size: int, drop: bool) -> list[Any]:
    """The samples still to come of an epoch that was cut into batches of `size`, cut as here."""
    if order.digest is None:
        left = [i for batch in unpack(order.rest) for i in batch]
        return _cut(left, loader.batch_size or 1, loader.drop_last)
    flat = _as_then(loader, order, loader.sampler)
    before = _cut(flat, size, drop)
    if _digest(before) != order.digest:
        raise fail(RestoreError, "loader", _other_order())
    used = sum(len(batch) for batch in before[:done])
    return _cut(flat[used:], loader.batch_size or 1, loader.drop_last)


def _cut(flat: list[Any], size: int, drop: bool) -> list[list[Any]]:
    batches = [flat[i : i + size] for i in range(0, len(flat), size)]
    return batches[:-1] if drop and batches and len(batches[-1]) < size else batches


def _as_then(loader: DataLoader[Any], order: Order, source: Any) -> list[Any]:
    """What a sampler draws from the states it had when the epoch began."""
    before = epochs(loader)
    loader_random.put_torch(None, order.random)
    loader_random.put_generators(generators(loader), order.generators)
    try:
        set_epochs(loader, order.epochs)
        return _listed(source)
    finally:
        set_epochs(loader, before)


def epochs(loader: DataLoader[Any]) -> dict[str, int]:
    """What `set_epoch` told the samplers, by place."""
    found = {name: getattr(s, "epoch", None) for name, s in samplers(loader).items()}
    return {name: epoch for name, epoch in found.items() if type(epoch) is int}


def set_epochs(loader: DataLoader[Any], told: dict[str, int]) -> None:
    for name, sampler in samplers(loader).items():
        if name in told:
            setter = getattr(sampler, "set_epoch", None)
            setter(told[name]) if callable(setter) else setattr(sampler, "epoch", told[name])


def sampler_states(loader: DataLoader[Any]) -> dict[str, Any]:
    """What samplers give of themselves, by place."""
    return {name: s.state_dict() for name, s in samplers(loader).items() if keeps_state(s)}


def _source(loader: DataLoader[Any]) -> Any:
    return loader.sampler if loader.batch_sampler is None else loader.batch_sampler


def _listed(source: Any) -> list[Any]:
    most = _TOO_LONG * max(len(source), 1)
    drawn: list[Any] = []
    for item in source:
        # A batch sampler may fill one list again and again.
        drawn.append(list(item) if isinstance(item, list) else item)
        if len(drawn) > most:
            raise fail(SaveError, "loader", endless(type(source).__name__, len(source)))
    return drawn


def pack(batches: Sequence[Any]) -> Any:
    """Batches of plain whole numbers as two arrays, others as they are."""
    lists = all(isinstance(b, list) for b in batches)
    flat = [i for b in batches for i in b] if lists else list(batches)
    if all(type(i) is int and abs(i) < 2**63 for i in flat):
        return {
            "indices": np.array(flat, np.int64),
            "lengths": np.array([len(b) for b in batches], np.int64) if lists else None,
        }
    return list(batches)


def unpack(packed: Any) -> list[Any]:
    """The batches that `pack` was given."""
    if not isinstance(packed, dict):
        return list(packed)
    flat, lengths = packed["indices"].tolist(), packed["lengths"]
    if lengths is None:
        return list(flat)
    ends = np.cumsum(lengths).tolist()
    return [flat[end - n : end] for end, n in zip(ends, lengths.tolist(), strict=True)]


def _digest(batches: Sequence[Any]) -> str:
    packed = pack(batches)
    if not isinstance(packed, dict):  # indices given as something else than numbers
        return xxhash.xxh3_128_hexdigest(repr(packed).encode())
    hasher = xxhash.xxh3_128(packed["indices"].tobytes())
    if packed["lengths"] is not None:
        hasher.update(packed["lengths"].tobytes())
    return hasher.hexdigest()


def endless(name: str, length: int | None = None) -> Finding:
    return Finding(
        code="loader-not-resumable",
        severity="error",
        where=name,
        what="this sampler has no end, or does not say where it is",
        why="the order of an epoch is drawn when it begins; "
        + (
            "it has no __len__"
            if length is None
            else f"its __len__ says {length:,}, and it goes on"
        ),
        fix="give it a __len__ and end there; an endless training is many epochs",
    )


def _other_order() -> Finding:
    return Finding(
        code="loader-order-differs",
        severity="error",
        where="loader",
        what="drawing the epoch again gives other samples than the interrupted run had",
        why="the sampler's weights, its indices or the number of replicas changed, or this torch "
        "draws differently from the same random state",
        fix="build dataset and sampler as they were; or begin the epoch anew: "
        "loader.restart_epoch()",
    )
