"""Sealing a checkpoint that is there already."""

import os
from pathlib import Path
from typing import Any

from holdtrue.engine.sealing import sealed
from holdtrue.engine.signing import Signer, signer
from holdtrue.errors import DamageError, OpenError, SaveError, fail
from holdtrue.findings import Finding
from holdtrue.records.seal import NAME
from holdtrue.storage.commit import publish_file, write_synced
from holdtrue.storage.failures import already_exists, not_written
from holdtrue.storage.locating import is_ours, locate
from holdtrue.storage.staging_area import clear_leftovers
from holdtrue.verification import verify


def seal(path: str | os.PathLike[str], /, *, key: Any = None, overwrite: bool = False) -> Path:
    """Write down the SHA-256 of every file of a checkpoint, as `model.sig` in it; returns its path.

    With `key`, a private key or the path of its PEM file, the list is signed. Without one it tells
    accidents only: whoever changes the files can make the seal anew.

    Raises DamageError where the checkpoint is not what was saved: that is not sealed, and SaveError
    where there is a seal already (unless `overwrite`), or the disk refuses.
    """
    by = signer(key) or Signer()
    directory = locate(path)
    if not is_ours(directory):
        raise fail(OpenError, str(directory), _not_ours(directory))
    place = directory / NAME
    if not overwrite and os.path.lexists(place):
        raise fail(SaveError, str(place), already_exists(place))
    clear_leftovers(directory)
    whole = verify(directory)
    if any(not finding.code.startswith("seal-") for finding in whole.errors):
        raise DamageError(whole)
    try:
        raw = sealed(directory, directory.absolute().name, by)
        with publish_file(place, replace=overwrite) as staged:
            write_synced(staged, raw)
    except OSError as error:
        raise not_written(place, error, 0) from error
    return place


def _not_ours(directory: Path) -> Finding:
    return Finding(
        code="not-a-checkpoint",
        severity="error",
        where=str(directory),
        what="this is not a checkpoint of holdtrue, so it is not sealed",
        why="a seal stands in the directory of a checkpoint, beside its manifest",
        fix="holdtrue convert makes one of it; or sign it as it is, with model_signing",
    )
