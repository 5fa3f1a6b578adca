"""What torch.distributed.checkpoint's HuggingFaceStorageWriter leaves, one set of files a rank.

There is no `.metadata`: each file says in its own header where in the whole tensors its parts lie.
"""

import re
from pathlib import Path
from typing import Any

from holdtrue.errors import DamageError, fail
from holdtrue.findings import Finding
from holdtrue.formats.chunks import assemble
from holdtrue.formats.directories import list_names
from holdtrue.formats.safetensors import Header
from holdtrue.formats.safetensors_file import read_entries, read_header
from holdtrue.formats.strict_json import strict_json
from holdtrue.formats.view import LazyTensor, View

SHARDING_KEY = "DCP_SHARDING_INFO"
_NUMBERED = re.compile(r"shard-(\d+)-model-(\d+)-of-(\d+)\.safetensors")

_Parts = dict[str, list[tuple[tuple[int, ...], LazyTensor]]]


def read(path: str) -> View:
    """The whole tensors of all ranks' files. Raises OpenError or DamageError."""
    names = sorted(name for name in list_names(path) if name.endswith(".safetensors"))
    findings = _gaps(path, names)
    parts: _Parts = {}
    version = None
    for name in names:
        file = str(Path(path) / name)
        header = read_header(file)
        version = header.metadata.get("DCP_VERSION", version)
        tensors, strange = read_entries(file, header, name + ":")
        findings += strange
        starts = _starts(file, header)
        for key, tensor in tensors.items():
            parts.setdefault(key, []).append((starts.get(key, (0,) * len(tensor.shape)), tensor))
    tree: dict[str, Any] = {}
    for key, found in parts.items():
        try:
            tree[key] = assemble(_whole(found), found)
        except ValueError as error:
            findings.append(_incomplete(path, key, str(error)))
    if any(finding.severity == "error" for finding in findings):
        raise fail(DamageError, path, *findings)
    return View(
        path=path,
        format="dcp-safetensors",
        about={"version": version, "shards": names},
        tree=tree,
        tensors=dict(tree),
        findings=tuple(findings),
    )


def _starts(file: str, header: Header) -> dict[str, tuple[int, ...]]:
    """Where each part begins within its tensor."""
    try:
        said = strict_json(header.metadata.get(SHARDING_KEY, "{}").encode())
        if not isinstance(said, dict):
            raise ValueError("it is no object")
        return {name: _start(said[name], entry.shape)
                for name, entry in header.entries.items() if name in said}  # fmt: skip
    except (ValueError, KeyError, TypeError) as error:
        raise fail(
            DamageError,
            file,
            Finding(
                code="dcp-metadata-damaged",
                severity="error",
                where=file,
                what="a shard does not say where its parts belong",
                why=f"its {SHARDING_KEY} is not usable: {error}"[:200],
                fix="copy the shard again from where the checkpoint was saved",
            ),
        ) from None


def _start(said: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    start = tuple(said["saved_offsets"])
    if len(start) != len(shape) or not all(type(n) is int and 0 <= n < 1 << 63 for n in start):
        raise ValueError(f"offsets {list(start)} for a part of {list(shape)}")
    return start


def _whole(parts: list[tuple[tuple[int, ...], LazyTensor]]) -> tuple[int, ...]:
    """The smallest shape that all parts fit into: no file says it outright."""
    ends = [tuple(map(sum, zip(start, part.shape, strict=True))) for start, part in parts]
    if len({len(end) for end in ends}) != 1:
        raise ValueError("its parts have different numbers of axes")
    return tuple(map(max, zip(*ends, strict=True)))


def _gaps(path: str, names: list[str]) -> list[Finding]:
    """Ranks and files that the numbering says must be there."""
    found = [match for name in names if (match := _NUMBERED.fullmatch(name))]
    ranks = {int(match[1]) for match in found}
    missing = sorted(set(range(1, max(ranks, default=0) + 1)) - ranks)[:100] if (
        max(ranks, default=0) <= 1_000_000) else []  # fmt: skip
    return [
        Finding(
            code="shard-missing",
            severity="error",
            where=f"{path}: shard-{rank:05}-…",
            what=f"the files of rank {rank} are missing",
            why=f"shards up to {max(ranks)} are there; their numbering starts at 1",
            fix="copy the missing files from where the checkpoint was saved",
        )
        for rank in missing
    ]


def _incomplete(path: str, key: str, why: str) -> Finding:
    return Finding(
        code="dcp-item-damaged",
        severity="error",
        where=f"{path}: {key}",
        what="a tensor cannot be put together from the shards",
        why=why,
        fix="copy all shards again; one may be missing or be of another save",
    )
