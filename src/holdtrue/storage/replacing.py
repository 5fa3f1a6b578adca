"""What an overwriting save would delete, and whether all of it is a checkpoint's."""

import os
import re
from pathlib import Path

from holdtrue.errors import HoldtrueError
from holdtrue.findings import Finding
from holdtrue.formats.checkpoint_directory import read_manifest
from holdtrue.formats.directories import begins_as_ours
from holdtrue.records.manifest import NAME, SOURCE
from holdtrue.records.seal import NAME as SEAL
from holdtrue.storage.own_names import STAGING

# Made by systems and file managers in every directory that they come by; nobody's work.
_BY_ITSELF = re.compile(r"\.DS_Store|\._.*|\.nfs[0-9a-f]+|Thumbs\.db|desktop\.ini|__pycache__")
_SHARD = re.compile(r".+-\d{5}-of-\d{5}\.safetensors")
_SHOWN, _LISTED = 5, 100
_INDEX = ".safetensors.index.json"


def is_checkpoint(directory: Path) -> bool:
    """Whether a directory, and no link to one, holds a manifest that begins as ours do, however it
    goes on: a damaged checkpoint may be replaced. Other programs have a manifest.json, too."""
    return not directory.is_symlink() and begins_as_ours(directory)


def is_shards(directory: Path) -> bool:
    """Whether a directory is a set of shards with its index, and nothing else."""
    names = set(os.listdir(directory))
    indices = {name for name in names if name.endswith(_INDEX)}
    return bool(indices) and all(_SHARD.fullmatch(name) for name in names - indices)


def strangers_found(target: Path, names: list[str]) -> Finding:
    """Why a checkpoint is not replaced. Taking them along into the new one was rejected: they
    would lie beside weights that they were not made for, and break its seal."""
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" * (len(names) > _SHOWN))
    return Finding(
        code="destination-unsafe",
        severity="error",
        where=str(target / names[0]),
        places=tuple(str(target / name) for name in names[:_LISTED]),
        what="the checkpoint holds files that are not part of it, so it is not overwritten",
        why=f"they were put there later, and would be gone with it: {shown}",
        fix="move them somewhere else, or choose another path",
    )


def strangers(checkpoint: Path) -> list[str]:
    """Names in a checkpoint that are not of it: they were put there later, and may be someone's
    only copy. Where the manifest cannot be read, all files named as ours are taken for ours."""
    try:
        listed = set(read_manifest(checkpoint).files)
    except HoldtrueError:
        listed = None
    own = {NAME, SEAL, STAGING, SOURCE}
    found = [name for name in _names(checkpoint) if name not in own]
    if (checkpoint / SOURCE).is_dir() and not (checkpoint / SOURCE).is_symlink():
        found += [f"{SOURCE}/{name}" for name in _names(checkpoint / SOURCE)]
    if listed is None:
        return [n for n in found if not n.endswith(".safetensors") and not n.startswith(SOURCE)]
    return [name for name in found if name not in listed]


def _names(directory: Path) -> list[str]:
    return [name for name in sorted(os.listdir(directory)) if not _BY_ITSELF.fullmatch(name)]
