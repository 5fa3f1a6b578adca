"""A seal as data: which files a checkpoint has, the SHA-256 of each, and who signed that.

Laid out as the OpenSSF model signing does: an in-toto statement about the files, in a DSSE
envelope, in a Sigstore bundle, as JSON. A layout of our own was rejected: others check this one.
"""

import base64
import binascii
import hashlib
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

NAME = "model.sig"  # in the checkpoint's directory; the name that the OpenSSF tool uses
MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"

Sha256 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]


class SealError(ValueError):
    """What stands in a seal is no seal; the message says why."""


class Seal(Struct, frozen=True, kw_only=True):
    """What was sealed, and the signature over it. The payload is the bytes that were signed."""

    files: dict[str, str]  # name with "/" → SHA-256
    payload: bytes
    signature: bytes | None  # None: nobody signed it
    hint: str | None  # which public key: the SHA-256 of its PEM text; not covered by the signature
    certified: bool = False  # signed by way of a certificate


class _Digest(Struct, frozen=True):
    sha256: Sha256


class _Subject(Struct, frozen=True):
    name: str
    digest: _Digest


class _Resource(Struct, frozen=True):
    name: str
    algorithm: str
    digest: Sha256


class _Serialization(Struct, frozen=True):
    method: str
    hash_type: str
    allow_symlinks: bool
    ignore_paths: tuple[str, ...] = ()


class _Predicate(Struct, frozen=True):
    serialization: _Serialization
    resources: tuple[_Resource, ...]


class _Statement(Struct, frozen=True, rename={"type_": "_type", "predicate_type": "predicateType"}):
    type_: str
    subject: tuple[_Subject, ...]
    predicate_type: str
    predicate: _Predicate


# The outside is not signed: a member that is not known here is refused, and not passed over.
class _Key(Struct, frozen=True, forbid_unknown_fields=True):
    hint: str | None = None


class _Material(
    Struct, frozen=True, forbid_unknown_fields=True, rename="camel", omit_defaults=True
):
    public_key: _Key | None = None
    certificate: Any = None
    x509_certificate_chain: Any = msgspec.field(name="x509CertificateChain", default=None)
    tlog_entries: list[Any] = msgspec.field(default_factory=list)
    timestamp_verification_data: Any = None


class _Signature(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    sig: str
    keyid: str | None = None


class _Envelope(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    payload: str
    payload_type: str
    signatures: tuple[_Signature, ...]


class _Bundle(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    media_type: str
    verification_material: _Material
    dsse_envelope: _Envelope


def statement(name: str, files: dict[str, str]) -> bytes:
    """The statement that these are the files of the checkpoint called `name`: what is signed."""
    ordered = sorted(files, key=lambda file: file.split("/"))
    said = _Statement(
        type_=STATEMENT_TYPE,
        subject=(_Subject(name, _Digest(_root([files[file] for file in ordered]))),),
        predicate_type=PREDICATE_TYPE,
        predicate=_Predicate(
            serialization=_Serialization("files", "sha256", False, (NAME,)),
            resources=tuple(_Resource(file, "sha256", files[file]) for file in ordered),
        ),
    )
    return msgspec.json.encode(said)


def to_sign(payload: bytes) -> bytes:
    """The bytes that a signature is over: DSSE's pre-authentication encoding of a statement."""
    return b"DSSEv1 %d %s %d %s" % (
        len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload
    )  # fmt: skip


def encode_seal(payload: bytes, signature: bytes | None, hint: str | None) -> bytes:
    """The seal as it stands in its file."""
    signed = () if signature is None else (_Signature(base64.b64encode(signature).decode()),)
    bundle = _Bundle(
        MEDIA_TYPE,
        _Material(public_key=None if hint is None else _Key(hint)),
        _Envelope(base64.b64encode(payload).decode(), PAYLOAD_TYPE, signed),
    )
    values = msgspec.to_builtins(bundle)
    values["verificationMaterial"]["tlogEntries"] = []  # others ask for it, empty or not
    return msgspec.json.encode(values)


def decode_seal(raw: bytes) -> Seal:
    """Raises SealError."""
    try:
        bundle = msgspec.json.decode(raw, type=_Bundle)
        envelope = bundle.dsse_envelope
        _expect("media type", bundle.media_type, MEDIA_TYPE)
        _expect("payload type", envelope.payload_type, PAYLOAD_TYPE)
        payload = _unbase64(envelope.payload)
        said = msgspec.json.decode(payload, type=_Statement)
        signatures = [_unbase64(s.sig) for s in envelope.signatures]
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise SealError(str(error)[:200]) from None
    if len(signatures) > 1:
        raise SealError(f"it has {len(signatures)} signatures; one is known what to do with")
    key = bundle.verification_material.public_key
    material = bundle.verification_material
    return Seal(
        files=_files(said),
        payload=payload,
        signature=signatures[0] if signatures else None,
        hint=key.hint if key else None,
        certified=bool(material.certificate or material.x509_certificate_chain),
    )


def _files(said: _Statement) -> dict[str, str]:
    _expect("statement type", said.type_, STATEMENT_TYPE)
    _expect("predicate type", said.predicate_type, PREDICATE_TYPE)
    _expect("method", said.predicate.serialization.method, "files")
    _expect("hash", said.predicate.serialization.hash_type, "sha256")
    resources = said.predicate.resources
    found = {r.name: r.digest for r in resources}
    if len(found) != len(resources):
        raise SealError("a file stands in it twice")
    for resource in resources:
        _expect("algorithm", resource.algorithm, "sha256")
    if len(said.subject) != 1:
        raise SealError(f"it has {len(said.subject)} subjects; there has to be one")
    if said.subject[0].digest.sha256 != _root([r.digest for r in resources]):
        raise SealError("its digest of all files does not follow from those of each")
    return found


def _root(digests: list[str]) -> str:
    return hashlib.sha256(b"".join(map(bytes.fromhex, digests))).hexdigest()


def _unbase64(text: str) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise SealError("it is not base64") from None
    # The last character has bits that mean nothing; two texts for one signature are not welcome.
    if base64.b64encode(raw).decode() != text:
        raise SealError("its base64 is not as one writes it")
    return raw


def _expect(what: str, found: str, expected: str) -> None:
    if found != expected:
        raise SealError(f"its {what} is {found[:80]!r}, not {expected!r}")
