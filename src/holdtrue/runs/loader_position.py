"""The place of a loader as plain values, compared with the loader that is to take it."""

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct, field
from torch.utils.data import DataLoader

from holdtrue.errors import RestoreError, fail
from holdtrue.findings import Finding, grouped
from holdtrue.runs.loader_order import Order, endless
from holdtrue.runs.loader_workers import keeps_state, one_by_one

_CUTTING = ("batch_size", "drop_last")  # settings that cut one order of samples into batches


class Position(Struct, frozen=True, kw_only=True):
    """Where a loader is: everything that the batches to come depend on."""

    epoch: int
    batches: int  # handed out in this epoch
    under_way: bool
    settings: dict[str, Any]
    generators: dict[str, bytes]
    epochs: dict[str, int]  # what `set_epoch` was told, by sampler
    samplers: dict[str, Any]  # what samplers give of themselves
    dataset: Any = None  # and what the dataset does
    ended: bool = False  # a dataset that is read from beginning to end has met it
    order: Order | None = None  # of the epoch under way
    born: bytes | None = None  # what the seeds of the workers were drawn from
    workers: dict[int, dict[str, Any]] = field(default_factory=dict)  # left with their last batch


def as_dict(position: Position) -> dict[str, Any]:
    made = msgspec.structs.asdict(position)
    if position.order is not None:
        made["order"] = msgspec.structs.asdict(position.order)
    return made


def as_position(state: Mapping[str, Any]) -> Position:
    """The position, its types checked. Raises RestoreError for what is none."""
    try:
        position = msgspec.convert(dict(state), Position)
    except (msgspec.ValidationError, TypeError, ValueError) as error:
        raise fail(RestoreError, "loader", _no_position(str(error))) from None
    if position.batches < 0 or position.epoch < 0:
        raise fail(RestoreError, "loader", _no_position("it counts below zero"))
    return position


def samples_changed(saved: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """The settings that differ and leave no order to go on in."""
    differing = [k for k in here if k != "workers" and saved.get(k) != here[k]]
    sizes = [s.get("batch_size") for s in (saved, here)]
    return [k for k in differing if k not in _CUTTING or None in sizes]


def compare(where: str, saved: Mapping[str, Any], here: Mapping[str, Any]) -> list[Finding]:
    """What is to be said before a loader takes a place that another one left."""
    found: list[Finding] = []
    differing = [
        f"{where}.{key}: saved {saved.get(key)!r}, here {here[key]!r}"
        for key in here
        if key != "workers" and saved.get(key) != here[key]
    ]
    if differing:
        anew = samples_changed(saved, here)
        found.append(
            grouped(
                "loader-changed",
                "error",
                "the data loader is not the one that was saved",
                differing,
                why="another order or size of batches makes another training",
                fix="build the loader as it was, or go on with this one, which "
                + ("begins the epoch anew" if anew else "cuts the samples still to come anew")
                + ': allow=["loader-changed"]',
            )
        )
    if saved.get("workers") != here["workers"]:
        found.append(
            Finding(
                code="loader-workers-changed",
                severity="warning",
                where=f"{where}.num_workers",
                what="the samples are the same; what is drawn at random while reading them is not",
                why="each worker has random states of its own, and other workers read other "
                "batches now",
                fix="use the saved number of workers where equal bits matter",
                command=f"loader = DataLoader(dataset, num_workers={saved.get('workers')!r})",
                saved=str(saved.get("workers")),
                expected=str(here["workers"]),
            )
        )
    return found


def refuse(loader: Any) -> Finding | None:
    """Why the place of this loader cannot be known; None where it can."""
    if not isinstance(loader, DataLoader):
        return _refused(loader, "this is no DataLoader", "its batches have no order that is known",
                        "loader = holdtrue.ResumableLoader(DataLoader(dataset))")  # fmt: skip
    if hasattr(loader, "state_dict"):
        return _refused(loader, "this loader keeps its place itself", "it has a state_dict",
                        "run = holdtrue.Run(path, loader=loader)")  # fmt: skip
    if one_by_one(loader):
        return _refuse_one_by_one(loader)
    if not loader.in_order and loader.num_workers:
        return _refused(loader, "the batches of this loader come in no fixed order",
                        "in_order=False hands out whichever batch a worker has ready first",
                        "loader = DataLoader(dataset, num_workers=2, in_order=True)")  # fmt: skip
    source: Any = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    try:
        len(source)
    except TypeError:
        return endless(type(source).__name__)
    return None


def _refuse_one_by_one(loader: DataLoader[Any]) -> Finding | None:
    instead = "loader = torchdata.stateful_dataloader.StatefulDataLoader(dataset, num_workers=2)"
    if not keeps_state(loader.dataset):
        return _refused(
            loader.dataset,
            "this dataset is read from beginning to end, and cannot say where it is",
            "an IterableDataset has no indices that could be skipped, and this one has no "
            "state_dict and load_state_dict",
            instead,
            "give the dataset a state_dict and a load_state_dict; torchdata's StatefulDataLoader "
            "otherwise skips by reading again",
        )
    if loader.num_workers:
        return _refused(
            loader,
            "the place of an IterableDataset in workers cannot be known here",
            "each worker has a copy of the dataset, which has read ahead",
            instead,
            "or read in the process itself: num_workers=0",
        )
    return None


def _refused(what: Any, said: str, why: str, command: str, fix: str = "") -> Finding:
    return Finding(
        code="loader-not-resumable",
        severity="error",
        where=type(what).__name__,
        what=said,
        why=why,
        fix=fix,
        command=command,
    )


def _no_position(why: str) -> Finding:
    return Finding(
        code="loader-state-unusable",
        severity="error",
        where="loader",
        what="this is not the place of a ResumableLoader",
        why=why,
        fix="give the state_dict of a ResumableLoader",
    )
