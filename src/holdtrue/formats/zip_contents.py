"""What a zip archive is, by the names in it: torch's several kinds, NumPy's, or someone else's."""

import re
from pathlib import Path
from typing import Literal

from holdtrue.errors import DamageError, OpenError
from holdtrue.formats import signatures
from holdtrue.formats.source import open_source, read_bytes, refuse
from holdtrue.formats.text_transfer import transferred_as_text
from holdtrue.formats.zip_archive import Archive, read_directory, read_local
from holdtrue.limits import KIB, MIB

ZipKind = Literal["torch-zip", "torchscript", "pt2", "npz"]

_ENCRYPTED = 0x0001
_ANOTHER = re.compile(rb"PK\x05\x06.{16}\0\0PK\x03\x04", re.DOTALL)  # an end, then a beginning
_SEARCHED = 16 * MIB
_GAP = 22  # bytes of the end of an archive


def name_zip(path: str) -> ZipKind:
    """The kind of a zip file that holds a checkpoint. Raises OpenError for every other."""
    try:
        archive = read_directory(path)
    except DamageError:
        return _by_first_record(path)
    names = [entry.name for entry in archive.entries]
    if not names and archive.findings:  # the directory is there, and points at nothing
        if _ANOTHER.search(read_bytes(path, 0, _SEARCHED)):
            raise _in_a_row(path)
        return _by_first_record(path)
    if not names:
        raise refuse(
            path, "file-empty", "the file is an empty zip archive", "it holds no records",
            "go back to the checkpoint before, or fetch the file again",
        )  # fmt: skip
    kind = kind_of_names(names)
    if kind is None:
        raise _foreign(path, archive, names)
    if _is_one_of_several(archive):
        raise _in_a_row(path)
    return kind


def kind_of_names(names: list[str]) -> ZipKind | None:
    """The kind by its records; the writers put all but .npy files into a folder of the file."""
    inside = {_without_folder(name) for name in names}
    if "archive_format" in inside or "serialized_exported_program.json" in inside:
        return "pt2"
    if "data.pkl" in inside:
        scripted = "constants.pkl" in inside or any(name.startswith("code/") for name in inside)
        return "torchscript" if scripted else "torch-zip"
    if "version" in inside and any(re.fullmatch(r"data/\d+", name) for name in inside):
        return "torch-zip"  # its pickle is lost
    if any(name.startswith("data/weights/") or name == "models/model.json" for name in inside):
        return "pt2"
    if all(name.endswith(".npy") for name in names):
        return "npz"
    return None


def _by_first_record(path: str) -> ZipKind:
    """For an archive whose directory is lost: its first local header still says whose it is."""
    changed = transferred_as_text(path, read_bytes(path, 0, 16 * KIB))
    if changed is not None:
        raise changed
    with open_source(path) as file:
        size = file.seek(0, 2)
        local = read_local(file, 0, size)
    if local is None:
        return "torch-zip"  # too short to hold a name; its reader reports the damage
    name = local[0]
    kind = kind_of_names([name])
    if kind is None and _without_folder(name).startswith((".format_version", "data/", "version")):
        kind = "torch-zip"
    if kind is None:
        raise signatures.archive(path, "a damaged zip archive", [name])
    return kind


def _without_folder(name: str) -> str:
    return name.partition("/")[2] or name


def _is_one_of_several(archive: Archive) -> bool:
    """Whether another archive ends before the records of the directory, or begins behind them.

    A record alone says nothing: the directory may have lost its place.
    """
    first = min(entry.header_offset for entry in archive.entries)
    if first > 0 and _ANOTHER.search(read_bytes(archive.path, max(0, first - _GAP), _GAP + 4)):
        return True
    end = max(entry.offset + entry.stored for entry in archive.entries)
    return _ANOTHER.search(read_bytes(archive.path, end, MIB)) is not None


def _in_a_row(path: str) -> OpenError:
    """Several archives behind one another are how torch.distributed.checkpoint lays out a shard."""
    folder = Path(path).parent
    whole = (folder / ".metadata").is_file()
    return refuse(
        path,
        "shard-alone",
        "the file is a shard of a distributed checkpoint",
        "it holds several archives in a row, each a piece of a tensor; which, says .metadata",
        f"open the directory {folder}"
        if whole
        else "copy its .metadata beside it, open the folder",
    )


def _foreign(path: str, archive: Archive, names: list[str]) -> OpenError:
    held = set(names)
    if any(entry.flags & _ENCRYPTED for entry in archive.entries):
        return refuse(
            path, "archive-encrypted", "the file is an encrypted zip archive",
            f"it holds {_listed(names)}", "unpack it with its password and open what is inside",
        )  # fmt: skip
    for name, test in (
        ("an office document", "[Content_Types].xml" in held or "mimetype" in held),
        ("a Python wheel", any(".dist-info/" in n for n in names)),
        ("a Java archive or Android package", "META-INF/MANIFEST.MF" in held),
    ):
        if test:
            return refuse(
                path, "not-a-checkpoint", f"the file is {name}, not a checkpoint",
                f"it is a zip archive that holds {_listed(names)}", "check the path",
            )  # fmt: skip
    if "model.weights.h5" in held:
        return refuse(
            path, "foreign-format", "the file is a Keras model, not a PyTorch checkpoint",
            f"it holds {_listed(names)}", "load it with Keras and export the arrays as .npz",
        )  # fmt: skip
    return signatures.archive(path, "a zip archive", names)


def _listed(names: list[str]) -> str:
    return ", ".join(name[:60] for name in names[:4]) + (" …" if len(names) > 4 else "")
