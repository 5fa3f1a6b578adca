"""Reads the values of all tensors of a view, each stretch of bytes once, and sums them up."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from threading import Lock

from holdtrue.doctor.statistics import Statistics, summarise
from holdtrue.doctor.subjects import Weights
from holdtrue.errors import HoldtrueError
from holdtrue.findings import Finding
from holdtrue.formats.pickle_tensors import is_storage
from holdtrue.formats.tensor_bytes import element_bytes
from holdtrue.formats.view import LazyTensor, View
from holdtrue.limits import limits
from holdtrue.records.dtypes import OVERLAP_FACTOR, product

Progress = Callable[[int, int], None]  # bytes read, bytes in all

_Place = tuple[object, ...]


def read_weights(
    view: View, progress: Progress | None = None, wanted: Mapping[str, str] | None = None
) -> tuple[Weights, list[Finding]]:
    """The statistics of a view's tensors, and what went wrong while they were read.

    `wanted` are the dtypes of the live tensors that they are meant for, by path.
    """
    named = dict(_readable(view))
    distinct = {_place(tensor): tensor for tensor in named.values()}
    refused = _check_expansion(view, distinct)
    if refused is not None:
        return Weights(view=view, statistics={}), [refused]
    summed, findings = _summarise(distinct, progress)
    statistics = {path: s for path, t in named.items() if (s := summed.get(_place(t))) is not None}
    return Weights(view=view, statistics=statistics, wanted=wanted or {}), findings


def _readable(view: View) -> Iterator[tuple[str, LazyTensor]]:
    """The tensors with bytes of their own; components under their tensor's path."""
    for path, tensor in view.tensors.items():
        if is_storage(tensor):
            continue
        if tensor.pieces:
            yield path, tensor
        for name, part in tensor.components.items():
            if part.pieces:
                yield f"{path}/{name}", part


def _place(tensor: LazyTensor) -> _Place:
    """What two names of the same values have in common."""
    pieces = tuple(
        (p.storage.file, p.storage.key, p.storage.offset, p.start, p.shape, p.offset, p.stride)
        for p in tensor.pieces
    )
    return tensor.dtype, tensor.numpy, tensor.shape, tensor.lazy_bits, pieces


def _summarise(
    distinct: dict[_Place, LazyTensor], progress: Progress | None
) -> tuple[dict[_Place, Statistics | None], list[Finding]]:
    total, done, lock = sum(map(_nbytes, distinct.values())), 0, Lock()

    def advance(count: int) -> None:
        nonlocal done
        with lock:
            done += count
            if progress is not None:
                progress(min(done, total), total)

    def one(tensor: LazyTensor) -> Statistics | HoldtrueError | None:
        try:
            return summarise(tensor, advance)
        except HoldtrueError as error:
            return error

    summed: dict[_Place, Statistics | None] = {}
    findings: dict[tuple[str, str], Finding] = {}
    # NumPy lets go of the interpreter while it reckons, and so does reading.
    with ThreadPoolExecutor(limits().threads, "holdtrue-deep") as pool:
        jobs = [pool.submit(copy_context().run, one, tensor) for tensor in distinct.values()]
        for place, job in zip(distinct, jobs, strict=True):
            result = job.result()
            if isinstance(result, HoldtrueError):
                findings |= {(f.code, f.where): f for f in result.report.findings}
            else:
                summed[place] = result
    return summed, list(findings.values())


def _nbytes(tensor: LazyTensor) -> int:
    return product(tensor.shape) * element_bytes(tensor)


def _check_expansion(view: View, distinct: dict[_Place, LazyTensor]) -> Finding | None:
    """A small file may name its few bytes a million times; they are not read a million times."""
    pieces = (piece for tensor in distinct.values() for piece in tensor.pieces)
    held = sum({(p.storage.file, p.storage.key): p.storage.nbytes for p in pieces}.values())
    total, most = sum(map(_nbytes, distinct.values())), limits().expanded_bytes
    if total <= OVERLAP_FACTOR * held + most:
        return None
    return Finding(
        code="tensor-expanded",
        severity="error",
        where=view.path,
        what="the values are not read: the file repeats its few bytes into too many",
        why=f"its tensors take {total:,} bytes, made of {held:,}; {most:,} more are allowed",
        fix="set HOLDTRUE_EXPANDED_BYTES higher if this is meant",
    )
