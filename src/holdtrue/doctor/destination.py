"""Where a conversion writes to: which kind it is, and whether it may."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from threading import Lock

from msgspec import Struct

from holdtrue.doctor.kinds import KINDS, Kind, title
from holdtrue.engine.stored import StoredSource
from holdtrue.errors import SaveError, fail
from holdtrue.findings import Finding
from holdtrue.storage.failures import already_exists, not_written
from holdtrue.storage.replacing import is_checkpoint, is_shards, strangers, strangers_found

_SUFFIXES: dict[str, Kind] = {
    ".safetensors": "safetensors", ".pt": "torch", ".pth": "torch", ".bin": "torch",
    ".ckpt": "torch",
}  # fmt: skip
# Names that promise a format which is not written; a directory of such a name would mislead.
_OTHERS = frozenset({
    ".npz", ".npy", ".pkl", ".pickle", ".onnx", ".gguf", ".h5", ".hdf5", ".keras", ".pt2", ".json",
    ".zip", ".tar", ".gz", ".msgpack", ".pb", ".tflite",
})  # fmt: skip


Progress = Callable[[int, int], None]  # bytes written so far, and of all; on any thread


class Destination(Struct, frozen=True, kw_only=True):
    """What a caller asks to be written; see `convert`."""

    path: Path
    kind: Kind
    part: str | None = None
    overwrite: bool = False
    shard_bytes: int | None = None
    progress: Progress | None = None

    def counter(self, sources: Iterable[StoredSource]) -> Callable[[int], None]:
        """What the writer tells of each block; `progress` is told the sum."""
        total, done, lock = sum(source.nbytes for source in sources), 0, Lock()

        def advance(count: int) -> None:
            nonlocal done
            if self.progress is not None:
                with lock:  # several threads write
                    done += count
                    self.progress(done, total)

        return advance


def kind_of(target: Path, to: str | None) -> Kind:
    """The kind that is asked for, or that the name says. Raises SaveError for one that is none."""
    if "\0" in str(target):
        raise _refused(
            target, "destination-unknown", "the path holds a zero character",
            "no file system takes such a name", "choose another path",
        )  # fmt: skip
    if to is not None:
        for kind in KINDS:
            if kind == to:
                return kind
        raise _refused(
            target, "destination-unknown", f"there is no format {to[:40]!r} to convert to",
            "these can be written: " + ", ".join(KINDS), f"--to {KINDS[0]}",
        )  # fmt: skip
    suffix = target.suffix.lower()
    if suffix in _OTHERS:
        raise _refused(
            target, "destination-unknown", f"files of the name *{suffix} are not written",
            "the name says which format is wanted: *.safetensors, *.pt, or a directory for a "
            "holdtrue checkpoint",
            "choose another name, or say the format: --to " + ", --to ".join(KINDS),
        )  # fmt: skip
    return _SUFFIXES.get(suffix, "holdtrue")


def check_destination(source: Path, place: Destination) -> None:
    """Raises SaveError where something stands in the way that may not be replaced."""
    if not os.path.lexists(place.path):
        return
    if not place.overwrite:
        raise fail(SaveError, str(place.path), already_exists(place.path))
    try:
        _check_replaceable(source, place.path, place.kind)
    except OSError as error:
        raise not_written(place.path, error, 0) from error


def _check_replaceable(source: Path, target: Path, kind: Kind) -> None:
    directory = target.is_dir() and not target.is_symlink()
    if directory and _inside(source, target):
        raise _refused(
            target, "destination-unsafe", "the source lies inside of what is to be replaced",
            f"{source} would be gone with it", "choose another path",
        )  # fmt: skip
    if directory != (kind in ("holdtrue", "shards")):
        raise _refused(
            target,
            "not-a-file" if directory else "not-a-directory",
            "a directory stands where a file is to come"
            if directory
            else "a file stands where a directory is to come",
            f"the result is {title(kind)}; only its like is replaced",
            "choose another path, or remove what is there yourself",
        )
    if directory and is_checkpoint(target):
        names = strangers(target)
        if names:
            raise fail(SaveError, str(target), strangers_found(target, names))
    elif directory and any(target.iterdir()) and not is_shards(target):
        raise _refused(
            target, "destination-unsafe", "the directory holds other things than a checkpoint",
            "replacing it would delete " + ", ".join(sorted(os.listdir(target))[:5]),
            "choose another path, or remove the directory yourself",
        )  # fmt: skip


def _inside(path: Path, directory: Path) -> bool:
    return directory.resolve() in path.resolve().parents


def _refused(target: Path, code: str, what: str, why: str, fix: str) -> SaveError:
    return fail(
        SaveError,
        str(target),
        Finding(code=code, severity="error", where=str(target), what=what, why=why, fix=fix),
    )
