"""Pickles that other readers take apart wrongly: what a scanner sees is not what a loader does."""

import bz2
import gzip
import lzma
import zlib

from attacks import canary
from attacks.attack import INERT, Attack, Must, add, refused, told
from attacks.families.pickles_that_run import call, text

FAMILY = "pickle"
RUN = told("code-in-file")
BROKEN = refused("pickle-malformed")
CUT = refused("pickle-truncated")
CONFUSION = "pickle scanners' parser confusion"
NULLIFAI = "nullifAI"


def system() -> bytes:
    return call("os", "system", canary.shell())


def _add(name: str, tries: str, must: Must, make, seen: str = CONFUSION, file: str = "model.pkl"):
    add(Attack(name, FAMILY, tries, must, lambda folder: _marked(make()), seen, file))


def _marked(stream: bytes) -> bytes:
    """With a protocol at its front, so that it is taken for the pickle that it is."""
    known = (b"\x80", b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x78")
    return stream if stream.startswith(known) else b"\x80\x04" + stream


# STACK_GLOBAL and the memo
_add(
    "STACK_GLOBAL from a missing memo entry",
    "to make a scanner give up before the call",
    BROKEN,
    lambda: b"\x80\x04h\x07h\x08\x93" + system() + b".",
)
_add(
    "STACK_GLOBAL of numbers",
    "to make a scanner give up before the call",
    BROKEN,
    lambda: b"\x80\x04K\x01K\x02\x93" + system() + b".",
)
_add(
    "STACK_GLOBAL of bytes",
    "names of another type than text",
    BROKEN,
    lambda: b"\x80\x04C\x02osC\x06system\x93" + text(canary.shell()) + b"\x85R.",
)
_add(
    "STACK_GLOBAL of a module without a name",
    "to end a rule that looks its package up in a traceback; found by fuzzing",
    told("class-missing"),
    lambda: b"\x80\x04\x8c\x00\x8c\x06system\x93" + text(canary.shell()) + b"\x85R.",
)
_add(
    "STACK_GLOBAL with a dup between",
    "to shift what a scanner takes for the names",
    RUN,
    lambda: b"\x80\x04\x8c\x02os\x8c\x06system2\x30\x93" + text(canary.shell()) + b"\x85R.",
)
_add(
    "STACK_GLOBAL after pops",
    "names that a linear scan of strings misses",
    RUN,
    lambda: b"\x80\x04\x8c\x02os\x8c\x04path0\x8c\x06system\x93" + text(canary.shell()) + b"\x85R.",
)
_add(
    "memo overwritten",
    "a harmless name replaced before it is fetched",
    RUN,
    lambda: (
        b"\x80\x04\x8c\x05torchq\x000\x8c\x02osq\x000h\x00\x8c\x06system\x93"
        + text(canary.shell())
        + b"\x85R."
    ),
)
_add(
    "memo slot by text",
    "PUT with leading zeros against GET without",
    RUN,
    lambda: b"Vos\np007\n0Vsystem\np8\n0g7\ng08\n\x93" + text(canary.shell()) + b"\x85R.",
)
_add("memo slot of a negative number", "PUT -1", BROKEN, lambda: b"Np-1\n" + system() + b".")
_add(
    "MEMOIZE of nothing",
    "to memoise from an empty stack",
    BROKEN,
    lambda: b"\x94" + system() + b".",
)
_add(
    "look-alike module",
    "`оs` with a Cyrillic letter, shown as `os`",
    INERT,
    lambda: (
        b"\x80\x04" + text("оs".encode()) + text(b"system") + b"\x93" + text(b"true") + b"\x85R."
    ),
    "ours",
)
_add(
    "name with a line break",
    "to forge lines of a report",
    INERT,
    lambda: b"\x80\x04" + text(b"x\nNo findings") + text(b"y\x1b[2J\r") + b"\x93)R.",
    "ours",
)
_add(
    "name turned around",
    "a right-to-left override in what is shown",
    INERT,
    lambda: b"\x80\x04" + text("a‮metsys.so".encode()) + text(b"b") + b"\x93)R.",
    "ours",
)
_add(
    "module with spaces",
    "`os ` that some readers strip",
    INERT,
    lambda: b"c os \n system \n(" + text(b"true") + b"tR.",
    CONFUSION,
)
_add(
    "module of other case",
    "`OS.System`",
    INERT,
    lambda: b"cOS\nSystem\n(" + text(b"true") + b"tR.",
    "ours",
)

# Extension registry
for _op, _name in (
    (b"\x82\x01", "EXT1"),
    (b"\x83\x01\x00", "EXT2"),
    (b"\x84\x01\x00\x00\x00", "EXT4"),
):
    _add(
        f"{_name} of the extension registry",
        "a callable by a number instead of its name",
        INERT,
        lambda op=_op: op + text(canary.shell()) + b"\x85R.",
        "bypasses of pickle scanners",
    )
_add("EXT1 of zero", "a code that the registry forbids", INERT, lambda: b"\x82\x00.")
_add("EXT4 of a negative number", "a code below zero", INERT, lambda: b"\x84\xff\xff\xff\xff.")

# Tails
for _name, _tail in {
    "an unknown opcode": b"\xff", "nothing": b"", "a cut string": b"X\xff\xff\x00\x00abc",
    "a pop of nothing": b"0000", "a mark missing": b"t", "a bad frame": b"\x95" + b"\xff" * 8,
    "text of no encoding": b"X\x02\x00\x00\x00\xff\xfe", "a bad number": b"Ixyz\n",
    "a wrong escape": b"S'\\x'\n", "a memo slot absent": b"hh", "an odd protocol": b"\x80\xff",
    "a huge protocol 5 bytearray": b"\x96" + b"\xff" * 8,
}.items():  # fmt: skip
    _add(
        f"payload, then {_name}",
        "run on load before the stream breaks off, where scanners give up",
        CUT
        if _name in ("nothing", "a cut string", "a bad frame", "a huge protocol 5 bytearray")
        else BROKEN,
        lambda tail=_tail: b"\x80\x04" + system() + b"0" + tail,
        NULLIFAI,
        "model.pt",
    )

# Misused opcodes
_add(
    "SETITEM on a list",
    "writes through a type that the loader does not check",
    BROKEN,
    lambda: b"]K\x00K\x01s.",
    "CVE-2026-24747",
)
_add(
    "SETITEM on a number",
    "writes through a type that the loader does not check",
    BROKEN,
    lambda: b"K\x00K\x00K\x01s.",
    "CVE-2026-24747",
)
_add(
    "SETITEM on a tensor",
    "writes through a type that the loader does not check",
    BROKEN,
    lambda: (
        b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n(ctorch\nfloat32\nK\x04\x85"
        b"K\x01\x85\x88tRK\x00K\x01s."
    ),
    "CVE-2026-24747",
)
_add(
    "SETITEMS on a class",
    "writes into a class of the loader's",
    INERT,
    lambda: b"ctorch\nTensor\n(" + text(b"__del__") + b"Nu.",
    "CVE-2026-24747",
)
_add(
    "APPEND to a dict", "a method call that the loader does not check", BROKEN, lambda: b"}K\x01a."
)
_add(
    "APPENDS to a record",
    "calls an object's own extend",
    INERT,
    lambda: b"c__main__\nA\n)\x81(K\x01K\x02e.",
)
_add("ADDITEMS to a list", "calls an object's own add", BROKEN, lambda: b"](K\x01\x90.")
_add(
    "BUILD of a module",
    "to set attributes of a module",
    INERT,
    lambda: b"ctorch\nserialization\n}" + text(b"load") + b"Nsb.",
    "CVE-2026-22608",
)
_add(
    "BUILD with slots",
    "a state of two, the second set as attributes",
    INERT,
    lambda: b"c__main__\nA\n)\x81N}" + text(b"__class__") + b"cos\nsystem\ns\x86b.",
    "CVE-2026-22608",
)
_add("BUILD of a number", "state for what has none", BROKEN, lambda: b"K\x01}b.")
_add(
    "NEWOBJ of a function",
    "__new__ of what is no class",
    RUN,
    lambda: b"cos\nsystem\n" + text(canary.shell()) + b"\x85\x81.",
)
_add("NEWOBJ of text", "__new__ of what is no class", INERT, lambda: text(b"os") + b")\x81.")
_add("REDUCE of text", "a call of what is no callable", INERT, lambda: text(b"os.system") + b")R.")
_add("REDUCE with a list", "arguments that are no tuple", BROKEN, lambda: b"cos\nsystem\n]R.")
_add(
    "INST without a mark",
    "a call that consumes what is not there",
    BROKEN,
    lambda: b"ios\nsystem\n.",
)
_add("NEXT_BUFFER", "out-of-band data that nobody gave", INERT, lambda: b"\x80\x05\x97.")
_add("READONLY_BUFFER of a dict", "a buffer of what has none", INERT, lambda: b"\x80\x05}\x98.")
_add("two protocols", "a second PROTO in mid-stream", INERT, lambda: b"\x80\x02}\x80\x04.")
_add(
    "protocol of the future",
    "opcodes that nobody knows",
    refused("unknown-format"),
    lambda: b"\x80\x06\xa0.",
)
_add(
    "frame that ends within an opcode",
    "frames that readers honour and scanners ignore",
    INERT,
    lambda: b"\x80\x04\x95\x03\x00\x00\x00\x00\x00\x00\x00X\x01\x00\x00\x00a.",
)
_add(
    "a stop in a string",
    "scanners that look for the end by its byte",
    RUN,
    lambda: b"\x80\x02" + text(b"N." * 20) + b"0" + system() + b".",
)
_add("empty stack at the end", "a value that is not there", BROKEN, lambda: b"\x80\x04N0.")
_add("an empty global", "a name of nothing", INERT, lambda: b"c\n\n)R.")
_add(
    "a global of bytes that are no text",
    "names that cannot be shown",
    BROKEN,
    lambda: b"c\xff\xfe\nx\n)R.",
)
_add(
    "a global with a name of 300 characters",
    "a source file that the system has an error for",
    INERT,
    lambda: b"cnumpy." + b"N" * 300 + b"\nx\n)R.",
)
_add(
    "a global of a package with a name of 300 characters",
    "a module of the current directory that the system has an error for",
    INERT,
    lambda: b"c" + b"N" * 300 + b"\nx\n)R.",
)

# Persistent ids
_add(
    "persistent id as text",
    "PERSID, which torch does not write",
    INERT,
    lambda: b"Pcos\nQ.",
    "ours",
)
_add(
    "persistent id of a call",
    "a call hidden within an id",
    RUN,
    lambda: b"\x80\x02" + system() + b"Q.",
    "ours",
)
_add("persistent id of itself", "an id that holds itself", INERT, lambda: b"]q\x00h\x00aQ.", "ours")

# Compressed
for _name, _press in {"gzip": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress,
                      "zlib": zlib.compress}.items():  # fmt: skip
    _add(
        f"compressed with {_name}",
        "a payload that scanners do not inflate, as joblib loads it",
        refused("compressed-file"),
        lambda press=_press: press(system() + b"."),
        "bypasses of pickle scanners",
        "model.joblib",
    )
