"""Changes to files that torch wrote: what damage, other machines and other versions leave."""

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

Change = Callable[[bytes], bytes | None]


def rewritten(path: Path, record: str, change: Change) -> Path:
    """A torch zip with one record changed (None: left out), its checksums right again."""
    with zipfile.ZipFile(path) as archive:
        kept = [(info.filename, archive.read(info)) for info in archive.infolist()]
    touched = 0
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in kept:
            new: bytes | None = data
            if name.split("/", 1)[-1] == record:
                new, touched = change(data), touched + 1
            if new is not None:
                archive.writestr(name, new)
    assert touched == 1, f"{path} has no record {record}"
    return path


def replaced(path: Path, *pairs: tuple[bytes, bytes]) -> Path:
    """Bytes of the pickle of a torch zip replaced; each must be there."""

    def change(data: bytes) -> bytes:
        for old, new in pairs:
            assert old in data, f"{old!r} is not in the pickle"
            data = data.replace(old, new)
        return data

    return rewritten(path, "data.pkl", change)


def global_renamed(path: Path, old: str, new: str) -> Path:
    """A class under another name, as if the file came from elsewhere (protocol 2: plain text)."""
    return replaced(path, (_global(old), _global(new)))


def global_renamed_in_stream(path: Path, old: str, new: str) -> Path:
    """The same for a file without an archive around its pickles."""
    data = path.read_bytes()
    assert _global(old) in data
    path.write_bytes(data.replace(_global(old), _global(new)))
    return path


def _global(name: str) -> bytes:
    module, _, attribute = name.rpartition(".")
    return b"c%s\n%s\n" % (module.encode(), attribute.encode())


def text(value: str) -> bytes:
    """A string as pickles up to protocol 3 hold it."""
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def patched(path: Path, at: int, data: bytes) -> Path:
    """Bytes written over a file in place."""
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)
    return path


def extent(path: Path, record: str) -> tuple[int, int]:
    """Where the bytes of a record of a torch zip begin and end."""
    with zipfile.ZipFile(path) as archive:
        info = next(i for i in archive.infolist() if i.filename.split("/", 1)[-1] == record)
    header = path.read_bytes()[info.header_offset : info.header_offset + 30]
    names, extra = struct.unpack_from("<HH", header, 26)
    begin = info.header_offset + 30 + names + extra
    return begin, begin + info.file_size


def flipped(path: Path, at: int) -> Path:
    """One bit."""
    byte = path.read_bytes()[at]
    return patched(path, at, bytes([byte ^ 0x10]))
