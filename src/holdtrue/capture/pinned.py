"""Tensors of a GPU on their way into staging memory: pinned, and copied on a stream of their own.

Pinned memory is what a GPU writes to by itself; pageable memory it fills by way of a small buffer
of the driver's, several times slower. Pinning takes long, so memory stays pinned while it is kept.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from msgspec.structs import replace
from torch import Tensor

from holdtrue.capture.tensors import Source, is_common
from holdtrue.capture.together import copy_together
from holdtrue.engine.layout import PlannedFile
from holdtrue.engine.staging import Places, Staging, copy_in

_streams: dict[torch.device, Any] = {}


def stage(files: list[PlannedFile], sources: Mapping[str, Source], places: Places) -> None:
    """Copy every tensor into its place. Those of a GPU come while the others are copied."""
    remote = {key for key, source in sources.items() if is_remote(source)}
    if not remote:
        copy_in(files, sources, places, copy_together)
        return
    with _coming(only(files, remote), sources, places):
        here = {p.key for file in files for p in file.placements} - remote
        copy_in(only(files, here), sources, places, copy_together)


def pin(staging: Staging, sources: Mapping[str, Source]) -> None:
    """Pin staging memory that tensors of a GPU go into. Where the system allows no more pinned
    memory it stays as it is: copies are slower then, and as right."""
    if staging.held or not any(is_remote(source) for source in sources.values()):
        return
    cuda: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    address = np.frombuffer(staging.memory, np.uint8).ctypes.data
    if int(cuda.cudaHostRegister(address, staging.nbytes, 0)) == 0:
        staging.hold(lambda: cuda.cudaHostUnregister(address))


def is_remote(source: Source) -> bool:
    """True for a plain tensor on a GPU, whose bytes lie in one piece in the order they are kept."""
    tensor = source.tensor
    return (
        tensor is not None
        and tensor.is_cuda
        and is_common(tensor)
        and tensor.is_contiguous()
        and not tensor.is_neg()
        and not tensor.is_conj()
        and tensor.nbytes == source.nbytes > 0
    )


def only(files: list[PlannedFile], keys: Iterable[str]) -> list[PlannedFile]:
    """The files with the placements of these tensors."""
    wanted = set(keys)
    chosen = [tuple(p for p in f.placements if p.key in wanted) for f in files]
    return [replace(f, placements=c) for f, c in zip(files, chosen, strict=True) if c]


@contextmanager
def _coming(
    files: list[PlannedFile], sources: Mapping[str, Source], places: Places
) -> Iterator[None]:
    """Begin the copies; they are there when the block ends."""
    begun: dict[torch.device, Any] = {}
    try:
        for file in files:
            for placement in file.placements:
                tensor = sources[placement.key].tensor
                if tensor is None:
                    continue
                stream = begun.get(tensor.device)
                if stream is None:
                    stream = begun[tensor.device] = _side_stream(tensor.device)
                _begin(tensor.detach(), places.of(file, placement, placement), stream)
        yield
    finally:
        for stream in begun.values():
            stream.synchronize()  # also when it failed: nothing may write to the place later


def _begin(tensor: Tensor, place: memoryview, stream: Any) -> None:
    target = torch.frombuffer(place, dtype=torch.uint8)
    with torch.cuda.stream(stream):
        target.copy_(tensor.view(-1).view(torch.uint8), non_blocking=True)
        tensor.record_stream(stream)  # its memory is not given to others before


def _side_stream(device: torch.device) -> Any:
    """A stream that goes on when what the caller asked the device for is done."""
    if device not in _streams:
        _streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream = _streams[device]
    stream.wait_stream(torch.cuda.current_stream(device))
    return stream
