"""Files that did not change since the checkpoint before are hard-linked, not written again.

The file system counts the references, so each directory stays complete, and removing any is safe.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import xxhash
from msgspec import Struct, field

from holdtrue.engine.layout import Placement, PlannedFile
from holdtrue.engine.threads import in_threads
from holdtrue.engine.write import Readable, batches
from holdtrue.records.manifest import Manifest


class Earlier(Struct, frozen=True, eq=False):
    """A published checkpoint that files may be taken from."""

    directory: Path
    manifest: Manifest


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
    """Link those of the files whose every byte the earlier checkpoint has, by its digests.

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
        if digests is None:
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
