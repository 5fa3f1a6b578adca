"""Pickles that would exhaust memory or time: held to their budgets, each with its finding."""

import pickle
from collections.abc import Callable
from pathlib import Path

from attacks.attack import INERT, Attack, Must, add, refused
from attacks.families.pickles_that_run import text

MIB = 1 << 20


def doubling(width: int, depth: int, tail: bytes) -> bytes:
    """A list of `width` lists, each the same list of `width` lists, `depth` times."""
    stream = b"]" + tail + b"q\x00"
    for _ in range(depth):
        stream += b"0](" + b"h\x00" * width + b"eq\x00"
    return stream + b"."


def nested(opening: bytes, closing: bytes, depth: int) -> bytes:
    return opening * depth + b"N" + closing * depth + b"."


def colliding_ints(count: int) -> bytes:
    prime = (1 << 61) - 1
    keys = b"".join(pickle.dumps(prime * i, 2)[2:-1] + b"N" for i in range(1, count))
    return b"}(" + keys + b"u."


EXHAUSTING: dict[str, bytes] = {
    "lists doubling": doubling(10, 40, b""),
    "lists doubling over a tensor": doubling(
        10, 40, b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n(ctorch\nfloat32\n))\x88tRa"),
    "long list at many places": b"](" + b"N" * 20_000 + b"eq\x000](" + b"h\x00" * 20_000 + b"e.",
    "lists in lists": nested(b"]", b"a", 100_000),
    "tuples in tuples": nested(b"", b"\x85", 100_000),
    "marks": b"(" * 200_000 + b".",
    "records in records": b"N" + b"\x85q\x000c__main__\nA\nh\x00\x81" * 20_000 + b".",
    "states in states": b"c__main__\nA\n)\x81" * 1000 + b"b" * 999 + b".",
    "calls of calls": b"c__main__\nf\n" + b")R" * 30_000 + b".",
    "long number": b"\x8b\xff\xff\xff\x7f.",
    "long text": b"\x8d" + b"\xff" * 8 + b".",
    "long bytes": b"\x8e" + b"\xff" * 8 + b".",
    "long bytearray": b"\x96" + b"\xff" * 8 + b".",
    "long frame": b"\x95" + b"\xff" * 8 + b"N.",
    "far memo slot": b"Nr\xff\xff\xff\xff.",
    "colliding integers": colliding_ints(20_000),
    "tuple that doubles as a key": b"}N" + b"q\x00h\x00\x86" * 60 + b"Ns.",
    "number of a million bits as a key": b"}\x8b\x00\x00\x02\x00" + b"\x01" * 131072
        + b"q\x01" + b"Ns" + b"h\x01Ns" * 2000 + b".",
    "one text encoded again and again": text(b"x" * MIB) + b"q\x00c_codecs\nencode\nq\x01"
        + b"](" + b"h\x01h\x00X\x06\x00\x00\x00latin1\x86R" * 3000 + b"e.",
    "one list copied again and again": b"](" + b"N" * 20_000 + b"eq\x00](" + b"cbuiltins\nlist\n"
        b"h\x00\x85R" * 1000 + b"e.",
    "one name made again and again": text(b"x" * MIB) + b"q\x00](" + b"h\x00h\x00\x93" * 3000
        + b"e.",
    "name that grows": b"ca\nb\n" + b"q\x00cbuiltins\ngetattr\nh\x00" + (b"X\x00\x00\x01\x00"
        + b"x" * 65536) + b"\x86R" + b".",
    "array of a huge shape": b"cnumpy.core.numeric\n_frombuffer\n(C\x08" + bytes(8)
        + b"U\x02f8J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86U\x01Ct\x52.",
    "text dtype of a gigabyte": b"cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\n"
        b"U\x0aU999999999I0\nI1\n\x87RC\x04abcd\x86R.",
    "thousands of dimensions":
   b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n(ctorch\nfloat32\n("
        + b"K\x01" * 40_000 + b"t)\x88tR.",
    "more elements than bytes in the world":
        b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n(ctorch\nfloat32\n"
        b"(\x8a\x07" + b"\xff" * 6 + b"\x7f\x8a\x07" + b"\xff" * 6 + b"\x7ft)\x88tR.",
    "deque of no length": b"ccollections\ndeque\n]\x8a\x09" + b"\x00" * 8 + b"\x01\x86R.",
    "range without end": b"cbuiltins\nrange\n\x8a\x20" + b"\x7f" * 32 + b"\x85R.",
    "bytes from a number": b"cbuiltins\nbytes\nJ\xff\xff\xff\x7f\x85R.",
    "dict of itself": b"}q\x00K\x01h\x00s.",
    "list of itself a hundred thousand times": b"]q\x00(" + b"h\x00" * 20_000 + b"e.",
}  # fmt: skip


BILLION_LAUGHS = b"".join(b"(" + b"h%c" % level * 10 + b"lq%c" % (level + 1) for level in range(40))
EXHAUSTING |= {
    "billion laughs in tuples": b"Nq\x00" + BILLION_LAUGHS + b".",
    "memo filled to no end": b"N" + b"\x94" * 900_000 + b".",
    "memo slots at the far end": b"".join(b"Nr" + (i << 20).to_bytes(4, "little")
                                          for i in range(4000)) + b".",
    "dup to no end": b"]" + b"2" * 90_000 + b"e.",
    "text of a gigabyte announced": b"X\xff\xff\xff\x3f" + b"x" * 100 + b".",
    "decimal of a million digits": b"L" + b"9" * 1_000_000 + b"L\n.",
    "codec that inflates": b"c_codecs\ndecode\n(" + text(b"x" * 100) + text(b"zlib") + b"tR.",
    "text multiplied": b"coperator\nmul\n(" + text(b"x" * 1000) + b"J\xff\xff\xff\x7ftR.",
}  # fmt: skip

BUDGET, CUT = refused("over-budget"), refused("pickle-truncated")
_OTHERWISE: dict[str, Must] = dict.fromkeys(
    (
        "lists doubling", "lists doubling over a tensor", "long list at many places",
        "lists in lists", "tuples in tuples", "marks", "records in records", "states in states",
        "calls of calls", "tuple that doubles as a key", "one text encoded again and again",
        "one list copied again and again", "one name made again and again",
        "billion laughs in tuples", "memo filled to no end",
    ),
    BUDGET,
)  # fmt: skip
_OTHERWISE |= dict.fromkeys(
    ("long number", "long text", "long bytes", "long bytearray", "text of a gigabyte announced"),
    CUT,
)
_OTHERWISE |= dict.fromkeys(
    ("colliding integers", "decimal of a million digits", "dup to no end"),
    refused("pickle-malformed"),
)


def _same(stream: bytes) -> Callable[[Path], bytes]:
    return lambda folder: stream if stream.startswith(b"\x80") else b"\x80\x02" + stream


for _name, _stream in EXHAUSTING.items():
    add(Attack(f"exhausts: {_name}", "pickle", f"to exhaust memory or time: {_name}",
               _OTHERWISE.get(_name, INERT), _same(_stream), "ours", "model.pkl"))  # fmt: skip
