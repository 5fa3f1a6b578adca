"""Which format a path is in, told by content and never by the file's name.

Inside a directory names do count: they are part of the formats that consist of several files.
"""

import re
import stat
from pathlib import Path
from typing import Literal

from msgspec import Struct

from holdtrue.errors import HoldtrueError, OpenError
from holdtrue.formats import directories, signatures
from holdtrue.formats.source import inspect_path, open_source, unreachable
from holdtrue.formats.text_transfer import transferred_as_text
from holdtrue.formats.zip_contents import name_zip
from holdtrue.limits import KIB, limits

Kind = Literal[
    "holdtrue", "holdtrue-run", "torch-zip", "torchscript", "pt2", "torch-legacy", "torch-tar",
    "pickle", "safetensors", "hf-index", "dcp", "dcp-safetensors", "npy", "npz",
]  # fmt: skip

_HEAD = 16 * KIB
_TAIL = 64
_LOST = 64  # zeros that no format begins with: the bytes that were there are lost
_PICKLE_DICTS = re.compile(
    rb"\((?:dp|lp)\d*\n|\((?:d|l|t)|c[\w.]+\n[\w.]+\n|\(i[\w.]+\n[\w.]+\n|[}\])][q.]|[LI]-?\d+L?\n"
)
# The pickled number that begins a legacy torch file, in protocols 1 and up, and in protocol 0.
_LEGACY_MAGIC = (b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", b"L119547037146038801333356L\n.")
_LEGACY_REWRITTEN = _LEGACY_MAGIC[0].replace(b"\n", b"\r\n")
# As a name of its own in the pickle (protocols 2 and 3, then 4): text in a value has other bytes.
_JOBLIB = re.compile(
    rb"cjoblib\.numpy_pickle\nNumpyArrayWrapper\n|\x8c\x13joblib\.numpy_pickle\x94"
)
_TAR_MEMBERS = {b"sys_info", b"pickle", b"tensors", b"storages"}


class Detected(Struct, frozen=True):
    """`path` is what the format's reader wants: the directory, for a format of several files."""

    kind: Kind
    path: str
    detail: str = ""


def detect(path: str) -> Detected:
    """The format of a file or directory. Raises OpenError, naming what else it is."""
    if stat.S_ISDIR(inspect_path(path).st_mode):
        return _detect_directory(path)
    with open_source(path) as file:
        try:
            size = file.seek(0, 2)
            file.seek(0)
            head = file.read(_HEAD)
            file.seek(max(0, size - _TAIL))
            tail = file.read(_TAIL)
        except OSError as error:  # a kernel's file that is no run of bytes, or a failing disk
            raise unreachable(path, error) from None
    if not head:
        raise signatures.empty(path)
    if not any(head):
        raise signatures.zeroed(path, len(head), not any(tail))
    kind = _by_content(path, head, tail, size)
    place = Path(path)
    if kind == "pickle" and place.name == "data.pkl" and directories.is_unpacked(str(place.parent)):
        raise directories.unpacked(path)
    if kind is not None:
        return Detected(kind, path)
    member = directories.member_of(path, head)
    if member is not None:
        return Detected(member.kind, member.path, member.detail)
    named = signatures.recognise(path, head, tail)
    if named is None and head.startswith(bytes(_LOST)):
        raise signatures.zeroed(path, len(head) - len(head.lstrip(b"\0")), False)
    if named is None and _calls_something(path):
        return Detected("pickle", path)
    raise transferred_as_text(path, head) or named or signatures.unknown(path, head, size)


def _by_content(path: str, head: bytes, tail: bytes, size: int) -> Kind | None:
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")):
        return name_zip(path)
    if head.startswith(b"\x93NUMPY"):
        return "npy"
    if any(magic in head[:40] for magic in _LEGACY_MAGIC):
        return "torch-legacy"
    if _is_tar(head):
        return _name_tar(path, head, size)
    if _LEGACY_REWRITTEN in head[:40]:
        return None  # a pickle by its first bytes, and changed since
    pickled = head[0] == 0x80 and len(head) > 1 and 2 <= head[1] <= 5
    if pickled and not _has_json_of_length(head):
        if _JOBLIB.search(head):
            raise signatures.joblib(path)
        return None if directories.is_dcp_metadata(head) else "pickle"
    if is_safetensors(head, size):
        return "safetensors"
    if _PICKLE_DICTS.match(head) and tail.endswith(b"."):
        return "pickle"
    return None


def _calls_something(path: str) -> bool:
    """A pickle of a protocol before 2 has no mark at its front; that it is one shows in the walk.

    Only those that call something are taken for one: `N.` and a few words of text are pickles too.
    """
    from holdtrue.formats.pickle_machine import walk
    from holdtrue.formats.pickle_source import from_file

    try:
        walked = walk(from_file(path, path), where=path)
    except HoldtrueError:
        return False
    return any(operation.kind == "call" for operation in walked.would_run)


def is_safetensors(head: bytes, size: int) -> bool:
    """A little-endian length that fits, then JSON; or a broken length that is not text."""
    length = int.from_bytes(head[:8], "little")
    fits = 0 < length <= limits().header_bytes
    if size <= 8:
        return len(head) == 8 and fits
    if not fits and signatures.begins_another(head):  # a `{` at byte 8 of it is chance
        return False
    text = head[8:].lstrip(b" \t\r\n")
    if not text:
        return fits
    plain = all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head[:8])
    return text.startswith(b"{") and not plain


def _has_json_of_length(head: bytes) -> bool:
    """A header of 640 or 896 bytes, say, has a length that begins like a pickle: 80 02 00 00 …"""
    length = int.from_bytes(head[:8], "little")
    return 0 < length <= limits().header_bytes and head[8:].lstrip(b" \t\r\n").startswith(b"{")


def _is_tar(head: bytes) -> bool:
    """By the checksum of the first header, which tar files older than `ustar` have too."""
    if len(head) < 512:
        return False
    digits = head[148:156].strip(b" \0")
    if not digits or not all(48 <= d < 56 for d in digits):
        return False
    return int(digits, 8) == sum(head[:148]) + 8 * 32 + sum(head[156:512])


def _name_tar(path: str, head: bytes, size: int) -> Kind:
    names = _tar_names(path, size)
    if {name.split(b"/")[-1] for name in names} >= _TAR_MEMBERS:
        return "torch-tar"
    raise signatures.archive(path, "a tar archive", [n.decode("utf-8", "replace") for n in names])


def _tar_names(path: str, size: int) -> list[bytes]:
    """The first member names of a tar file; its headers are followed, nothing is unpacked."""
    names: list[bytes] = []
    position = 0
    with open_source(path) as file:
        while position + 512 <= size and len(names) < 64:
            file.seek(position)
            block = file.read(512)
            digits = block[124:136].strip(b" \0")
            if not _is_tar(block) or not digits.isdigit():
                break
            names.append(block[:100].split(b"\0")[0])
            try:
                position += 512 + -(-int(digits, 8) // 512) * 512
            except ValueError:
                break
    return names


def _detect_directory(path: str) -> Detected:
    found = directories.recognise(path)
    if found is not None:
        return Detected(found.kind, found.path, found.detail)
    raise directories.unknown(path, sniff)


def sniff(path: str) -> str | None:
    """The kind of a file or directory if it is a checkpoint; None for everything else."""
    try:
        if stat.S_ISDIR(inspect_path(path).st_mode):  # not searched in turn
            found = directories.recognise(path)
            return None if found is None else found.kind
        return detect(path).kind
    except OpenError:
        return None
