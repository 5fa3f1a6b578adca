"""What is whole of a damaged file, written as a file that is whole."""

import os
from pathlib import Path

from msgspec.structs import replace

from holdtrue.doctor.amounts import counted
from holdtrue.doctor.convert import Converted, destination, write_view
from holdtrue.doctor.destination import Progress, check_destination
from holdtrue.findings import Finding, report
from holdtrue.formats import salvaging
from holdtrue.formats.salvaging import Lost, Salvaged
from holdtrue.formats.source import reading
from holdtrue.formats.view import View


def salvage(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    to: str | None = None,
    part: str | None = None,
    overwrite: bool = False,
    shard_bytes: int | None = None,
    progress: Progress | None = None,
) -> Converted:
    """Write every tensor of `src` that is whole as `dst`; arguments as in `convert`.

    The report's error `tensors-lost` names those that are not, with the bytes missing of each; it
    has no error where nothing was lost. Storages whose names are lost come as `unnamed/data/N`.

    Raises OpenError, or DamageError where nothing is left; and SaveError as `convert` does.
    """
    place = destination(dst, to, part, overwrite, shard_bytes, progress)
    check_destination(Path(src), place)
    with reading(str(src)):
        found = salvaging.salvage(str(src))
        view = _with_unnamed(found)
        made = write_view(view, place)
    noticed = [f for f in made.report.findings if f not in found.view.findings]
    told = [*noticed, *map(_of_container, found.view.findings), *_lost(view.path, found.lost)]
    return replace(made, report=report(str(place.path), [*told, *_unnamed(found)]))


def _with_unnamed(found: Salvaged) -> View:
    """Bytes without a name are one more mapping beside the tree that is left."""
    if not found.unnamed:
        return found.view
    tree = found.view.tree
    if not tree:
        return replace(found.view, tree={"unnamed": found.unnamed}, tensors=dict(found.unnamed))
    both = {"salvaged": tree, "unnamed": found.unnamed}
    return replace(found.view, tree=both)


def _of_container(finding: Finding) -> Finding:
    """Damage of a zip's own bookkeeping is no loss: each record has been looked at by itself."""
    about_zip = finding.code.startswith("zip-") and finding.code != "zip-no-pickle"
    return replace(finding, severity="warning") if about_zip else finding


def _lost(where: str, lost: tuple[Lost, ...]) -> list[Finding]:
    if not lost:
        return []
    places = tuple(
        f"{one.path}: {one.dtype} {list(one.shape)}, "
        + (f"{one.missing:,} bytes missing" if one.missing else one.why)
        for one in lost
    )
    return [
        Finding(
            code="tensors-lost",
            severity="error",
            where=places[0],
            places=places,
            what=f"{counted(len(lost), 'tensor')} of {where} "
            f"{'are' if len(lost) > 1 else 'is'} lost",
            why="bytes of each are missing, or are not those that were written",
            fix="take them from an older checkpoint; all others are in the result",
        )
    ]


def _unnamed(found: Salvaged) -> list[Finding]:
    if not found.unnamed:
        return []
    places = tuple(f"{name} ({t.shape[0]:,} bytes)" for name, t in found.unnamed.items())
    return [
        Finding(
            code="names-lost",
            severity="error",
            where=places[0],
            places=places,
            what=f"{len(places):,} storages are whole, and no name points at them",
            why="the part of the file that names and shapes them is damaged; their bytes are kept "
            "as they are",
            fix="tell by size which is which: torch.frombuffer, then view and reshape",
        )
    ]
