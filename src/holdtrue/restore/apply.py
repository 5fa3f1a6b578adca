"""Carries a plan out: verify every byte, run the actions, fill the tensors. All or nothing."""

import contextlib
import signal
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from types import FrameType
from typing import Any

import torch

from holdtrue.capture.raw import dtype_named, raw_view
from holdtrue.engine.page_cache import fits_page_cache
from holdtrue.engine.read import Fill, Into, Wrong, damaged_storage, fill, verify_storages
from holdtrue.engine.telling import Tell, held_back, telling
from holdtrue.engine.write import Progress
from holdtrue.errors import DamageError, HoldtrueError, RestoreError, fail
from holdtrue.findings import Finding, Report, report
from holdtrue.formats.tensor_bytes import element_bytes, read_tensor
from holdtrue.formats.verifying import missing_bytes
from holdtrue.formats.view import Storage
from holdtrue.restore.fresh import place_bytes
from holdtrue.restore.plan import Action, Copy, Plan

_PLAIN = (torch.Tensor, torch.nn.Parameter)
_AS_NUMPY = frozenset({torch.float32, torch.float64, torch.float16, torch.int64, torch.int32,
                       torch.int16, torch.int8, torch.uint8, torch.bool})  # fmt: skip


@torch.inference_mode(False)
def apply(
    plan: Plan,
    subject: str,
    progress: Tell | None = None,
    *,
    while_reading: bool = False,
    new: bool = False,
    mapped: Collection[int] = (),
) -> Report:
    """The report. Raises RestoreError or DamageError, and then the target is untouched.

    With `while_reading` tensors whose bytes can be streamed are verified while they are put in
    place; damage that is found then is told as target-unusable, or as damage where the target is
    `new`, and nobody's yet. Tensors at the addresses in `mapped` are the file's bytes already,
    which are verified first. Ctrl-C is held back while the
    target changes, so that it is whole either way.
    """
    found = report(subject, plan.findings)
    if not found.ok:
        raise RestoreError(found)
    out_of_bounds = _out_of_bounds(plan)
    if out_of_bounds:
        raise DamageError(report(subject, out_of_bounds))
    there: list[Copy] = []
    to_read: list[Copy] = []
    for item in plan.copies:
        (there if mapped and item.into.data_ptr() in mapped else to_read).append(item)
    straight, gathered = _sorted_out(to_read)
    proven_first = [*gathered, *there] if while_reading or new else plan.copies
    storages = list(_storages(proven_first))
    first, then = _bytes(storages), _bytes(_storages(to_read))
    with telling(progress, first + then) as tell:
        # Verified bytes are to be in memory when they are read again, unless they are too many.
        too_many = not fits_page_cache(first)
        damaged = verify_storages(storages, tell, past_cache=too_many)
        if damaged:
            raise DamageError(report(subject, damaged))
        with _uninterrupted(), held_back(tell) as told:
            _run(plan.actions, subject)
            wrong = _fill(straight, gathered, told, past_cache=while_reading or new or too_many)
            if wrong and new:
                raise DamageError(report(subject, [damaged_storage(one) for one in wrong]))
            if wrong:  # is said first, whatever else is raised
                raise DamageError(report(subject, [_unusable(wrong, verified=not while_reading)]))
    return found


def _fill(
    straight: list[Copy], gathered: list[Copy], progress: Progress | None, *, past_cache: bool
) -> list[Wrong]:
    # From here on nothing is asked of anyone: known bytes go into memory that is known to fit.
    fills = [Fill(item.lazy.pieces[0].storage, _destination(item)) for item in straight]
    wrong = fill(fills, progress, past_cache=past_cache)
    for item in gathered:
        _place(item, read_tensor(item.lazy).data)
    torch.autograd.graph.increment_version([item.into for item in (*straight, *gathered)])
    return wrong


def _sorted_out(copies: list[Copy]) -> tuple[list[Copy], list[Copy]]:
    """Those whose bytes can be streamed to where they belong, and the others."""
    straight: list[Copy] = []
    gathered: list[Copy] = []
    for item in copies:
        (straight if _straight(item) else gathered).append(item)
    return straight, gathered


def _bytes(storages: Iterable[Storage]) -> int:
    return sum({(s.file, s.offset): s.nbytes for s in storages}.values())


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Holds SIGINT back until the block is done, then lets it do what it would have done.

    Copying the target first, to put it back, was rejected: that would need its memory twice.
    """
    handler = signal.getsignal(signal.SIGINT)
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or not callable(handler):  # another thread never gets it; SIG_IGN ignores it
        yield
        return
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if noted:
            signal.raise_signal(signal.SIGINT)


def _storages(copies: list[Copy]) -> Iterator[Storage]:
    for item in copies:
        for piece in item.lazy.pieces:
            yield piece.storage.record or piece.storage


def _out_of_bounds(plan: Plan) -> list[Finding]:
    """Tensors that reach past their storage, which files of other formats can describe."""
    found: list[Finding] = []
    fitting: set[tuple[Any, ...]] = set()  # thousands are of a few shapes: each is looked at once
    for item in plan.copies:
        lazy = item.lazy
        for piece in lazy.pieces:
            shape, stride, offset = piece.shape, piece.stride, piece.offset
            look = lazy.dtype, lazy.numpy, shape, stride, offset, piece.storage.nbytes
            if look in fitting:
                continue
            missing = missing_bytes(piece, element_bytes(lazy))
            if missing:
                found.append(_past_storage(piece.storage, missing))
            else:
                fitting.add(look)
    return found


def _run(actions: list[Action], subject: str) -> None:
    undos: list[Callable[[], None]] = []
    for action in actions:
        try:
            undos.append(action.do())
        except BaseException as error:
            for undo in reversed(undos):
                with contextlib.suppress(Exception):  # one that fails must not stop the others
                    undo()
            if not isinstance(error, Exception):
                raise
            said = error.report.findings if isinstance(error, HoldtrueError) else ()
            raise fail(RestoreError, subject, *(said or [_refused(action, error)])) from error


def _straight(item: Copy) -> bool:
    """One whole stored box, so that the bytes can be streamed without being gathered first."""
    pieces = item.lazy.pieces
    return (
        len(pieces) == 1
        and pieces[0].storage.codec == "raw"
        and (pieces[0].shape == item.lazy.shape and pieces[0].storage.digest is not None)
    )


def _destination(item: Copy) -> Into:
    into = item.into
    if item.cast or not into.is_cpu or not into.is_contiguous() or not into.numel():
        return lambda data: _place(item, data)
    if type(into) in _PLAIN and into.dtype in _AS_NUMPY and not into.is_neg():
        return into.detach().numpy()  # a third of the time of the general way
    return raw_view(into).reshape(-1).numpy()


def _place(item: Copy, data: memoryview) -> None:
    if not item.cast:
        place_bytes(item.into, data)
        return
    dtype = dtype_named(item.lazy.dtype)
    source = torch.empty(item.lazy.shape, dtype=dtype, device="cpu")
    place_bytes(source, data)
    # A target that was made in inference mode can be written to in that mode only.
    with torch.no_grad(), torch.inference_mode(item.into.is_inference()):
        item.into.detach().copy_(source)


def _unusable(wrong: list[Wrong], *, verified: bool) -> Finding:
    places = list(dict.fromkeys(f"{w.storage.file}: {w.storage.key}" for w in wrong))
    error = next((w.error for w in wrong if w.error is not None), None)
    if verified:
        what = "the file changed while it was read; the target is now partly overwritten"
        why = str(error) if error else "its digest was right a moment ago"
    else:
        what = "bytes of the file are not those that were written; the target is now partly"
        what += " overwritten"
        why = str(error) if error else "their xxh3-128 digest differs, which was seen while they "
        why += "" if error else 'were put in place, as verify="while" asks'
    return Finding(
        code="target-unusable",
        severity="error",
        where=places[0],
        what=what,
        why=why,
        fix="restore again from a checkpoint that nothing writes to, or build the target anew"
        if verified
        else "build the target anew, or restore it from another checkpoint",
        places=tuple(places) if len(places) > 1 else (),
    )


def _past_storage(storage: Storage, missing: int) -> Finding:
    return Finding(
        code="tensor-past-storage",
        severity="error",
        where=f"{storage.file}: {storage.key}",
        what="a tensor reaches past its storage",
        why=f"it needs {missing:,} bytes more than there are",
        fix="fetch or save the file again; `holdtrue salvage` keeps the tensors that are whole",
    )


def _refused(action: Action, error: Exception) -> Finding:
    return Finding(
        code="target-refused",
        severity="error",
        where=action.where,
        what=f"the target would not take its state: {type(error).__name__}",
        why=str(error) or "its own code raised without a message",
        fix="give an object built as the saved one was; everything has been put back",
    )
