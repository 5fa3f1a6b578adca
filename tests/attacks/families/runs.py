"""Runs made to harm who trains in them: what stands where a run writes, and what it is to remove.

Outside lies a directory with names as killed saves leave them: they would be cleared away.
"""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

from attacks.attack import INERT, Attack, Must, add, attack, refused
from attacks.families.manifests import seal, unseal
from attacks.families.run_directories import _run

FAMILY = "run"
WRITES = "to write outside, or over a file of someone"
_NO_PROCESS = (1 << 22) + 1  # more than Linux counts to


def _dead(name: str) -> str:
    """As a process of this machine that is gone leaves it."""
    host = "".join(c if c.isalnum() else "_" for c in socket.gethostname())[:40]
    return f"{name}.{host}-{_NO_PROCESS}.0a1b2c3d"


def _outside(folder: Path) -> Path:
    place = folder.parent / "outside"
    for name in ("step-000000001", "step-001000000", "removed-step-000000001"):
        (place / _dead(name)).mkdir()
        (place / _dead(name) / "thesis").write_bytes(b"years of work")
    return place


def _with(put: Callable[[Path, Path], object]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        run = _run(folder)
        put(run, _outside(folder))
        return run

    return make


LINK, TAKEN = refused("not-a-file", "run save"), refused("already-exists", "run save")
AREA = refused("not-a-directory", "run save")
PUT: dict[str, tuple[Callable[[Path, Path], object], Must]] = {
    "a lock that is a link outside": (
        lambda run, out: (run / ".lock").symlink_to("../../outside/secret"),
        LINK,
    ),
    "a lock that is a link to nothing outside": (
        lambda run, out: (run / ".lock").symlink_to("../../outside/new"),
        LINK,
    ),
    "a lock that is a hard link outside": (
        lambda run, out: os.link(out / "secret", run / ".lock"),
        TAKEN,
    ),
    "a lock that is a file of something else": (
        lambda run, out: (run / ".lock").write_bytes(b"thesis"),
        TAKEN,
    ),
    "a lock that is a pipe": (lambda run, out: os.mkfifo(run / ".lock"), LINK),
    "a lock that is a directory": (lambda run, out: (run / ".lock").mkdir(), LINK),
    "a lock of a process that cannot be": (
        lambda run, out: (run / ".lock").write_text(
            json.dumps({"pid": -1, "host": socket.gethostname(), "since": "\x1b[2J"})
        ),
        INERT,
    ),
    "a staging area that is a link outside": (
        lambda run, out: (run / ".staging").symlink_to("../../outside"),
        AREA,
    ),
    "a staging area that is a file": (
        lambda run, out: (run / ".staging").write_bytes(b"thesis"),
        AREA,
    ),
    "a step that is a link to a folder outside": (
        lambda run, out: (run / "step-000000000").symlink_to("../../outside"),
        INERT,
    ),
}
for _name, (_put, _must) in PUT.items():
    add(Attack(_name, FAMILY, WRITES, _must, _with(_put), follows="folder outside" in _name))


@attack(FAMILY, "leftovers that are links outside", "to have removed what they lead to", INERT)
def linked_leftovers(folder: Path) -> Path:
    run = _run(folder)
    _outside(folder)
    area = run / ".staging"
    area.mkdir()
    (area / _dead("removed-step-000000002")).symlink_to("../../../outside")
    (area / _dead("step-000000003")).mkdir()
    (area / _dead("step-000000003") / "more").symlink_to("../../../../outside")
    return run


@attack(FAMILY, "a staging area of odd names", "names that cannot be shown, or taken apart", INERT)
def odd_names(folder: Path) -> Path:
    run = _run(folder)
    area = run / ".staging"
    area.mkdir()
    for name in (
        b"x" * 255,
        b"step-000000003\n0 errors\x1b[2J.h-1.0a1b2c3d",
        b"step-000000003.\xff\xfe-1.0a1b2c3d",
        b"..h-1.0a1b2c3d",
        b"...",
        b"step-000000003.h--1.0a1b2c3d",
        os.fsencode(_dead("\n\udcff")),
        os.fsencode(_dead("step").replace(str(_NO_PROCESS), "9" * 30)),
        os.fsencode(_dead("step").replace(str(_NO_PROCESS), "0")),
        "step.h-١٢.0a1b2c3d".encode(),
    ):
        (area / os.fsdecode(name)).mkdir()
    return run


@attack(
    FAMILY, "a step of thirty digits", "a number no later step comes after", refused("step-differs")
)
def thirty_digits(folder: Path) -> Path:
    run = _run(folder)
    (run / "step-000000002").rename(run / ("step-" + "9" * 30))
    return run


@attack(
    FAMILY,
    "a step that says it is another",
    "to have the wrong one removed",
    refused("step-differs"),
)
def another_step(folder: Path) -> Path:
    run = _run(folder)
    body = unseal(run / "step-000000002")
    body["step"] = 1_000_001
    (run / "step-000000002" / "manifest.json").write_bytes(seal(body))
    return run
