"""Files that did not change since the checkpoint before are hard-linked, not written again.

The file system counts the references, so each directory stays complete, and removing any is safe.
What is linked is read first, once a process and again when it was changed: a file that rotted on
the disk would else live on in every checkpoint to come.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import xxhash
from msgspec import Struct, field

from holdtrue.engine.buffers import lease
from holdtrue.engine.layout import Placement, PlannedFile
from holdtrue.engine.threads import in_threads
from holdtrue.engine.windows import Readable
from holdtrue.engine.write import batches
from holdtrue.limits import limits
from holdtrue.records.manifest import Manifest


class Earlier(Struct, frozen=True, eq=False):
    """A published checkpoint that files may be taken from."""

    directory: Path
    manifest: Manifest
    # Files that this process has read and found right: (device, inode) → (size, time of change).
    proved: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)


class Linked(Struct, eq=False):
    """Which files were linked, and the digests of the tensors in them."""

    files: dict[str, int] = field(default_factory=dict)  # name → bytes
    digests: dict[str, str] = field(default_factory=dict)  # by tensor key
    refused: str | None = None  # what the file system says where it does not link


def link_unchanged(
    directory: Path,
    files: list[PlannedFile],
    sources: Mapping[str, Readable],
    earlier: Earlier | None,
) -> Linked:
    """Link those of the files whose every byte the earlier checkpoint has, by its digests, and
    has on the disk.

    A file system that has no hard links is no error: the file is then written like any other.
    """
    linked = Linked()
    if earlier is None:
        return linked
    known = _digests(earlier.manifest)
    for file in files:
        if linked.refused is not None:
            break
        if earlier.manifest.files.get(file.name) != file.record:
            continue
        digests = _unchanged(file, sources, known.get(file.name, {}))
        if digests is None or not _stands(earlier, file, digests):
            continue
        try:
            os.link(earlier.directory / file.name, directory / file.name)
        except FileNotFoundError:  # someone removed that checkpoint meanwhile
            break
        except OSError as error:
            linked.refused = error.strerror or type(error).__name__
            break
        linked.files[file.name] = file.nbytes
        linked.digests.update(digests)
    return linked


def _stands(earlier: Earlier, file: PlannedFile, digests: Mapping[str, str]) -> bool:
    """Whether the file on the disk is the planned one, byte by byte."""
    path = earlier.directory / file.name

    def same(placement: Placement) -> bool:
        digest = xxhash.xxh3_128()
        done, step = 0, limits().chunk_bytes
        # Into memory that is kept: what `read` returns is taken anew, and never quite given back.
        with (
            path.open("rb", buffering=0) as opened,
            lease(min(step, placement.nbytes) or 1) as buffer,
        ):
            opened.seek(placement.offset)
            while done < placement.nbytes:
                count = opened.readinto(buffer[: min(len(buffer), placement.nbytes - done)])
                if not count:
                    return False
                digest.update(buffer[:count])
                done += count
        return digest.hexdigest() == digests[placement.key]

    try:
        status = path.stat()
        here, now = (status.st_dev, status.st_ino), (status.st_size, status.st_mtime_ns)
        if earlier.proved.get(here) == now:
            return True
        with path.open("rb", buffering=0) as opened:
            head = opened.read(len(file.head))
        whole = status.st_size == file.nbytes and head == file.head
        if whole and all(in_threads(same, file.placements)):
            earlier.proved[here] = now
            return True
        return False
    except OSError:  # gone, or not readable: it is written anew
        return False


def _digests(manifest: Manifest) -> dict[str, dict[str, str]]:
    """File name → name within it → digest."""
    found: dict[str, dict[str, str]] = {}
    for record in manifest.tensors.values():
        for chunk in record.chunks:
            found.setdefault(chunk.file, {})[chunk.name] = chunk.digest
    return found


def _unchanged(
    file: PlannedFile, sources: Mapping[str, Readable], known: Mapping[str, str]
) -> dict[str, str] | None:
    """The digests of the file's tensors, or None from the first one that differs.

    The first is tried alone: where anything was trained, it differs, and nothing else is hashed.
    """

    def same(placement: Placement) -> str | None:
        digest = xxhash.xxh3_128()
        for block in sources[placement.key].blocks():
            digest.update(block)
        text = digest.hexdigest()
        return text if known.get(placement.name) == text else None

    digests: dict[str, str] = {}
    for batch in ([file.placements[0]] if file.placements else [], *batches(file)):
        wanted = [p for p in batch if p.key not in digests]
        for placement, digest in zip(wanted, in_threads(same, wanted), strict=True):
            if digest is None:
                return None
            digests[placement.key] = digest
    return digests
