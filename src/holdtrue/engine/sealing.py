"""Sealing a directory: the SHA-256 of every file in it, written beside them and perhaps signed."""

import hashlib
import os
import stat
from pathlib import Path
from typing import Any

from holdtrue.engine.signing import Signer, fingerprint, sign, signed_by
from holdtrue.engine.threads import in_threads
from holdtrue.errors import SaveError, fail
from holdtrue.findings import Finding, several
from holdtrue.formats.checkpoint_directory import unreadable
from holdtrue.limits import limits
from holdtrue.records.seal import (
    NAME,
    Seal,
    SealError,
    decode_seal,
    encode_seal,
    statement,
)

_NO_LINKS = getattr(os, "O_NOFOLLOW", 0)


def sealed(directory: Path, name: str, by: Signer) -> bytes:
    """The seal of what stands in a directory, a checkpoint that is to be called `name`. What is
    hashed is read from the disk, in threads, a block at a time. Raises OSError, and SaveError for
    what cannot be listed in a seal."""
    names, odd = _listed(directory)
    if odd:
        raise fail(SaveError, str(directory), _special(directory, odd))
    strange = [file for file in names if not file.isascii() and not _is_text(file)]
    if strange:
        raise fail(SaveError, str(directory), _no_text(directory, strange))
    digests = in_threads(lambda file: _sha256(directory / file), names)
    payload = statement(name, dict(zip(names, digests, strict=True)))
    if by.key is None:
        return encode_seal(payload, None, None)
    return encode_seal(payload, sign(by.key, payload), fingerprint(by.key.public_key()))


def check_seal(directory: Path, key: Any = None) -> tuple[list[Finding], list[str]]:
    """What is wrong with a directory by its seal, and what was not checked.

    Without a `key`, whoever changed the files may have made the seal anew: that is said. A seal
    that is not there is wrong only where a key asks for one.
    """
    place = directory / NAME
    if not os.path.lexists(place):
        return ([] if key is None else [_missing(directory)]), []
    try:
        found = _read(place)
    except SealError as error:
        return [_malformed(place, str(error))], []
    except OSError as error:
        return list(unreadable(place, error).report.findings), []
    if key is None:
        said = "who sealed it" if found.signature else "who sealed it: the seal is not signed"
        return _compare(directory, found), [said + ("" if found.signature is None else _ASK)]
    wrong = _signature(place, found, key)
    # What a seal says that is not that person's says nothing of the files.
    return ([wrong] if wrong else _compare(directory, found)), []


_ASK = ": give the public key, --sealed-by KEY"


def _read(place: Path) -> Seal:
    fd = os.open(place, os.O_RDONLY | _NO_LINKS | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise SealError("it is no file")
        raw = file.read(limits().seal_bytes + 1)
    if len(raw) > limits().seal_bytes:
        raise SealError(f"it has more than {limits().seal_bytes:,} bytes")
    return decode_seal(raw)


def _signature(place: Path, found: Seal, key: Any) -> Finding | None:
    if found.certified:
        why = "it is signed by way of a certificate; the tool that made it checks it: model_signing"
        return _not_theirs(place, "the seal is signed with a certificate, not with a key", why)
    if found.signature is None:
        return _unsigned(place)
    if found.hint is not None and found.hint != fingerprint(key):
        return _not_theirs(
            place,
            "the seal was signed with another key",
            "it names its public key by the SHA-256 of its PEM text",
            saved=found.hint,
            expected=fingerprint(key),
        )
    if not signed_by(key, found.payload, found.signature):
        return _not_theirs(
            place,
            "the signature of the seal does not hold",
            "the list of files was changed after it was signed, or somebody else signed it",
        )
    return None


def _compare(directory: Path, found: Seal) -> list[Finding]:
    """Every file that the seal and the directory do not agree on, a finding for each way."""
    try:
        names, odd = _listed(directory)
        there = [name for name in names if name in found.files]
        digests = in_threads(lambda file: _sha256(directory / file), there)
    except OSError as error:
        place = Path(error.filename or directory)
        return list(unreadable(place, error).report.findings)
    changed = [n for n, d in zip(there, digests, strict=True) if found.files[n] != d]
    added = [name for name in [*names, *odd] if name not in found.files]
    gone = sorted(found.files.keys() - set(names))
    return [
        _broken(directory, kind, places)
        for kind, places in (("changed", changed), ("added", added), ("removed", gone))
        if places
    ]


def _listed(directory: Path) -> tuple[list[str], list[str]]:
    """All files below a directory but the seal, and what is neither file nor directory."""
    files: list[str] = []
    odd: list[str] = []
    waiting = [""]
    while waiting:
        inner = waiting.pop()
        with os.scandir(directory / inner) as entries:
            for entry in entries:
                name = f"{inner}{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(f"{name}/")
                elif not entry.is_file(follow_symlinks=False):
                    odd.append(name)
                elif name != NAME:
                    files.append(name)
        if len(files) + len(odd) + len(waiting) > limits().entries:
            raise OSError(f"there are more than {limits().entries:,} files in {directory}")
    return sorted(files, key=lambda name: name.split("/")), sorted(odd)


def _is_text(name: str) -> bool:
    """False for bytes that are no UTF-8: Linux has such names, JSON has not."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _sha256(path: Path) -> str:
    with os.fdopen(os.open(path, os.O_RDONLY | _NO_LINKS), "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_BROKEN = {
    "changed": ("is not the file that was sealed", "its SHA-256 is another one"),
    "added": ("was not there when the checkpoint was sealed", "the seal lists all files"),
    "removed": ("was sealed and is not there", "it was removed, or renamed, or not copied along"),
}


def _broken(directory: Path, kind: str, names: list[str]) -> Finding:
    what, why = _BROKEN[kind]
    places = [str(directory / name) for name in names]
    return Finding(
        code="seal-broken",
        severity="error",
        where=places[0],
        what=what,
        why=why,
        fix="use the checkpoint as it was sealed, from where it was copied; if the change is "
        "meant, its owner seals it again: holdtrue seal --overwrite",
        places=several(places),
    )


def _special(directory: Path, names: list[str]) -> Finding:
    places = [str(directory / name) for name in names]
    return Finding(
        code="special-file",
        severity="error",
        where=places[0],
        what="not sealed: this is neither a file nor a directory",
        why="a seal lists files; a link can lead elsewhere tomorrow, and a pipe has no contents",
        fix="remove it, or put a copy of what it leads to in its place",
        places=several(places),
    )


def _no_text(directory: Path, names: list[str]) -> Finding:
    places = [repr(str(directory / name)) for name in names]
    return Finding(
        code="path-invalid",
        severity="error",
        where=places[0],
        what="not sealed: the name of this file is not text",
        why="its bytes are not UTF-8, and a seal, which is JSON, cannot hold them",
        fix="rename it, or remove it if it does not belong there",
        places=several(places),
    )


def _missing(directory: Path) -> Finding:
    return Finding(
        code="seal-missing",
        severity="error",
        where=str(directory / NAME),
        what="there is no seal",
        why="it was never sealed, or the seal was removed: files that anyone may have changed",
        fix="ask who made it for the seal; whoever has the key seals it: holdtrue seal --key KEY",
    )


def _unsigned(place: Path) -> Finding:
    return Finding(
        code="seal-unsigned",
        severity="error",
        where=str(place),
        what="the seal is not signed",
        why="it tells accidents, and not attackers: whoever can change the files can write it anew",
        fix="whoever has the key seals it again: holdtrue seal --overwrite --key KEY",
    )


def _malformed(place: Path, why: str) -> Finding:
    return Finding(
        code="seal-malformed",
        severity="error",
        where=str(place),
        what="this is not a seal that can be read",
        why=why,
        fix="copy it again from where the checkpoint came from, or have it sealed again",
    )


def _not_theirs(place: Path, what: str, why: str, **more: Any) -> Finding:
    return Finding(
        code="seal-signature",
        severity="error",
        where=str(place),
        what=what,
        why=why,
        fix="check that this is the key of who should have sealed it; if it is, do not use the "
        "checkpoint",
        **more,
    )
