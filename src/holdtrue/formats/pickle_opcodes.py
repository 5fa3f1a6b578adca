"""Opcodes and their arguments, protocols 0 to 5, as a table and a reader. Nothing is interpreted.

`pickletools` knows the same table; it is not used because it reads every argument into memory
before a budget can be asked, and because nothing here is to import the pickle family.
"""

import codecs
import struct
from collections.abc import Callable, Iterator
from typing import Any

from msgspec import Struct

from holdtrue.formats.pickle_source import PickleSource, over_budget
from holdtrue.limits import limits


class Span(Struct, frozen=True):
    """A long byte string that was left in the file."""

    file: str
    offset: int
    nbytes: int
    mutable: bool = False


def _unsigned(size: int) -> Callable[[PickleSource], int]:
    return lambda source: int.from_bytes(source.take(size), "little")


def _signed4(source: PickleSource) -> int:
    return int.from_bytes(source.take(4), "little", signed=True)


def _double(source: PickleSource) -> float:
    value: float = struct.unpack(">d", source.take(8))[0]
    return value


def _counted(size: int) -> Callable[[PickleSource], bytes]:
    return lambda source: source.take(int.from_bytes(source.take(size), "little"))


def _counted_bytes(size: int, mutable: bool = False) -> Callable[[PickleSource], Any]:
    def read(source: PickleSource) -> bytes | bytearray | Span:
        count = int.from_bytes(source.take(size), "little")
        if source.lazy(count):
            return Span(source.file or "", source.skip(count), count, mutable)
        data = source.take(count)
        return bytearray(data) if mutable else data

    return read


def _counted_text(size: int) -> Callable[[PickleSource], str]:
    read = _counted(size)
    return lambda source: read(source).decode("utf-8", "surrogatepass")


def _counted_string(size: int) -> Callable[[PickleSource], Any]:
    read = _counted_bytes(size)

    def text(source: PickleSource) -> str | bytes | Span:
        data = read(source)
        return data if isinstance(data, Span) else python2_text(bytes(data))

    return text


def _counted_long(size: int) -> Callable[[PickleSource], int]:
    read = _counted(size)
    return lambda source: int.from_bytes(read(source), "little", signed=True)


def _int_line(source: PickleSource) -> int | bool:
    line = source.line()
    if line in (b"00", b"01"):  # how protocol 0 spells booleans
        return line == b"01"
    return int(line, 0)


def _long_line(source: PickleSource) -> int:
    return int(source.line().removesuffix(b"L"), 0)


def _float_line(source: PickleSource) -> float:
    return float(source.line())


def _quoted_line(source: PickleSource) -> str | bytes:
    line = source.line().strip()
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise ValueError("a string without quotes")
    return python2_text(codecs.escape_decode(line[1:-1])[0])


def _unicode_line(source: PickleSource) -> str:
    return source.line().decode("raw-unicode-escape")


def _text_line(source: PickleSource) -> str:
    return source.line().decode("utf-8")


def _two_lines(source: PickleSource) -> tuple[str, str]:
    return _text_line(source), _text_line(source)


def _slot_line(source: PickleSource) -> int:
    return int(source.line())


def python2_text(data: bytes) -> str | bytes:
    """A Python 2 string: text where it is UTF-8, as torch.load decodes it, and bytes elsewhere."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data


class Opcode(Struct, frozen=True):
    """One opcode; `read` gets its argument, None where it has none."""

    name: str
    code: int
    read: Callable[[PickleSource], Any] | None = None


def _table() -> dict[int, Opcode]:
    reads: dict[str, tuple[bytes, Callable[[PickleSource], Any] | None]] = {
        "MARK": (b"(", None), "STOP": (b".", None), "POP": (b"0", None),
        "POP_MARK": (b"1", None), "DUP": (b"2", None), "FLOAT": (b"F", _float_line),
        "INT": (b"I", _int_line), "BININT": (b"J", _signed4), "BININT1": (b"K", _unsigned(1)),
        "LONG": (b"L", _long_line), "BININT2": (b"M", _unsigned(2)), "NONE": (b"N", None),
        "PERSID": (b"P", _text_line), "BINPERSID": (b"Q", None), "REDUCE": (b"R", None),
        "STRING": (b"S", _quoted_line), "BINSTRING": (b"T", _counted_string(4)),
        "SHORT_BINSTRING": (b"U", _counted_string(1)), "UNICODE": (b"V", _unicode_line),
        "BINUNICODE": (b"X", _counted_text(4)), "APPEND": (b"a", None), "BUILD": (b"b", None),
        "GLOBAL": (b"c", _two_lines), "DICT": (b"d", None), "EMPTY_DICT": (b"}", None),
        "APPENDS": (b"e", None), "GET": (b"g", _slot_line), "BINGET": (b"h", _unsigned(1)),
        "INST": (b"i", _two_lines), "LONG_BINGET": (b"j", _unsigned(4)), "LIST": (b"l", None),
        "EMPTY_LIST": (b"]", None), "OBJ": (b"o", None), "PUT": (b"p", _slot_line),
        "BINPUT": (b"q", _unsigned(1)), "LONG_BINPUT": (b"r", _unsigned(4)),
        "SETITEM": (b"s", None), "TUPLE": (b"t", None), "EMPTY_TUPLE": (b")", None),
        "SETITEMS": (b"u", None), "BINFLOAT": (b"G", _double), "PROTO": (b"\x80", _unsigned(1)),
        "NEWOBJ": (b"\x81", None), "EXT1": (b"\x82", _unsigned(1)),
        "EXT2": (b"\x83", _unsigned(2)), "EXT4": (b"\x84", _signed4), "TUPLE1": (b"\x85", None),
        "TUPLE2": (b"\x86", None), "TUPLE3": (b"\x87", None), "NEWTRUE": (b"\x88", None),
        "NEWFALSE": (b"\x89", None), "LONG1": (b"\x8a", _counted_long(1)),
        "LONG4": (b"\x8b", _counted_long(4)), "BINBYTES": (b"B", _counted_bytes(4)),
        "SHORT_BINBYTES": (b"C", _counted_bytes(1)),
        "SHORT_BINUNICODE": (b"\x8c", _counted_text(1)),
        "BINUNICODE8": (b"\x8d", _counted_text(8)), "BINBYTES8": (b"\x8e", _counted_bytes(8)),
        "EMPTY_SET": (b"\x8f", None), "ADDITEMS": (b"\x90", None), "FROZENSET": (b"\x91", None),
        "NEWOBJ_EX": (b"\x92", None), "STACK_GLOBAL": (b"\x93", None),
        "MEMOIZE": (b"\x94", None), "FRAME": (b"\x95", _unsigned(8)),
        "BYTEARRAY8": (b"\x96", _counted_bytes(8, mutable=True)),
        "NEXT_BUFFER": (b"\x97", None), "READONLY_BUFFER": (b"\x98", None),
    }  # fmt: skip
    return {code[0]: Opcode(name, code[0], read) for name, (code, read) in reads.items()}


OPCODES: dict[int, Opcode] = _table()


def read_opcodes(source: PickleSource) -> Iterator[tuple[Opcode, Any, int]]:
    """Each opcode with its argument and its offset, up to and with STOP.

    Raises DamageError where the bytes run out, ValueError where they make no sense.
    """
    budget = limits().opcodes
    known, step = OPCODES.get, source.opcode
    for _ in range(budget):
        offset, code = step()
        opcode = known(code)
        if opcode is None:
            raise ValueError(f"0x{code:02x} is no opcode of any pickle protocol")
        read = opcode.read
        yield opcode, None if read is None else read(source), offset
        if code == 0x2E:
            return
    raise over_budget(source.where, "opcodes", budget, "pickle opcodes")
