"""Every byte of a checkpoint against what its format keeps, its seal, and its probe."""

import os
from typing import Any

from holdtrue.checkpoint import open
from holdtrue.engine.sealing import check_seal
from holdtrue.engine.signing import public_key
from holdtrue.engine.telling import Tell
from holdtrue.engine.verify import verify_files
from holdtrue.errors import DamageError, HoldtrueError
from holdtrue.findings import Report, report
from holdtrue.formats.source import reading
from holdtrue.storage.locating import is_ours, locate


def verify(
    path: str | os.PathLike[str],
    *,
    model: Any = None,
    preprocess: Any = None,
    progress: Tell | None = None,
    sealed_by: Any = None,
) -> Report:
    """Read every byte of a checkpoint and compare it with what its format keeps. Needs no torch.

    holdtrue's own are checked in full; for other formats the report says, as not checked, what they
    cannot prove. Damage is in the report; what cannot be opened at all raises OpenError.

    With a `model`, or a function that makes one, the saved probe is run as well: with a copy of the
    model that has been restored, and with `preprocess` where the probe goes through one.
    `progress` is told bytes done and bytes in all, from any thread.

    With `sealed_by`, a public key or the path of its PEM file, a seal by its owner has to be there,
    and to hold for every file. A seal that is there is compared with the files anyhow.
    """
    key = None if sealed_by is None else public_key(sealed_by)
    with reading(os.fspath(path)):
        found = _verify(path, key, progress)
    if model is None or not found.ok:
        return found
    from holdtrue.restore.probing import verify_probe

    try:
        said = verify_probe(open(path), model, preprocess)
    except HoldtrueError as error:
        said = error.report
    return report(
        found.subject,
        [*found.findings, *said.findings],
        [*found.not_checked, *said.not_checked],
    )


def _verify(path: str | os.PathLike[str], key: Any, progress: Tell | None) -> Report:
    place = locate(path)
    try:
        whole = verify_files(place, progress)
    except DamageError as error:
        whole = error.report
    if key is None and not is_ours(place):
        return whole
    broken, unchecked = check_seal(place, key)
    return report(whole.subject, [*whole.findings, *broken], [*whole.not_checked, *unchecked])
