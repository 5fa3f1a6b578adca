"""What is often found in place of a checkpoint, known by its bytes, and what to do about each.

A signature makes a message kinder; it decides nothing about what is safe. Every format that can be
read is recognised in `detect` before any of these is asked.
"""

import bz2
import lzma
import re
import shlex
import zlib
from collections.abc import Callable
from pathlib import PurePath
from typing import Any

from msgspec import Struct

from holdtrue.errors import OpenError
from holdtrue.formats.source import refuse

_PEEK = 512  # bytes inflated from a compressed file to say what is inside

_RESAVE = "open it with the tool that wrote it and export the weights as .safetensors"
_WEIGHTS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".npz", ".npy", ".h5", ".pkl")
_NOT_MODEL = "check the path; if this is what a download gave you, fetch the checkpoint again"


class Signature(Struct, frozen=True):
    magic: bytes
    at: int
    code: str
    name: str
    fix: str


_SIGNATURES: tuple[Signature, ...] = (
    Signature(b"\x89HDF\r\n\x1a\n", 0, "foreign-format", "an HDF5 file (Keras .h5 weights?)",
              "load it with Keras or h5py and export the arrays as .safetensors or .npz"),
    Signature(b"GGUF", 0, "foreign-format", "a GGUF file (llama.cpp)",
              "fetch the model's .safetensors release; GGUF weights are quantised for llama.cpp"),
    Signature(b"ggjt"[::-1], 0, "foreign-format", "a GGML file (old llama.cpp)",
              "fetch the .safetensors release of the model"),
    Signature(b"ggml"[::-1], 0, "foreign-format", "a GGML file (old llama.cpp)",
              "fetch the .safetensors release of the model"),
    Signature(b"TFL3", 4, "foreign-format", "a TensorFlow Lite model", _RESAVE),
    Signature(b"ARROW1", 0, "foreign-format", "an Arrow file", "this is a data set, not weights"),
    Signature(b"PAR1", 0, "foreign-format", "a Parquet file", "this is a data set, not weights"),
    Signature(b"Obj\x01", 0, "foreign-format", "an Avro file", "this is a data set, not weights"),
    Signature(b"MATLAB 5.0 MAT-file", 0, "foreign-format", "a MATLAB file",
              "load it with scipy.io.loadmat and save the arrays with numpy.savez"),
    Signature(b"\x12\x01\0\0\0\0\0\0", 0, "foreign-format", "an MXNet parameter file", _RESAVE),
    Signature(b"SQLite format 3\0", 0, "not-a-checkpoint", "an SQLite database", _NOT_MODEL),
    Signature(b"%PDF-", 0, "not-a-checkpoint", "a PDF document", _NOT_MODEL),
    Signature(b"\x89PNG\r\n\x1a\n", 0, "not-a-checkpoint", "a PNG image", _NOT_MODEL),
    Signature(b"\xff\xd8\xff", 0, "not-a-checkpoint", "a JPEG image", _NOT_MODEL),
    Signature(b"GIF8", 0, "not-a-checkpoint", "a GIF image", _NOT_MODEL),
    Signature(b"WEBP", 8, "not-a-checkpoint", "a WebP image", _NOT_MODEL),
    Signature(b"II*\0", 0, "not-a-checkpoint", "a TIFF image", _NOT_MODEL),
    Signature(b"MM\0*", 0, "not-a-checkpoint", "a TIFF image", _NOT_MODEL),
    Signature(b"WAVE", 8, "not-a-checkpoint", "a WAV recording", _NOT_MODEL),
    Signature(b"OggS", 0, "not-a-checkpoint", "an Ogg recording", _NOT_MODEL),
    Signature(b"ftyp", 4, "not-a-checkpoint", "an MP4 video", _NOT_MODEL),
    Signature(b"\x7fELF", 0, "not-a-checkpoint", "a program or shared library (ELF)", _NOT_MODEL),
    Signature(b"MZ", 0, "not-a-checkpoint", "a Windows program", _NOT_MODEL),
    Signature(b"\xcf\xfa\xed\xfe", 0, "not-a-checkpoint", "a macOS program", _NOT_MODEL),
    Signature(b"\xca\xfe\xba\xbe", 0, "not-a-checkpoint", "a Java class or macOS program",
              _NOT_MODEL),
    Signature(b"!<arch>\n", 0, "not-a-checkpoint", "a static library or Debian package",
              _NOT_MODEL),
    Signature(b"7z\xbc\xaf\x27\x1c", 0, "compressed-file", "a 7-Zip archive",
              "unpack it (7z x FILE) and open the checkpoint inside"),
    Signature(b"Rar!\x1a\x07", 0, "compressed-file", "a RAR archive",
              "unpack it (unrar x FILE) and open the checkpoint inside"),
    Signature(b"\x28\xb5\x2f\xfd", 0, "compressed-file", "a Zstandard-compressed file",
              "unpack it (zstd -d FILE) and open the result"),
    Signature(b"\x04\x22\x4d\x18", 0, "compressed-file", "an LZ4-compressed file",
              "unpack it (lz4 -d FILE) and open the result"),
)  # fmt: skip

# How much of a compressed file's beginning can be inflated without a package, and by what.
_COMPRESSED: tuple[tuple[bytes, str, str, Callable[[], Any]], ...] = (
    (b"\x1f\x8b", "gzip", "gunzip", lambda: zlib.decompressobj(31)),
    (b"\xfd7zXZ\0", "xz", "unxz", lambda: lzma.LZMADecompressor(memlimit=64 << 20)),
    (b"BZh", "bzip2", "bunzip2", bz2.BZ2Decompressor),
)


def begins_another(head: bytes) -> bool:
    """Whether the first bytes are those of a format that is none of ours."""
    signed = any(row.magic and not row.at and head.startswith(row.magic) for row in _SIGNATURES)
    return signed or any(head.startswith(row[0]) for row in _COMPRESSED)


def recognise(path: str, head: bytes, tail: bytes) -> OpenError | None:
    """The refusal that names what a file is, from its first and last bytes; None if unknown."""
    for test in (_pointer, _markup, _json, _compressed, _zlib, _signed, _tensorflow, _onnx, _text):
        found = test(path, head, tail)
        if found is not None:
            return found
    return None


def empty(path: str) -> OpenError:
    return refuse(
        path,
        "file-empty",
        "the file is empty",
        "it holds 0 bytes; a save or a copy ended before anything was written",
        "go back to the checkpoint before, or fetch the file again",
    )


def zeroed(path: str, nbytes: int, whole: bool) -> OpenError:
    """For a file that holds, or begins with, nothing but zeros."""
    return refuse(
        path,
        "file-zeroed",
        "the file holds nothing but zeros" if whole else "the file's beginning is zeros",
        f"the first {nbytes:,} bytes are all zero; the space was reserved and the data never "
        "reached the disk (a crash, a full disk, an interrupted download)",
        "go back to the checkpoint before, or fetch the file again",
    )


def archive(path: str, what: str, names: list[str]) -> OpenError:
    """For an archive that is no checkpoint itself, by the names of what it holds."""
    inside = [name for name in names if name.lower().endswith(_WEIGHTS)]
    listed = ", ".join(_squeezed(name) for name in (inside or names)[:4]) or "nothing"
    return refuse(
        path,
        "compressed-file",
        f"the file is {what} of other files, not a checkpoint itself",
        f"it holds {listed}{' …' if len(inside or names) > 4 else ''}",
        f"unpack it and open {_squeezed(inside[0])}" if inside else "unpack it to see what it is",
    )


def unknown(path: str, head: bytes, size: int) -> OpenError:
    return refuse(
        path,
        "unknown-format",
        "the file is in no known format",
        f"{size:,} bytes that start with {head[:16].hex(' ')}",
        "find out what wrote it; if it should be a checkpoint, fetch or save it again",
    )


def _signed(path: str, head: bytes, tail: bytes) -> OpenError | None:
    for row in _SIGNATURES:
        if head[row.at : row.at + len(row.magic)] == row.magic:
            return refuse(
                path, row.code, f"the file is {row.name}, not a PyTorch checkpoint",
                f"it starts with {head[: max(8, row.at + len(row.magic))][:16].hex(' ')}", row.fix,
            )  # fmt: skip
    return None


def _pointer(path: str, head: bytes, tail: bytes) -> OpenError | None:
    if not head.startswith((b"version https://git-lfs", b"version https://hawser", b"# xet ")):
        return None
    fields = dict(re.findall(r"^(\w+) (?:sha256:)?(\S+)$", head.decode("latin-1"), re.MULTILINE))
    size, oid = fields.get("size", ""), fields.get("oid", "unknown")[:64]
    stands = f"{int(size):,} bytes" if size.isdecimal() and len(size) < 20 else "unknown size"
    return refuse(
        path,
        "git-lfs-pointer",
        "the file is a git-lfs pointer, not the file itself",
        f"it stands for an object of {stands}, sha256 {oid}, that was not fetched",
        "git lfs install && git lfs pull, or download the file from the repository's page",
    )


def _markup(path: str, head: bytes, tail: bytes) -> OpenError | None:
    text = _decoded(head).lstrip("\ufeff \t\r\n")
    lower = text[:2048].lower()
    if not lower.startswith("<"):
        return None
    if "<html" in lower or lower.startswith("<!doctype html") or "<head" in lower:
        title = re.search(r"<title[^>]*>(.{0,200}?)</title", text, re.IGNORECASE | re.DOTALL)
        said = f", titled {_squeezed(title[1])!r}" if title else ""
        return refuse(
            path,
            "web-page",
            "the file is a web page, not a checkpoint",
            f"an HTML page{said} was saved under this name: the link led to a page (a login, an "
            "error, a preview) instead of to the file",
            "fetch the file again from its direct link, logged in where that is needed",
        )
    if not re.match(r"<(\?xml|!doctype|[a-z][\w:.-]*[\s/>])", lower):
        return None
    said = "".join(
        f", {tag} {_squeezed(found[1])!r}"
        for tag in ("Code", "Message")
        if (found := re.search(f"<{tag}>(.{{0,200}}?)</{tag}>", text, re.DOTALL))
    )
    return refuse(
        path,
        "text-file",
        "the file is XML, not a checkpoint",
        f"a storage service answers like this when it refuses a download{said}" if said else "",
        _NOT_MODEL,
    )


def _json(path: str, head: bytes, tail: bytes) -> OpenError | None:
    text = _decoded(head).lstrip("\ufeff \t\r\n")
    if not text.startswith(("{", "[")) or not (_decoded(tail).rstrip().endswith(("}", "]"))):
        return None
    keys = re.findall(r'"((?:[^"\\]|\\.){1,40})"\s*:', text)[:6]
    what, fix = "the file is JSON, not a checkpoint", _NOT_MODEL
    if "architectures" in keys or "model_type" in keys or '"model_type"' in text:
        what = "the file is a model's configuration, not its weights"
        fix = "open the .safetensors or .bin file beside it, or its index"
    elif "error" in keys or "message" in keys:
        what = "the file is an error message in JSON, not a checkpoint"
        fix = "fetch the file again from its direct link, logged in where that is needed"
    named = f", with the names {', '.join(_squeezed(key) for key in keys)}" if keys else ""
    why = f"it starts and ends like JSON{named}"
    return refuse(path, "text-file", what, why, fix)


def _compressed(path: str, head: bytes, tail: bytes) -> OpenError | None:
    for magic, name, command, engine in _COMPRESSED:
        if not head.startswith(magic):
            continue
        try:
            inside = bytes(engine().decompress(head, _PEEK))
        except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, MemoryError):
            inside = b""
        return refuse(
            path,
            "compressed-file",
            f"the file is compressed with {name}",
            f"inside is {_named(inside)}",
            "the packed file stays; open the result",
            command=_unpacking(command, path),
        )
    return None


def _unpacking(program: str, path: str) -> str:
    """These programs know files by their suffix; any other they only read from and print."""
    if PurePath(path).suffix.lower() in (".gz", ".xz", ".bz2"):
        return f"{program} -k {shlex.quote(path)}"
    return f"{program} -c < {shlex.quote(path)} > {shlex.quote(path + '.unpacked')}"


def _zlib(path: str, head: bytes, tail: bytes) -> OpenError | None:
    """Two bytes that text may begin with too: only what can be inflated is taken for it."""
    if not head.startswith((b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")):
        return None
    try:
        inside = zlib.decompressobj().decompress(head, _PEEK)
    except zlib.error:
        return None
    if not inside:
        return None
    return refuse(
        path,
        "compressed-file",
        "the file is compressed with zlib",
        f"inside is {_named(inside)}; joblib.dump(..., compress=True) writes such files",
        "unpack it (pigz -dz < FILE > RESULT) and open the result",
    )


def joblib(path: str) -> OpenError:
    """For a pickle that joblib broke up with the bytes of arrays."""
    return refuse(
        path,
        "foreign-format",
        "the file is a joblib dump, not a plain pickle",
        "the bytes of arrays stand between its instructions, where only joblib looks for them",
        "if you trust its writer, joblib.load it and save the arrays with numpy.savez",
    )


def _named(inside: bytes) -> str:
    """What a compressed file seems to hold, in a few words."""
    for magic, name in (
        (b"PK\x03\x04", "a zip file, perhaps a torch checkpoint"),
        (b"\x80", "a pickle, perhaps a torch checkpoint"),
        (b"\x93NUMPY", "a NumPy array"),
    ):
        if inside.startswith(magic):
            return name
    if inside[257:262] == b"ustar":
        return "a tar archive"
    if inside[8:9] == b"{":
        return "a safetensors file"
    return "something else" if inside else "nothing that can be inflated: it is damaged"


def _tensorflow(path: str, head: bytes, tail: bytes) -> OpenError | None:
    name = ""
    if tail.endswith(b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"):  # the footer of a table file
        name = "a TensorFlow checkpoint's index (or another LevelDB table)"
    elif head[:1] == b"\x08" and (b"saved_model_main_op" in head or b"\x05serve" in head):
        name = "a TensorFlow SavedModel"
    elif head.startswith(b"model_checkpoint_path:"):
        name = "a TensorFlow checkpoint's state file"
    if not name:
        return None
    return refuse(
        path, "foreign-format", f"the file is {name}, not a PyTorch checkpoint",
        fix="load it with TensorFlow and export the weights, or convert it with transformers",
        confidence="likely",
    )  # fmt: skip


def _onnx(path: str, head: bytes, tail: bytes) -> OpenError | None:
    """ModelProto: ir_version, then producer name, domain, graph or opset, by field numbers."""
    if len(head) < 8 or head[0] != 0x08 or not 1 <= head[1] <= 32:
        return None
    tag, length = head[2], head[3]
    named = tag == 0x12 and head[4 : 4 + length].isascii() and length < 64
    if not (named or tag in (0x3A, 0x42, 0x22, 0x2A, 0x32)):
        return None
    producer = f" written by {_squeezed(head[4 : 4 + length].decode('ascii'))}" if named else ""
    return refuse(
        path,
        "foreign-format",
        "the file is an ONNX model, not a PyTorch checkpoint",
        f"it starts like an ONNX ModelProto{producer}, IR version {head[1]}",
        "its weights are graph constants: export from the original checkpoint instead, or read "
        "them with onnx.numpy_helper",
        confidence="likely",
    )


def _text(path: str, head: bytes, tail: bytes) -> OpenError | None:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:  # not merely cut within a character
            return None
        text = head[: error.start].decode("utf-8")
    if not text.strip() or re.search(r"[\x00-\x08\x0e-\x1f]", text):
        return None
    lines = text.splitlines()
    yaml = sum(bool(re.match(r"\s*(- )?[\w.\-/]+:(\s|$)", line)) for line in lines[:20])
    kind = "YAML" if yaml and yaml * 2 >= len([x for x in lines[:20] if x.strip()]) else "text"
    return refuse(
        path, "text-file", f"the file is {kind}, not a checkpoint",
        f"it starts with {_squeezed(text[:60])!r}", _NOT_MODEL,
    )  # fmt: skip


def _decoded(data: bytes) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", "replace")
    return data.decode("utf-8", "replace")


def _squeezed(text: str) -> str:
    """Text from a file, fit to be shown: one line, no control characters, not long."""
    shown = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(shown.split())[:120]
