"""Checkpoints that a tool took for text on the way: line ends rewritten, or bytes re-encoded."""

import json
import re
import shlex
from pathlib import Path

from holdtrue.errors import OpenError
from holdtrue.formats.source import refuse

_LEAST = 4  # line ends, or characters beyond ASCII, that chance does not make all alike
_LONE_LINE_END = re.compile(rb"(?<!\r)\n")
_BEGINNINGS = (b"PK\x03\x04", b"\xc2\x80", b"\xef\xbf\xbd", b"\x80")
# The pickled number that begins a legacy torch file, with its line end rewritten.
_LEGACY_REWRITTEN = b"\x8a\r\nl\xfc\x9cF\xf9 j\xa8P\x19."


def transferred_as_text(path: str, head: bytes) -> OpenError | None:
    """The refusal of a binary file that was changed so; only for files that cannot be read.

    Bytes that fit by chance are no sign there: in a binary file about every 256th is a line end,
    and those beyond ASCII are hardly ever UTF-8.
    """
    if not head.startswith(_BEGINNINGS):
        return None
    wide = _beyond_ascii(head)
    if wide >= _LEAST:
        return _reencoded(path, head)
    ends = head.count(b"\n")
    if _LEGACY_REWRITTEN in head or (ends >= _LEAST and not _LONE_LINE_END.search(head)):
        return refuse(
            path,
            "transferred-as-text",
            "the file was transferred as text: its line ends were rewritten",
            f"each of the first {ends:,} bytes 0A follows a 0D: FTP in text mode, git autocrlf "
            "or a program that opened it without 'b' puts one before every line end",
            "takes them out again; fetch the file again, as binary, if the result does not verify: "
            "line ends of this kind that were there before are lost too",
            command=_rewriting(path, r'.replace(b"\r\n", b"\n")'),
        )
    return None


def _reencoded(path: str, head: bytes) -> OpenError:
    lossy = b"\xef\xbf\xbd" in head
    return refuse(
        path,
        "transferred-as-text",
        "the file was re-encoded as text",
        "all its bytes beyond ASCII form UTF-8, as if they had been characters: something decoded "
        "the file and wrote it as text"
        + ("; what it could not decode became U+FFFD, and is lost" if lossy else ""),
        "fetch the file again, as binary"
        if lossy
        else "takes the encoding back; fetch the file again, as binary, if that fails",
        command="" if lossy else _rewriting(path, '.decode("utf-8").encode("latin-1")'),
    )


def _beyond_ascii(head: bytes) -> int:
    """How many characters of UTF-8 the bytes hold; 0 where they are not UTF-8 throughout."""
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:  # not merely cut within a character
            return 0
        text = head[: error.start].decode("utf-8")
    return sum(ord(character) > 127 for character in text)


def _rewriting(path: str, change: str) -> str:
    place = Path(path)
    result = place.with_name(f"{place.stem}-as-binary{place.suffix}")
    script = (
        f"from pathlib import Path; data = Path({json.dumps(str(place))}).read_bytes(); "
        f"Path({json.dumps(str(result))}).write_bytes(data{change})"
    )
    return f"python -c {shlex.quote(script)}"
