"""The safetensors container: an 8-byte length, a JSON header, the tensors without gaps.

The whole header is checked before any of it is used, by the rules of the reference reader
(huggingface/safetensors, `Metadata::validate`): offsets contiguous from zero, sizes equal to
dtype × shape, the data fully covered.
"""

import struct
from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import Struct

from holdtrue.errors import DamageError, fail
from holdtrue.findings import Finding
from holdtrue.formats.strict_json import strict_decoder, strict_json, too_many
from holdtrue.limits import limits
from holdtrue.records.dtypes import SAFETENSORS, product


class Entry(Struct, frozen=True, gc=False):
    """One stored tensor; `begin` and `end` are bytes from the end of the header."""

    name: str
    code: str  # safetensors dtype
    shape: tuple[int, ...]
    begin: int
    end: int


class Header(Struct, frozen=True):
    entries: dict[str, Entry]
    metadata: dict[str, str]
    length: int  # bytes before the data, the 8-byte prefix included


def build_header(tensors: Iterable[tuple[str, str, tuple[int, ...], int]], metadata: dict[str, str],
                 align: int = 64) -> tuple[bytes, dict[str, Entry]]:  # fmt: skip
    """The header of a file that will hold (name, code, shape, nbytes) in this order.

    Padded with spaces so that the data begin on a multiple of `align` bytes.
    """
    entries: dict[str, Entry] = {}
    offset = 0
    body: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    for name, code, shape, nbytes in tensors:
        entries[name] = Entry(name, code, shape, offset, offset + nbytes)
        body[name] = {"dtype": code, "shape": shape, "data_offsets": (offset, offset + nbytes)}
        offset += nbytes
    text = msgspec.json.encode(body)
    text += b" " * (-(8 + len(text)) % align)
    return struct.pack("<Q", len(text)) + text, entries


def header_length(prefix: bytes, file_bytes: int, where: str) -> int:
    """Bytes before the data, from the first 8 bytes of a file of `file_bytes`."""
    if len(prefix) < 8:
        raise _damage(where, f"the file ends after {len(prefix)} bytes, before its header")
    length = int(struct.unpack("<Q", prefix[:8])[0])
    budget = limits().header_bytes
    if length > budget:
        raise _damage(where, f"the header claims {length:,} bytes; {budget:,} are allowed")
    if 8 + length > file_bytes:
        raise _damage(where, f"the header claims {length:,} bytes, the file has {file_bytes:,}")
    return 8 + length


def parse_header(raw: bytes, file_bytes: int | None, where: str) -> Header:
    """The checked header; `raw` holds all bytes before the data. Raises DamageError.

    Without `file_bytes` the data may be cut off; the header is held to the other rules.
    """
    plain = _canonical(raw)
    if plain is not None:
        entries, metadata, covered = plain
        if file_bytes is not None and covered != file_bytes - len(raw):
            raise _other_size(where, covered, file_bytes - len(raw))
        return Header(entries, metadata, len(raw))
    try:
        body = strict_json(raw[8:])
        if not isinstance(body, dict):
            raise ValueError("it is not an object")
        metadata = _metadata(body.pop("__metadata__", {}))
        entries = {name: parse_entry(name, value) for name, value in body.items()}
        covered = _check_coverage(entries)
    except ValueError as error:
        raise _damage(where, f"the header is not valid: {error}") from None
    if file_bytes is not None and covered != file_bytes - len(raw):
        raise _other_size(where, covered, file_bytes - len(raw))
    return Header(entries, metadata, len(raw))


class _Described(Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """A tensor as the header has it."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


_TENSORS = msgspec.json.Decoder(dict[str, _Described])
_METADATA = b'{"__metadata__":'


def _canonical(raw: bytes) -> tuple[dict[str, Entry], dict[str, str], int] | None:
    """Entries, metadata and bytes of data of a header that is as all writers write it; else None.

    Decoding by type is eight times as fast as `strict_json`, and lets names stand twice. What
    encodes to the very same bytes again has none that do, and nothing else that was overlooked.
    Whatever is odd about a header is told by the other way.
    """
    try:
        body = raw[8:].rstrip(b" ")
        if too_many(body):
            return None
        metadata: dict[str, str] = {}
        if body.startswith(_METADATA):
            text = body.decode("utf-8")
            found, end = strict_decoder.raw_decode(text, len(_METADATA))
            metadata = _metadata(found)
            if text[end : end + 2] not in (',"', "}"):
                return None
            body = b"{" + text[end:].removeprefix(",").encode("utf-8")
        described = _TENSORS.decode(body)
        if msgspec.json.encode(described) != body:
            return None
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    entries: dict[str, Entry] = {}
    sizes: dict[tuple[str, tuple[int, ...]], int | None] = {}
    position = 0
    for name, one in described.items():
        kind = one.dtype, one.shape
        if kind not in sizes:
            sizes[kind] = _stored(*kind)
        begin, end = one.data_offsets
        size = sizes[kind]
        if begin != position or size is None or end != begin + size:
            return None
        entries[name] = Entry(name, one.dtype, one.shape, begin, end)
        position = end
    return (entries, metadata, position) if position < 1 << 63 else None


def _stored(code: str, shape: tuple[int, ...]) -> int | None:
    """The bytes that a tensor takes; None where that is not for sure."""
    if code not in SAFETENSORS or len(shape) > limits().dimensions:
        return None
    bits = product(shape) * SAFETENSORS[code][1]
    return None if bits % 8 or not all(0 <= n < 1 << 63 for n in shape) else bits // 8


def _metadata(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise ValueError("__metadata__ is not a map of strings")
    return value


def parse_entry(name: str, value: Any) -> Entry:
    """One tensor's checked description. Raises ValueError."""
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name!r} needs exactly dtype, shape and data_offsets")
    code, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(code, str) or code not in SAFETENSORS:
        raise ValueError(f"{name!r} has the unknown dtype {str(code)[:40]!r}")
    if not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"{name!r} has a shape or offsets that are not sizes")
    if len(shape) > limits().dimensions:
        raise ValueError(f"{name!r} has {len(shape)} dimensions")
    begin, end = offsets
    bits = product(tuple(shape)) * SAFETENSORS[code][1]
    if begin > end or bits != (end - begin) * 8:
        raise ValueError(
            f"{name!r} is {code} {shape}, {bits // 8:,} bytes, but {end - begin:,} are given"
        )
    return Entry(name, code, tuple(shape), begin, end)


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 1 << 63 for v in value)


def _check_coverage(entries: dict[str, Entry]) -> int:
    """How many bytes of data the tensors take, one behind the other. Raises ValueError."""
    position = 0
    for entry in sorted(entries.values(), key=lambda e: (e.begin, e.end)):
        if entry.begin != position:
            raise ValueError(f"{entry.name!r} starts at {entry.begin:,}, expected {position:,}")
        position = entry.end
    return position


def _other_size(where: str, needed: int, there: int) -> DamageError:
    """For a whole header before too few bytes of data, or too many."""
    sizes = f"its tensors take {needed:,} bytes of data, the file holds {there:,}"
    if there < needed:
        return _damage(
            where,
            f"the header is whole and {sizes}: a save, a copy or a download ended early",
            f"the safetensors file is cut off: {needed - there:,} bytes are missing",
        )
    return _damage(
        where,
        f"the header is whole and {sizes}: something was appended, or written over a longer file; "
        "safetensors refuses such a file",
        f"{there - needed:,} bytes too many follow the data of the safetensors file",
    )


def _damage(
    where: str, why: str, what: str = "this is not a whole safetensors file"
) -> DamageError:
    return fail(
        DamageError,
        where,
        Finding(
            code="safetensors-header-damaged",
            severity="error",
            where=where,
            what=what,
            why=why,
            fix="fetch or save the file again; `holdtrue salvage` keeps the tensors that are whole",
        ),
    )
