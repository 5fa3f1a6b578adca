"""torch.distributed.checkpoint directories: `.metadata`, a pickle, and shards full of zip files.

Each tensor chunk and each plain value is a torch.save archive of its own, at an offset of a shard.
`.metadata` says which chunk lies where; it is walked as data, like every pickle here.
"""

from pathlib import Path
from typing import Any

from msgspec import Struct

from holdtrue.errors import DamageError, HoldtrueError, fail
from holdtrue.findings import Finding
from holdtrue.formats import safetensors_file, torch_zip
from holdtrue.formats.chunks import assemble
from holdtrue.formats.dcp_metadata import Item, Part, read_metadata
from holdtrue.formats.detect import is_safetensors
from holdtrue.formats.pickle_operations import Operation
from holdtrue.formats.source import inspect_path, is_plain_name, read_bytes, refuse
from holdtrue.formats.tree_walk import tensors_by_path
from holdtrue.formats.view import LazyTensor, View
from holdtrue.formats.zip_archive import read_directory


class _Reading(Struct):
    """What the shards have given so far."""

    folder: Path
    shard: str = ""  # the one at hand
    findings: list[Finding] = []
    would_run: dict[tuple[str, str], Operation] = {}
    safetensors: dict[str, dict[str, LazyTensor]] = {}
    lost: dict[str, list[str]] = {}  # shard → names of what was in it
    causes: dict[str, Finding] = {}  # shard → why it could not be read


def read(path: str) -> View:
    """A complete checkpoint. Raises OpenError or DamageError."""
    view = read_incomplete(path)
    if any(finding.severity == "error" for finding in view.findings):
        raise fail(DamageError, path, *view.findings)
    return view


def read_incomplete(path: str) -> View:
    """What can be read of a checkpoint; what is missing is among the findings, as errors.

    Raises OpenError or DamageError where `.metadata` itself cannot be used.
    """
    metadata = read_metadata(str(Path(path) / ".metadata"))
    reading = _Reading(folder=Path(path))
    reading.findings += metadata.findings
    _add_operations(reading, metadata.would_run)
    tree: dict[Any, Any] = {}
    budget = [len(metadata.items)]  # every place of a list holds at least one item
    for item in metadata.items:
        try:
            value = _value(reading, item)
            _place(tree, item.path, value, budget)
        except HoldtrueError as error:
            _lose(reading, item, error)
        except ValueError as error:
            reading.findings.append(_bad_item(path, item.name, str(error)))
    reading.findings += _losses(reading)
    return View(
        path=path,
        format="dcp",
        about={
            **metadata.about,
            "shards": sorted({part.file for item in metadata.items for part in item.parts}),
            "would_run": list(reading.would_run.values()),
        },
        tree=tree,
        tensors=tensors_by_path(tree, path),
        findings=tuple(reading.findings),
    )


def _value(reading: _Reading, item: Item) -> Any:
    """A tensor put together, or the plain value of an item without chunks."""
    if item.shape is None:
        return _load(reading, item.name, item.parts[0])
    parts = []
    for part in item.parts:
        tensor = _load(reading, item.name, part)
        if not isinstance(tensor, LazyTensor):
            raise ValueError(f"its chunk at {list(part.start)} is no tensor")
        if tensor.shape != part.shape or tensor.dtype != item.dtype:
            raise ValueError(
                f"its chunk at {list(part.start)} is {tensor.dtype} {list(tensor.shape)}, "
                f".metadata says {item.dtype} {list(part.shape)}"
            )
        parts.append((part.start, tensor))
    return assemble(item.shape, parts)


def _load(reading: _Reading, name: str, part: Part) -> Any:
    """The value in one window of a shard."""
    reading.shard = part.file
    if part.transforms:
        raise refuse(
            part.file,
            "dcp-transformed",
            "the shards were passed through an extension when they were saved",
            f"they are stored as {', '.join(part.transforms)[:80]}",
            "load them with torch.distributed.checkpoint and that extension, and save them plainly",
        )
    names = part.file.split("/")
    if not all(is_plain_name(name) for name in names):
        raise refuse(
            part.file[:80],
            "shard-name-unsafe",
            ".metadata names a shard outside its own folder",
            fix="do not trust this checkpoint; fetch it again from its publisher",
        )
    path = str(reading.folder / part.file)
    present = inspect_path(path).st_size
    if part.offset + part.length > present:
        raise _shard_short(path, part, present)
    if not read_bytes(path, part.offset, 4).startswith(b"PK"):
        tensors = _safetensors(reading, path, part.file)
        if tensors is not None and name in tensors:
            return tensors[name]
    archive = read_directory(path, (part.offset, part.length))
    view = torch_zip.read_archive(archive, prefix=f"{part.file}@{part.offset}:")
    reading.findings += view.findings
    _add_operations(reading, view.about["would_run"])
    return view.tree


def _safetensors(reading: _Reading, path: str, name: str) -> dict[str, LazyTensor] | None:
    """The tensors of a shard that FileSystemWriter was told to write as safetensors."""
    if name not in reading.safetensors:
        head = read_bytes(path, 0, 64)
        if not is_safetensors(head, Path(path).stat().st_size):
            return None
        header = safetensors_file.read_header(path)
        tensors, findings = safetensors_file.read_entries(path, header, name + ":")
        reading.findings += findings
        reading.safetensors[name] = tensors
    return reading.safetensors[name]


def _place(
    tree: dict[Any, Any], path: tuple[str | int, ...], value: Any, budget: list[int]
) -> None:
    """Put a value where the planner found it: strings are keys of dicts, numbers of lists."""
    node: Any = tree
    for step, following in zip(path, (*path[1:], None), strict=True):
        if isinstance(step, int):
            if not isinstance(node, list):
                raise ValueError(f"its place {list(path)} is inside a list and a dict at once")
            budget[0] -= max(0, step + 1 - len(node))
            if budget[0] < 0:
                raise ValueError(f"its place {list(path)} is further on than any list goes")
            node.extend([None] * (step + 1 - len(node)))
            held = node[step]
        elif isinstance(node, dict):
            held = node.get(step)
        else:
            raise ValueError(f"its place {list(path)} is inside a list and a dict at once")
        if following is None and held is not None:
            raise ValueError(f"its place {list(path)} is taken by another value")
        if following is None:
            node[step] = value
        elif held is None:
            node[step] = held = [] if isinstance(following, int) else {}
        node = held


def _add_operations(reading: _Reading, operations: Any) -> None:
    for operation in operations:
        reading.would_run.setdefault((operation.name, operation.kind), operation)


def _lose(reading: _Reading, item: Item, error: HoldtrueError) -> None:
    cause = error.report.findings[0]
    reading.lost.setdefault(reading.shard, []).append(item.name)
    reading.causes.setdefault(reading.shard, cause)


def _losses(reading: _Reading) -> list[Finding]:
    """One finding for each shard that something could not be read from."""
    found = []
    for shard, names in reading.lost.items():
        cause = reading.causes[shard]
        missing = cause.code == "path-missing"
        found.append(
            Finding(
                code="shard-missing" if missing else cause.code,
                severity="error",
                where=f"{reading.folder}: {shard}: {names[0]}",
                places=tuple(f"{reading.folder}: {shard}: {name}" for name in names),
                what=f"the shard {shard} is missing" if missing else cause.what,
                why=_held(len(names)) if missing else cause.why,
                fix=f"copy {shard} from where the checkpoint was saved" if missing else cause.fix,
            )
        )
    return found


def _held(count: int) -> str:
    held = "1 value of the checkpoint is" if count == 1 else f"{count} values of the checkpoint are"
    return f"{held} in it"


def _shard_short(path: str, part: Part, present: int) -> DamageError:
    return fail(
        DamageError,
        path,
        Finding(
            code="bytes-missing",
            severity="error",
            where=path,
            what="a shard is shorter than .metadata says",
            why=f"{part.offset + part.length:,} bytes are needed, {present:,} are present",
            fix=f"copy {part.file} again from where the checkpoint was saved",
        ),
    )


def _bad_item(path: str, name: str, why: str) -> Finding:
    return Finding(
        code="dcp-item-damaged",
        severity="error",
        where=f"{path}: {name}",
        what="a value of the checkpoint cannot be put together",
        why=why,
        fix="save or copy the checkpoint again; shards of different saves may be mixed",
    )
