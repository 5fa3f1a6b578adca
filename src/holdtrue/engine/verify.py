"""Every byte of a checkpoint, of any format, against what the format keeps of it."""

import os
from pathlib import Path

from holdtrue.engine.read import verify_storages
from holdtrue.engine.telling import Tell, telling
from holdtrue.findings import Finding, Report, report
from holdtrue.formats.checkpoint_directory import read_manifest, to_view
from holdtrue.formats.opening import read
from holdtrue.formats.verifying import verify_view
from holdtrue.formats.view import View
from holdtrue.records.manifest import NAME, SOURCE
from holdtrue.records.seal import NAME as SEAL
from holdtrue.storage.locating import is_ours


def verify_files(place: Path, progress: Tell | None = None) -> Report:
    """The report of what is damaged. Raises DamageError, or OpenError, where little can be read."""
    if not is_ours(place):
        view = read(str(place))
        with telling(progress, _proved_bytes(view)) as told:
            return verify_view(view, told)
    manifest = read_manifest(place)
    view = to_view(place, manifest)
    storages = [p.storage for t in view.tensors.values() for p in t.pieces]
    with telling(progress, _proved_bytes(view)) as told:
        findings = verify_storages(storages, told)
    listed = {NAME, SEAL, *manifest.files}
    strays = sorted(n for n in os.listdir(place) if n not in listed and n != SOURCE)
    findings += [_stray(place / name) for name in strays]
    return report(str(place), findings)


def _proved_bytes(view: View) -> int:
    storages = [p.storage for t in view.tensors.values() for p in t.pieces]
    return sum(nbytes for _, _, nbytes in {(s.file, s.offset, s.nbytes) for s in storages})


def _stray(path: Path) -> Finding:
    return Finding(
        code="file-unlisted",
        severity="note",
        where=str(path),
        what="this is not part of the checkpoint",
        why="it was put here later; nothing of it can be verified",
    )
