"""The manifest: everything about a checkpoint beside its tensors' bytes.

The file is one JSON object whose last member is the digest of all bytes before it, so that a flip
anywhere in the manifest is seen. `docs/format.md` is the specification.
"""

import re
from typing import Any, Literal, TypeVar

import msgspec
import xxhash
from msgspec import Struct, field

from holdtrue.errors import DamageError, HoldtrueError, OpenError, fail
from holdtrue.findings import Finding
from holdtrue.limits import limits
from holdtrue.records.architecture import Architecture
from holdtrue.records.environment import Environment
from holdtrue.records.members import repeated
from holdtrue.records.recipe import Rebuild

FORMAT = "holdtrue"
VERSION = 1
NAME = "manifest.json"
SOURCE = "source"  # the directory of a model's own code, as text

_TAIL = re.compile(rb',"xxh3_128":"([0-9a-f]{32})"}\n\Z')
_HEAD = re.compile(rb'\A\{"format":"([^"\\]{1,40})","version":([0-9]{1,9})[,}]')


# Without gc: a checkpoint has one of these for each tensor, and none can be part of a cycle.
# Tracked, ten thousand of them set off a collection of everything that the process holds.
class Chunk(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Where a box of a tensor is stored: a tensor called `name` in a safetensors file.

    `start` is absent when the chunk is the whole tensor. `digest` is xxh3-128 of its bytes.
    """

    file: str
    name: str
    digest: str
    start: tuple[int, ...] | None = None
    shape: tuple[int, ...] | None = None


class Quantizer(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """How a quantised tensor's integers map to numbers. Per channel: see the components."""

    scheme: str  # torch's qscheme without "torch."
    scale: float | None = None
    zero_point: int | None = None
    axis: int | None = None


class TensorRecord(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A tensor's logical description. Strided tensors have chunks, the others components."""

    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...] | None = None  # in elements; absent when C-contiguous
    layout: str = "strided"
    device: str = "cpu"
    requires_grad: bool = False
    parameter: bool = False
    persistent: bool = True  # False: a buffer that state_dict() leaves out
    chunks: tuple[Chunk, ...] = ()
    components: dict[str, str] = field(default_factory=dict)  # role → tensor key
    quantizer: Quantizer | None = None
    numpy: str | None = None  # NumPy dtype string, for arrays
    class_name: str | None = None  # of a tensor subclass
    state: Any = None  # of a tensor subclass: attributes, as a value node
    coalesced: bool = False  # sparse COO
    overlap: tuple[int, int] | None = None  # (group, first element): shares memory with others


class FileRecord(Struct, frozen=True, kw_only=True):
    """One data file: its exact size, and the digest of its safetensors header."""

    nbytes: int
    header: int  # bytes before the data
    header_digest: str  # xxh3-128 of those


class Part(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A named piece of the state. `state` is a value node; see `records/values.py`."""

    kind: str  # module · optimizer · stateful · value · rng
    class_name: str | None = None
    state: Any = None
    architecture: Architecture | None = None  # of a module
    rebuild: Rebuild | None = None  # of a module: its recipe, or why there is none


class Ranking(Struct, frozen=True, kw_only=True):
    """Which metric says which checkpoint of a run is best."""

    by: str
    mode: Literal["min", "max"] = "min"


class Cost(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a save of a run cost: for `holdtrue log`, and for the first save after a resume."""

    stall: float = 0.0  # seconds that the training waited
    seconds: float = 0.0  # from the call until the data files were durable
    written: int = 0  # bytes of data files that were written, and not linked
    linked: int = 0  # files that were linked
    staging: int = 0  # bytes of memory that held the state meanwhile


class Manifest(Struct, frozen=True, kw_only=True):
    """Fields that a reader does not know are ignored, so a format version may gain some."""

    format: str = FORMAT
    version: int = VERSION
    created: str  # UTC, ISO 8601
    environment: Environment
    parts: dict[str, Part]
    tensors: dict[str, TensorRecord]
    files: dict[str, FileRecord]
    step: int | None = None
    metrics: Any = None  # a value node: str → number
    ranking: Ranking | None = None
    cost: Cost | None = None  # of the save of a run


class Summary(Struct, frozen=True, kw_only=True):
    """What tells the checkpoints of a run apart, of a manifest whose tensors are not looked at: of
    a thousand of them, all that is needed to rank and to prune."""

    format: str
    version: int
    created: str
    step: int | None = None
    metrics: Any = None
    ranking: Ranking | None = None
    cost: Cost | None = None


_Read = TypeVar("_Read", Manifest, Summary)


def encode_manifest(manifest: Manifest) -> bytes:
    """The bytes of manifest.json, sealed with their own digest."""
    body = msgspec.json.encode(manifest)[:-1]
    return body + b',"xxh3_128":"' + xxhash.xxh3_128_hexdigest(body).encode() + b'"}\n'


def decode_manifest(raw: bytes, where: str) -> Manifest:
    """The manifest, its digest and types checked. Raises OpenError for a newer version, else
    DamageError. What it says is checked by `records/consistency.py`."""
    manifest = _decode(raw, where, Manifest)
    try:
        name = repeated(raw, ("parts", "tensors", "files"))
    except (ValueError, RecursionError) as error:  # in what an older reader does not know
        raise _damaged(where, f"it does not follow the format: {error}") from None
    if name is not None:
        raise _damaged(where, f"it has {name[:100]!r} twice in one object")
    return manifest


def decode_summary(raw: bytes, where: str) -> Summary:
    """As `decode_manifest`, but nothing is made of what the summary does not have: of that only the
    digest is checked."""
    return _decode(raw, where, Summary)


def _decode(raw: bytes, where: str, kind: type[_Read]) -> _Read:
    if len(raw) > limits().manifest_bytes:
        raise _damaged(where, f"it has {len(raw):,} bytes; {limits().manifest_bytes:,} are allowed")
    tail = _TAIL.search(raw)
    intact = tail is not None and xxhash.xxh3_128_hexdigest(raw[: tail.start()]) == tail[1].decode()
    head = _HEAD.match(raw)
    # Only a manifest that proves whole is believed when it says that it is newer: a flipped digit
    # must not send anyone to upgrade.
    if intact and head and head[1] == FORMAT.encode() and int(head[2]) > VERSION:
        raise _newer(where, int(head[2]))
    if not intact:
        raise _damaged(where, "its own digest does not match its bytes")
    try:
        manifest = msgspec.json.decode(raw, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise _damaged(where, f"it does not follow the format: {error}") from None
    if manifest.format != FORMAT or not 1 <= manifest.version <= VERSION:
        raise _damaged(where, f"it says format {manifest.format!r}, version {manifest.version}")
    return manifest


def _damaged(where: str, why: str) -> HoldtrueError:
    return fail(
        DamageError,
        where,
        Finding(
            code="manifest-damaged",
            severity="error",
            where=where,
            what="the manifest is not the one that was written",
            why=why,
            fix="use another checkpoint; the .safetensors files beside it may still be whole: "
            "safetensors reads them on their own",
        ),
    )


def _newer(where: str, version: int) -> HoldtrueError:
    return fail(
        OpenError,
        where,
        Finding(
            code="format-newer",
            severity="error",
            where=where,
            what=f"written in format version {version}; this holdtrue reads up to {VERSION}",
            why="a later holdtrue wrote it, and reading it by older rules could misread it",
            fix="pip install --upgrade holdtrue",
            saved=str(version),
            expected=str(VERSION),
        ),
    )
