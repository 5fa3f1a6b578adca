"""Directories that are checkpoints, and files that are a part of one."""

import json
import os
import re
import shlex
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Literal

from msgspec import Struct

from holdtrue.errors import OpenError
from holdtrue.formats.source import read_bytes, refuse
from holdtrue.limits import KIB
from holdtrue.records.manifest import NAME

_LISTED = 100_000  # names of one directory that are looked at
_SNIFFED = 64  # files of an unknown directory that are opened to say what it holds
_MANIFEST = re.compile(rb'\s*\{\s*"format"\s*:\s*"holdtrue')
_WEIGHT_MAP = re.compile(rb'"weight_map"\s*:\s*\{')
_SHARD_NAMES = re.compile(rb'"([^"/\\\\]+-\d+-of-\d+\.(?:safetensors|bin))"')
_PICKLE = "data.pkl"
_DCP_PICKLE = rb"torch\.distributed\.(_shard\.)?checkpoint\.metadata\W+Metadata\b"
_DCP_SHARDING = b'"DCP_SHARDING_INFO"'


class Found(Struct, frozen=True):
    kind: Literal["holdtrue", "holdtrue-run", "hf-index", "dcp", "dcp-safetensors"]
    path: str
    detail: str = ""


def recognise(path: str) -> Found | None:
    """The format of a directory; None where it is no checkpoint."""
    names = list_names(path)
    folder = Path(path)
    if NAME in names and begins_as_ours(folder):
        return Found("holdtrue", path)
    if ".metadata" in names:
        return Found("dcp", path)
    indices = sorted(
        name
        for name in names
        if name.endswith(".index.json")
        and _is_index(folder / name)
        and not is_stale_index(folder, name, names)
    )
    if indices:
        # Both kinds side by side hold the same weights: safetensors first.
        best = min(indices, key=lambda name: (".safetensors" not in name, len(name), name))
        return Found("hf-index", str(folder / best), f"index {best}")
    if any(n.endswith(".safetensors") and _is_dcp_shard(folder / n) for n in sorted(names)[:8]):
        return Found("dcp-safetensors", path)
    if NAME in names and (folder / NAME).is_symlink():
        return Found("holdtrue", path)  # which is refused when it is read, and not followed here
    steps = [n for n in names if not (folder / n).is_symlink() and begins_as_ours(folder / n)]
    if steps:
        listed = ", ".join(sorted(steps)[:5]) + (" …" if len(steps) > 5 else "")
        return Found(
            "holdtrue-run", path, f"{len(steps)} checkpoint{'s' * (len(steps) > 1)}, {listed}"
        )
    return None


def is_stale_index(folder: Path, index: str, names: Collection[str]) -> bool:
    """Whether an index lies beside the one whole file that replaced its shards."""
    if index.removesuffix(".index.json") not in names or not _is_index(folder / index):
        return False
    shards = {name.decode() for name in _SHARD_NAMES.findall(_head(folder / index, 64 * KIB))}
    return bool(shards) and shards.isdisjoint(names)


def is_unpacked(path: str) -> bool:
    """Whether a directory is what unpacking a torch zip file gives."""
    return Path(path).is_dir() and _are_unpacked(list_names(path))


def unpacked(path: str) -> OpenError:
    """The refusal of an unpacked torch zip file, or of the pickle in it, with what packs it."""
    place = Path(path)
    folder = place.parent if place.name == _PICKLE else place
    folder = folder if folder.name else folder.absolute()
    packed = folder.with_name(folder.name + ".pt")
    # zipfile stores by default, which torch needs; the names begin with the folder's own.
    script = (
        f"import pathlib, zipfile; d = pathlib.Path({json.dumps(str(folder))}); "
        f'z = zipfile.ZipFile({json.dumps(str(packed))}, "x"); '
        '[z.write(f, f.relative_to(d.parent)) for f in sorted(d.rglob("*")) if f.is_file()]; '
        "z.close()"
    )
    return refuse(
        path,
        "archive-unpacked",
        "this is an unpacked torch zip file",
        "torch.save writes one zip file; what lies in it, data.pkl, version and data/, lies here "
        "as files of its own: a browser or an archiver unpacked it",
        f"packs it again, stored as torch needs it, as {packed}; or fetch the file again",
        command=f"python -c {shlex.quote(script)}",
    )


def member_of(path: str, head: bytes) -> Found | None:
    """The checkpoint that a single file is the table of contents of."""
    folder = str(Path(path).parent)
    if _MANIFEST.match(head):
        return Found("holdtrue", folder)
    if is_dcp_metadata(head):
        return Found("dcp", folder)
    if head.lstrip().startswith(b"{") and _is_index(Path(path)):
        return Found("hf-index", path)
    return None


def is_dcp_metadata(head: bytes) -> bool:
    """The pickle that describes a torch.distributed.checkpoint directory."""
    return bool(re.search(_DCP_PICKLE, head[: 4 * KIB]))


def unknown(path: str, sniff: Callable[[str], str | None]) -> OpenError:
    """The refusal of a directory, naming the checkpoints that it holds, if any."""
    names = sorted(list_names(path))
    special = _special(path, set(names))
    if special is not None:
        return special
    if not names:
        return refuse(
            path, "directory-unknown", "the directory is empty",
            "nothing was written here, or it was moved away",
            fix="check the path; an unfinished save or download leaves an empty directory",
        )  # fmt: skip
    inside = [(n, sniff(str(Path(path) / n))) for n in names[:_SNIFFED]]
    held = [(name, kind) for name, kind in inside if kind is not None]
    if held:
        listed = ", ".join(f"{name} ({kind})" for name, kind in held[:5])
        more = f" and {len(held) - 5} more" if len(held) > 5 else ""
        one = "one checkpoint" if len(held) == 1 else f"{len(held)} checkpoints"
        return refuse(
            path,
            "directory-unknown",
            f"the directory is no checkpoint itself; it holds {one}",
            f"it holds {listed}{more}",
            f"open {Path(path) / held[0][0]}" + (" or another of them" if len(held) > 1 else ""),
        )
    return refuse(
        path,
        "directory-unknown",
        "the directory holds no checkpoint",
        f"it holds {', '.join(names[:5])}{' …' if len(names) > 5 else ''}",
        "check the path",
    )


def _special(path: str, names: set[str]) -> OpenError | None:
    """Directories of other tools, and unfinished ones."""
    if any(name.endswith(".distcp") for name in names):
        return refuse(
            path,
            "save-unfinished",
            "the distributed checkpoint has no .metadata file",
            "torch.distributed.checkpoint writes .metadata last: this save did not finish, or the "
            "file was not copied (its name starts with a dot)",
            "copy .metadata too (cp -r takes it, * does not), or go back to the checkpoint before",
        )
    if _are_unpacked(names):
        return unpacked(path)
    if any(re.match(r"(zero_pp_rank_|bf16_zero_pp_rank_|mp_rank_)", name) for name in names):
        return refuse(
            path,
            "foreign-format",
            "the directory is a DeepSpeed checkpoint",
            "each rank's piece of the weights lies in its own file",
            "run its zero_to_fp32.py (in the folder above) and open the file that it writes",
        )
    if "saved_model.pb" in names or any(n.endswith(".data-00000-of-00001") for n in names):
        return refuse(
            path, "foreign-format", "the directory is a TensorFlow model",
            fix="load it with TensorFlow and export the weights",
        )  # fmt: skip
    if "_CHECKPOINT_METADATA" in names or "_METADATA" in names:
        return refuse(
            path, "foreign-format", "the directory is an Orbax (JAX) checkpoint",
            fix="load it with orbax and save the arrays with numpy.savez or safetensors",
        )  # fmt: skip
    return None


def list_names(path: str) -> set[str]:
    names: set[str] = set()
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                names.add(entry.name)
                if len(names) >= _LISTED:
                    break
    except OSError as error:
        raise refuse(
            path, "permission-denied" if isinstance(error, PermissionError) else "path-unreadable",
            "the directory cannot be listed", error.strerror or "", "check its permissions",
        ) from None  # fmt: skip
    return names


def _are_unpacked(names: Collection[str]) -> bool:
    return _PICKLE in names and "version" in names


def begins_as_ours(folder: Path) -> bool:
    """Whether a directory has a manifest, in a file of its own, that begins as holdtrue's do."""
    if not folder.is_dir() or (folder / NAME).is_symlink():
        return False
    return bool(_MANIFEST.match(_head(folder / NAME, KIB)))


def _is_index(path: Path) -> bool:
    return bool(_WEIGHT_MAP.search(_head(path, 64 * KIB)))


def _is_dcp_shard(path: Path) -> bool:
    return _DCP_SHARDING in _head(path, 64 * KIB)


def _head(path: Path, nbytes: int) -> bytes:
    """The first bytes of a regular file, nothing where there is none."""
    try:
        return read_bytes(str(path), 0, nbytes)
    except OpenError:
        return b""
