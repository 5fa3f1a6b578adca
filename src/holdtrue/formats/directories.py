"""Directories that are checkpoints, and files that are a part of one."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from msgspec import Struct

from holdtrue.errors import OpenError
from holdtrue.formats.source import read_bytes, refuse
from holdtrue.limits import KIB

_LISTED = 100_000  # names of one directory that are looked at
_SNIFFED = 64  # files of an unknown directory that are opened to say what it holds
_MANIFEST = re.compile(rb'\s*\{\s*"format"\s*:\s*"holdtrue')
_WEIGHT_MAP = re.compile(rb'"weight_map"\s*:\s*\{')
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
    if "manifest.json" in names and _begins(folder / "manifest.json", _MANIFEST):
        return Found("holdtrue", path)
    if ".metadata" in names:
        return Found("dcp", path)
    indices = sorted(n for n in names if n.endswith(".index.json") and _is_index(folder / n))
    if indices:
        # Both kinds side by side hold the same weights: safetensors first.
        best = min(indices, key=lambda name: (".safetensors" not in name, len(name), name))
        return Found("hf-index", str(folder / best), f"index {best}")
    if any(n.endswith(".safetensors") and _is_dcp_shard(folder / n) for n in sorted(names)[:8]):
        return Found("dcp-safetensors", path)
    steps = [n for n in names if _begins(folder / n / "manifest.json", _MANIFEST)]
    if steps:
        listed = ", ".join(sorted(steps)[:5]) + (" …" if len(steps) > 5 else "")
        return Found("holdtrue-run", path, f"{len(steps)} checkpoints, {listed}")
    return None


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
    if {"data.pkl", "version"} <= names:
        return refuse(
            path,
            "directory-unknown",
            "the directory is an unpacked torch zip file",
            "data.pkl, version and data/ lie in it",
            f"pack it again: cd {Path(path).parent} && zip -0 -r {Path(path).name}.pt "
            f"{Path(path).name}",
        )
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


def _begins(path: Path, pattern: re.Pattern[bytes]) -> bool:
    return bool(pattern.match(_head(path, KIB)))


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
