"""Carries a plan out: verify every byte, run the actions, fill the tensors. All or nothing."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import torch

from holdtrue.capture.raw import dtype_named, raw_view
from holdtrue.engine.read import Fill, fill, verify_storages
from holdtrue.engine.telling import Tell, telling
from holdtrue.engine.write import Progress
from holdtrue.errors import DamageError, HoldtrueError, RestoreError, fail
from holdtrue.findings import Finding, Report, report
from holdtrue.formats.tensor_bytes import element_bytes, read_tensor
from holdtrue.formats.verifying import missing_bytes
from holdtrue.formats.view import Storage
from holdtrue.restore.fresh import place_bytes
from holdtrue.restore.plan import Action, Copy, Plan


@torch.inference_mode(False)
def apply(plan: Plan, subject: str, progress: Tell | None = None) -> Report:
    """The report. Raises RestoreError or DamageError, and then the target is untouched.

    Ctrl-C is held back while the target changes, so that it is whole either way.
    """
    found = report(subject, plan.findings)
    if not found.ok:
        raise RestoreError(found)
    out_of_bounds = _out_of_bounds(plan)
    if out_of_bounds:
        raise DamageError(report(subject, out_of_bounds))
    storages = list(_storages(plan))
    total = 2 * sum({(s.file, s.offset): s.nbytes for s in storages}.values())  # it is read twice
    with telling(progress, total) as tell:
        damaged = verify_storages(storages, tell)
        if damaged:
            raise DamageError(report(subject, damaged))
        with _uninterrupted():
            _run(plan.actions, subject)
            _fill(plan.copies, tell)
    return found


def _fill(copies: list[Copy], progress: Progress | None = None) -> None:
    # From here on nothing is asked of anyone: known bytes go into memory that is known to fit.
    simple = [item for item in copies if _straight(item)]
    fill((Fill(item.lazy.pieces[0].storage, _destination(item)) for item in simple), progress)
    for item in copies:
        if not _straight(item):
            _place(item, read_tensor(item.lazy).data)
    for item in copies:
        torch.autograd.graph.increment_version(item.into)


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


def _storages(plan: Plan) -> Iterator[Storage]:
    for item in plan.copies:
        for piece in item.lazy.pieces:
            yield piece.storage.record or piece.storage


def _out_of_bounds(plan: Plan) -> list[Finding]:
    """Tensors that reach past their storage, which files of other formats can describe."""
    found: list[Finding] = []
    for item in plan.copies:
        for piece in item.lazy.pieces:
            missing = missing_bytes(piece, element_bytes(item.lazy))
            if missing:
                found.append(_past_storage(piece.storage, missing))
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


def _destination(item: Copy) -> memoryview | Callable[[memoryview], None]:
    into = item.into
    if not item.cast and into.device.type == "cpu" and into.is_contiguous() and into.numel():
        flat = raw_view(into).reshape(-1).numpy().view("u1")
        return flat.data
    return lambda data: _place(item, data)


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
