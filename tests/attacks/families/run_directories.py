# ruff: noqa: E501  (tables, one attack a line)
"""Directories made to harm: links, devices, pipes, names, and what stands where files belong."""

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import torch

import holdtrue
from attacks.attack import INERT, Attack, CannotMake, Must, add, attack, refused
from attacks.families.manifests import kept, seal, unseal
from attacks.gauntlet import small

FAMILY = "directory"
NO_FILE = refused("not-a-file")
WEIGHTS = "model.safetensors"


def _replaced(put: Callable[[Path, Path], object], name: str = WEIGHTS) -> Callable[[Path], Path]:
    """An honest checkpoint, one file of which is replaced."""

    def make(folder: Path) -> Path:
        place = kept(folder)
        target = place / name
        (folder / "taken").write_bytes(target.read_bytes())
        target.unlink()
        try:
            put(target, folder)
        except OSError as error:
            raise CannotMake(f"this system refuses it: {error.strerror}") from None
        return place

    return make


def _device(number: tuple[int, int], kind: int = stat.S_IFCHR) -> Callable[[Path, Path], object]:
    def put(target: Path, folder: Path) -> None:
        device = folder / "device"
        os.mknod(device, kind | 0o600, os.makedev(*number))
        os.link(device, target)

    return put


PUT: dict[str, tuple[Callable[[Path, Path], object], Must]] = {
    "a link to a file outside": (lambda t, f: t.symlink_to("../../outside/secret.safetensors"), NO_FILE),
    "an absolute link": (lambda t, f: t.symlink_to("/etc/passwd"), NO_FILE),
    "a link to an equal file": (lambda t, f: t.symlink_to(f / "taken"), NO_FILE),
    "a link to itself": (lambda t, f: t.symlink_to(t.name), NO_FILE),
    "a link to nothing": (lambda t, f: t.symlink_to("gone"), NO_FILE),
    "a link to /dev/zero": (lambda t, f: t.symlink_to("/dev/zero"), NO_FILE),
    "a link to /proc/self/mem": (lambda t, f: t.symlink_to("/proc/self/mem"), NO_FILE),
    "a hard link to /dev/null's device": (_device((1, 3)), NO_FILE),
    "a hard link to /dev/zero's device": (_device((1, 5)), NO_FILE),
    "a hard link to a terminal": (_device((5, 0)), NO_FILE),
    "a hard link to a block device": (_device((7, 0), stat.S_IFBLK), NO_FILE),
    "a pipe": (lambda t, f: os.mkfifo(t), NO_FILE),
    "a hard link to a pipe": (lambda t, f: (os.mkfifo(f / "p"), os.link(f / "p", t)), NO_FILE),
    "a directory": (lambda t, f: t.mkdir(), NO_FILE),
    "a hard link to a file outside": (
        lambda t, f: os.link(f.parent / "outside" / "secret", t), refused("file-truncated")),
}  # fmt: skip
for _name, (_put, _must) in PUT.items():
    add(Attack(f"weights that are {_name}", FAMILY, "to read outside, or to wait for ever", _must,
               _replaced(_put)))  # fmt: skip
_MANIFEST: dict[str, str] = {"a link to a file outside": "", "a link to /dev/zero": "special-file"}
for _name, (_put, _) in PUT.items():
    add(Attack(f"a manifest that is {_name}", FAMILY, "to read outside, or to wait for ever",
               Must("refused", "any"), _replaced(_put, "manifest.json")))  # fmt: skip


def _run(folder: Path) -> Path:
    live = small()
    with holdtrue.Run(folder / "run", **live) as run:
        for step in (1, 2):
            run.save(step)
            run.flush()
    return folder / "run"


@attack(
    FAMILY, "a step that is a link outside", "to open another directory for a checkpoint", INERT
)
def linked_step(folder: Path) -> Path:
    run = _run(folder)
    shutil.move(run / "step-000000002", folder / "elsewhere")
    (run / "step-000000002").symlink_to(folder / "elsewhere")
    return run


@attack(FAMILY, "a step that is a link to the run", "to search in a circle", Must("refused", "any"))
def circle(folder: Path) -> Path:
    run = _run(folder)
    (run / "step-000000003").symlink_to(run)
    return run


@attack(FAMILY, "steps that are no directories", "to mislead the search", Must("refused", "any"))
def no_directories(folder: Path) -> Path:
    run = _run(folder)
    (run / "step-000000003").write_bytes(b"x")
    os.mkfifo(run / "step-000000004")
    return run


@attack(FAMILY, "a step of 300 digits", "a number that is too large", refused("step-differs"))
def digits(folder: Path) -> Path:
    run = _run(folder)
    (run / "step-000000002").rename(run / ("step-" + "9" * 200))
    return run


@attack(FAMILY, "digits of another script", "`step-٠٠٠٠٠٠٠٠٩` counts as 9 to int()", INERT)
def arabic(folder: Path) -> Path:
    run = _run(folder)
    (run / "step-٠٠٠٠٠٠٠٠٩").mkdir()
    (run / "step-00000000９").mkdir()
    return run


@attack(FAMILY, "names of no encoding", "names that cannot be shown", INERT)
def no_text(folder: Path) -> Path:
    run = _run(folder)
    Path(os.fsdecode(os.fsencode(run) + b"/step-\xff\xfe")).mkdir()
    Path(os.fsdecode(os.fsencode(run / "step-000000002") + b"/\xff.safetensors")).write_bytes(b"x")
    return run


@attack(FAMILY, "names that forge a report", "line breaks and cursor movements in a name", INERT)
def forged(folder: Path) -> Path:
    run = _run(folder)
    (run / "step-000000002" / "x\n0 errors\x1b[2J").write_bytes(b"x")
    return run


@attack(FAMILY, "a link to the root among the files", "to walk the whole disk", INERT)
def root(folder: Path) -> Path:
    place = kept(folder)
    (place / "more").symlink_to("/")
    return place


@attack(FAMILY, "a folder of links to itself", "to walk without end", Must("refused", "any"))
def loops(folder: Path) -> Path:
    place = folder / "folder"
    place.mkdir()
    for number in range(20):
        (place / f"l{number}").symlink_to(place)
    torch.save({}, place / "m.pt")
    return place


@attack(FAMILY, "ten thousand files", "to look into each", Must("refused", "any"))
def thousands(folder: Path) -> Path:
    place = folder / "folder"
    place.mkdir()
    for number in range(10_000):
        (place / f"{number}.pt").write_bytes(b"x")
    return place


@attack(FAMILY, "folders two hundred deep", "to recurse without end", Must("refused", "any"))
def deep(folder: Path) -> Path:
    place = folder / "folder"
    inner = place
    for _ in range(200):
        inner = inner / "d"
    inner.mkdir(parents=True)
    (inner / "m.pt").write_bytes(b"\x80\x02N.")
    return place


@attack(FAMILY, "a source folder that is a link", "to keep files outside as a model's own code",
        Must("refused", "any"))  # fmt: skip
def source(folder: Path) -> Path:
    place = kept(folder)
    body = unseal(place)
    body["files"]["source/secret"] = {"nbytes": 6, "header": 6, "header_digest": "0" * 32}
    (place / "manifest.json").write_bytes(seal(body))
    (place / "source").symlink_to("../../outside")
    return place


@attack(
    FAMILY,
    "a file in the place of the run",
    "a path with a file for a folder",
    Must("refused", "any"),
)
def file(folder: Path) -> Path:
    (folder / "run").write_bytes(b"x")
    return folder / "run" / "step-000000001"


@attack(
    FAMILY, "a staging folder with a payload", "what an interrupted save left is believed", INERT
)
def staging(folder: Path) -> Path:
    run = _run(folder)
    left = run / ".staging" / "step-000000009"
    left.mkdir(parents=True)
    (left / "manifest.json").write_text(json.dumps({"format": "holdtrue", "version": 1}))
    (left / "out").symlink_to("../../../../outside")
    return run


@attack(
    FAMILY,
    "a configuration that names code",
    "auto_map names code to fetch",
    refused("directory-unknown"),
)
def auto_map(folder: Path) -> Path:
    from safetensors.torch import save_file

    place = folder / "hub"
    place.mkdir()
    save_file(small()["model"].state_dict(), place / "model.safetensors")
    code = {"auto_map": {"AutoModel": "evil/code--modeling.Net"}, "model_type": "bert"}
    (place / "config.json").write_text(json.dumps(code))
    (place / "modeling.py").write_text("import holdtrue_bait\n")
    return place
