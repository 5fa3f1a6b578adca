"""A checkpoint's files and, last of all, its manifest."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from holdtrue.engine.layout import PlannedFile
from holdtrue.engine.linking import Earlier, link_unchanged
from holdtrue.engine.sealing import sealed
from holdtrue.engine.signing import Signer
from holdtrue.engine.windows import Readable, Together
from holdtrue.engine.write import Progress, write_files
from holdtrue.records.manifest import NAME, SOURCE, Chunk, Cost, Manifest, encode_manifest
from holdtrue.records.seal import NAME as SEAL
from holdtrue.storage.commit import require_files, sync_directory, write_synced


class Written(Struct, frozen=True, kw_only=True):
    """What stands on disk now, and how it got there."""

    manifest: Manifest
    nbytes: int  # of all files
    written: int  # bytes of those that were not linked
    linked: tuple[str, ...]
    refused: str | None  # why the file system links no files
    buffered: str | None  # why large files went through the page cache


def write_checkpoint(
    directory: Path,
    manifest: Manifest,
    files: list[PlannedFile],
    sources: Mapping[str, Readable],
    *,
    images: Mapping[str, memoryview] | None = None,
    together: Together | None = None,
    earlier: Earlier | None = None,
    cost: Cost | None = None,
    waited: bool = False,
    began: float = 0.0,
    progress: Progress | None = None,
    name: str = "",
    by: Signer | None = None,
) -> Written:
    """Write, or link, and fsync everything in an empty directory. Raises OSError.

    The manifest gets the files and chunks. `began` is what `time.perf_counter` gave when the save
    began; the cost then says how long it took until the data were durable, which is the stall too
    where the caller `waited` for it. With `by` it is sealed, under the `name` that it will have.
    """
    if any(file.name.startswith(f"{SOURCE}/") for file in files):
        (directory / SOURCE).mkdir()
    linked = link_unchanged(directory, files, sources, earlier)
    rest = [file for file in files if file.name not in linked.files]
    done = write_files(directory, rest, sources, progress, images, together)
    digests = linked.digests | done.digests
    if (directory / SOURCE).is_dir():
        sync_directory(directory / SOURCE)
    written = sum(file.nbytes for file in rest)
    if cost is not None:
        seconds = round(time.perf_counter() - began, 4)
        cost = replace(
            cost,
            stall=seconds if waited else cost.stall,
            seconds=seconds,
            written=written,
            linked=len(linked.files),
        )
    manifest = replace(
        manifest,
        tensors=_placed(manifest, files, digests),
        files={file.name: file.record for file in files},
        cost=cost,
    )
    raw = encode_manifest(manifest)
    write_synced(directory / NAME, raw)
    seal = b"" if by is None else sealed(directory, name, by)
    if seal:
        write_synced(directory / SEAL, seal)
    require_files(directory, {NAME: len(raw), **{file.name: file.nbytes for file in files}})
    return Written(
        manifest=manifest,
        nbytes=sum(file.nbytes for file in files) + len(raw) + len(seal),
        written=written + len(raw) + len(seal),
        linked=tuple(linked.files),
        refused=linked.refused,
        buffered=done.refused,
    )


def _placed(
    manifest: Manifest, files: list[PlannedFile], digests: Mapping[str, str]
) -> dict[str, Any]:
    tensors = dict(manifest.tensors)
    for file in files:
        for placed in file.placements:
            chunk = Chunk(file=file.name, name=placed.name, digest=digests[placed.key])
            tensors[placed.key] = replace(tensors[placed.key], chunks=(chunk,))
    return tensors
