"""Keys: who signs a seal, and whose signature is asked for. Needs the package `cryptography`.

Ed25519 is what is meant; the NIST curves are taken too, because the OpenSSF tool takes only those.
"""

import hashlib
import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from holdtrue.errors import HoldtrueError, fail
from holdtrue.findings import Finding
from holdtrue.limits import KIB
from holdtrue.records.seal import to_sign

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import (
        ECDSA,
        EllipticCurvePrivateKey,
        EllipticCurvePublicKey,
    )
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

    PrivateKey = Ed25519PrivateKey | EllipticCurvePrivateKey
    PublicKey = Ed25519PublicKey | EllipticCurvePublicKey

_LONGEST = 64 * KIB  # of a key's file
_CURVES = {"secp256r1": "SHA256", "secp384r1": "SHA384", "secp521r1": "SHA512"}


class Signer(Struct, frozen=True, eq=False):
    """Who signs; nobody where there is no key."""

    key: Any = None


def signer(given: Any) -> Signer | None:
    """The signer for a `seal=` argument: False, True for a seal that nobody signs, a private key or
    the path of its PEM file. Raises HoldtrueError where that is no key."""
    if given is None or given is False:
        return None
    if given is True:
        return Signer()
    _require()
    from cryptography.hazmat.primitives import serialization

    where = _where(given)
    key = given
    if isinstance(given, (str, os.PathLike)):
        raw = _read(Path(given))
        try:
            key = serialization.load_pem_private_key(raw, None)
        except Exception:  # cryptography raises many kinds, and the words change with its versions
            why = _why_not(raw, b"PRIVATE KEY")
            raise fail(HoldtrueError, where, _unusable(where, why, signs=True)) from None
    if not _known(key, private=True):
        why = f"{type(key).__name__} is not a private key that seals are signed with"
        raise fail(HoldtrueError, where, _unusable(where, why, signs=True))
    return Signer(key)


def public_key(given: Any) -> "PublicKey":
    """The public key for a `sealed_by=` argument: a key, or the path of its PEM file. A private
    key stands for its public half. Raises HoldtrueError."""
    _require()
    from cryptography.hazmat.primitives import serialization

    where = _where(given)
    key = given
    if isinstance(given, (str, os.PathLike)):
        raw = _read(Path(given))
        try:
            if b"PRIVATE KEY" in raw:
                key = serialization.load_pem_private_key(raw, None)
            else:
                key = serialization.load_pem_public_key(raw)
        except Exception:
            why = _why_not(raw, b"KEY")
            raise fail(HoldtrueError, where, _unusable(where, why, signs=False)) from None
    if _known(key, private=True):
        key = key.public_key()
    if not _known(key, private=False):
        why = f"{type(key).__name__} is not a public key that seals are checked with"
        raise fail(HoldtrueError, where, _unusable(where, why, signs=False))
    found: PublicKey = key
    return found


def sign(key: "PrivateKey", payload: bytes) -> bytes:
    """The signature over a statement."""
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

    if isinstance(key, EllipticCurvePrivateKey):
        return key.sign(to_sign(payload), _ecdsa(key.curve.name))
    return key.sign(to_sign(payload))


def signed_by(key: "PublicKey", payload: bytes, signature: bytes) -> bool:
    """Whether the owner of the key signed the statement."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

    try:
        if isinstance(key, EllipticCurvePublicKey):
            key.verify(signature, to_sign(payload), _ecdsa(key.curve.name))
        else:
            key.verify(signature, to_sign(payload))
    except InvalidSignature:
        return False
    return True


def fingerprint(key: "PublicKey") -> str:
    """What a seal says of its key: the SHA-256 of the public key's PEM text."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(pem).hexdigest()


def _ecdsa(curve: str) -> "ECDSA":
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA

    return ECDSA(getattr(hashes, _CURVES[curve])())


def _known(key: Any, *, private: bool) -> bool:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    plain = ed25519.Ed25519PrivateKey if private else ed25519.Ed25519PublicKey
    curved = ec.EllipticCurvePrivateKey if private else ec.EllipticCurvePublicKey
    return isinstance(key, plain) or (isinstance(key, curved) and key.curve.name in _CURVES)


def _where(given: Any) -> str:
    return os.fspath(given) if isinstance(given, (str, os.PathLike)) else type(given).__name__


def _read(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():  # reading a pipe would wait for ever
            raise fail(HoldtrueError, str(path), _unusable(str(path), "it is no file", signs=False))
        with path.open("rb") as file:
            return file.read(_LONGEST)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise fail(HoldtrueError, str(path), _unusable(str(path), why, signs=False)) from None


def _why_not(raw: bytes, wanted: bytes) -> str:
    if b"ENCRYPTED" in raw:
        return "it has a password"
    if wanted in raw:
        return "what it holds cannot be read as a key"
    if b"PUBLIC KEY" in raw:
        return "it is a public key; the private one signs"
    return f"there is no {wanted.decode().lower()} in it, in the PEM form"


def _require() -> None:
    if find_spec("cryptography") is not None:
        return
    raise fail(
        HoldtrueError,
        "seals",
        Finding(
            code="package-missing",
            severity="error",
            where="seals",
            what="signatures need cryptography, which is not installed",
            why="a seal without a signature, seal=True, does without; signing one, and checking a "
            "signature, does not",
            fix="pip install 'holdtrue[seal]'",
        ),
    )


def _unusable(where: str, why: str, *, signs: bool) -> Finding:
    return Finding(
        code="key-unusable",
        severity="error",
        where=where,
        what="this is not a key that can " + ("sign a seal" if signs else "check one"),
        why=why,
        fix="openssl genpkey -algorithm ed25519 -out key.pem makes one that signs, and openssl "
        "pkey -in key.pem -pubout -out key.pub.pem the one that checks; one with a password is "
        "given as an object of cryptography",
    )
