"""`.npy` and `.npz` files that lie."""

import io
import zipfile
from pathlib import Path

from attacks import canary
from attacks.attack import Attack, add, attack, refused, told
from attacks.families.pickles_that_run import call

FAMILY = "numpy"
DAMAGED = "npy-damaged"


def header(text, version=1):
    raw = text if isinstance(text, bytes) else text.encode()
    return (
        b"\x93NUMPY"
        + bytes([version, 0])
        + len(raw).to_bytes(2 if version == 1 else 4, "little")
        + raw
    )


GOOD = "{'descr': '<i2', 'fortran_order': False, 'shape': (2,), }"

# The file, and what the explanation has to say.
HEADERS = [
    (b"\x93NUMPY\x01", "within its first"),
    (header(GOOD)[:40], "takes"),
    (header(GOOD) + b"\1\0\2", "4 bytes of data are needed, 3"),
    (header(GOOD, 9), "version 9.0"),
    (b"\x93NUMPY\x02\0\xff\xff\xff\x7f" + GOOD.encode(), "are allowed"),
    (header(GOOD.replace("(2,)", "(2, -1)")), "not a tuple of sizes"),
    (header(GOOD.replace("(2,)", "2")), "not a tuple of sizes"),
    (header(GOOD.replace("(2,)", "(True,)")), "not a tuple of sizes"),
    (header(GOOD.replace("(2,)", "(9223372036854775807, 4)")), "more bytes than"),
    (header(GOOD.replace("(2,)", "(4611686018427387903,)")), "bytes of data are needed"),
    (header(GOOD.replace("(2,)", "(99999999999999999999,)")), "unexpected text"),
    (header(GOOD.replace("(2,)", f"({'1,' * 100})")), "100 dimensions"),
    (header(GOOD.replace("False", "0")), "truth value"),
    (header(GOOD.replace("<i2", "<q9")), "dtype"),
    (header(GOOD.replace("'<i2'", "__import__('os')")), "unexpected text"),
    (header(GOOD.replace("'<i2'", "[('a', '|O')]")), "objects"),
    (header(GOOD.replace("'<i2'", "('<i2', (3,))")), "array in itself"),
    (header(GOOD.replace("'<i2'", "None")), ""),
    (header(GOOD.replace("'<i2'", "[('a', '<i2'), ('a', '<i2')]")), "dtype"),
    (header(GOOD.replace("'shape'", "'descr'")), "stands twice"),
    (header(GOOD.replace("'shape': (2,), ", "")), "needs exactly"),
    (header(GOOD + "1"), "follows"),
    (header("(" * 60_000), "nested"),
    (header("-" * 60_000), "unexpected"),
    (header("1+" * 30_000), ""),
    (header("{'descr': " + "[" * 40), "nested"),
    (header("  "), "unexpected"),
    (header("'" + "\\" * 1001), "unexpected"),
]
for _number, (_data, _why) in enumerate(HEADERS):
    add(
        Attack(
            f"header {_number}: {_why}",
            FAMILY,
            "to make the reader believe a lie",
            refused(DAMAGED, why=_why),
            lambda folder, data=_data: data,
            file="a.npy",
        )
    )


def objects(stream: bytes) -> bytes:
    return header(GOOD.replace("<i2", "|O")) + stream


@attack(
    FAMILY,
    "objects that run code",
    "a pickle behind the header",
    told("code-in-file"),
    "numpy.load(allow_pickle=True)",
    "a.npy",
)
def running(folder: Path) -> bytes:
    return objects(call("os", "system", canary.shell()) + b".")


def npz(**members: bytes) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return made.getvalue()


@attack(
    FAMILY,
    "npz with objects that run code",
    "a pickle in a member",
    told("code-in-file"),
    "numpy.load(allow_pickle=True)",
    "a.npz",
)
def packed(folder: Path) -> bytes:
    return npz(a=header(GOOD) + bytes(4), b=objects(call("os", "system", canary.shell()) + b"."))


@attack(
    FAMILY,
    "npz whose member climbs",
    "to write outside when unpacked",
    refused("zip-path-trick"),
    "zip slip",
    "a.npz",
)
def climbing(folder: Path) -> bytes:
    return npz(**{"../../outside/planted": header(GOOD) + bytes(4)})


@attack(FAMILY, "npz of an npz", "archives in one another", refused(DAMAGED), file="a.npz")
def twice(folder: Path) -> bytes:
    return npz(a=npz(a=header(GOOD) + bytes(4)))
