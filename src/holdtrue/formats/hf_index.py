"""Hugging Face shards: an index file that maps each tensor to one of several files beside it."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from holdtrue.errors import DamageError, HoldtrueError, OpenError, fail
from holdtrue.findings import Finding
from holdtrue.formats import safetensors_file, torch_legacy, torch_zip
from holdtrue.formats.detect import detect
from holdtrue.formats.source import is_plain_name, read_bytes, refuse
from holdtrue.formats.strict_json import strict_json
from holdtrue.formats.tensor_bytes import element_bytes
from holdtrue.formats.view import LazyTensor, View, prefixed
from holdtrue.limits import limits
from holdtrue.records.dtypes import product

_READERS = {
    "safetensors": safetensors_file.read,
    "torch-zip": torch_zip.read,
    "torch-legacy": torch_legacy.read,
}


class _Index(Struct):
    weight_map: dict[str, str]
    metadata: dict[str, Any] = {}


class _Shards(Struct):
    """What has been gathered so far: tensors by name, and the shard that each came from."""

    tensors: dict[str, LazyTensor] = {}
    home: dict[str, str] = {}
    formats: set[str] = set()
    unread: set[str] = set()
    findings: list[Finding] = []


def read(path: str) -> View:
    """The tensors of a complete set, by its index file. Raises OpenError or DamageError."""
    view = read_incomplete(path)
    if any(finding.severity == "error" for finding in view.findings):
        raise fail(DamageError, path, *view.findings)
    return view


def read_incomplete(path: str) -> View:
    """What there is of a set; what is missing is among the findings, as errors.

    Raises OpenError where the index itself cannot be used.
    """
    index = _read_index(path)
    shards = _Shards()
    names = sorted(set(index.weight_map.values()))
    for name in names:
        _add_shard(shards, path, name, index)
    shards.findings += _disagreements(path, index, shards)
    tensors = {key: shards.tensors[key] for key in index.weight_map if key in shards.tensors}
    tensors |= shards.tensors  # those that the index leaves out come last
    return View(
        path=path,
        format="hf-index",
        about={
            "metadata": index.metadata,
            "shards": names,
            "shard_formats": sorted(shards.formats),
        },
        tree=dict(tensors),
        tensors=tensors,
        findings=tuple(shards.findings),
    )


def _read_index(path: str) -> _Index:
    budget = limits().header_bytes
    raw = read_bytes(path, 0, budget + 1)
    if len(raw) > budget:
        raise _bad_index(path, f"it is larger than {budget:,} bytes")
    try:
        index = msgspec.convert(strict_json(raw), _Index)
    except ValueError as error:  # msgspec.ValidationError is one
        raise _bad_index(path, str(error)[:200]) from None
    outside = [name for name in set(index.weight_map.values()) if not is_plain_name(name)]
    if outside:
        raise refuse(
            path,
            "shard-name-unsafe",
            "the index names a shard outside its own folder",
            f"a shard's name must be a plain file name; it says {min(outside)[:80]!r}",
            "do not trust this set of files; fetch it again from its publisher",
        )
    return index


def _add_shard(shards: _Shards, path: str, name: str, index: _Index) -> None:
    shard = str(Path(path).parent / name)
    try:
        detected = detect(shard)
        if detected.kind not in _READERS:
            raise refuse(
                shard, "shard-format-unknown", "a shard is in a format that shards do not come in",
                f"it is {detected.kind}", "fetch the shard again",
            )  # fmt: skip
        view = _READERS[detected.kind](shard)
    except HoldtrueError as error:
        shards.unread.add(name)
        lost = [key for key, home in index.weight_map.items() if home == name]
        shards.findings += _unread(path, name, lost, error)
        return
    shards.formats.add(view.format)
    shards.findings += view.findings
    if not isinstance(view.tree, dict):
        shards.findings.append(_not_flat(shard))
        return
    for key, tensor in view.tensors.items():
        if key in shards.tensors:
            shards.findings.append(_twice(path, key, shards.home[key], name))
        else:
            shards.tensors[key] = prefixed(tensor, name + ":")
            shards.home[key] = name


def _disagreements(path: str, index: _Index, shards: _Shards) -> Iterable[Finding]:
    absent = tuple(
        f"{home}: {key}"
        for key, home in index.weight_map.items()
        if home not in shards.unread and shards.home.get(key) != home
    )
    if absent:
        yield Finding(
            code="tensor-not-in-shard",
            severity="error",
            where=absent[0],
            places=absent,
            what="the index maps a tensor to a shard that does not hold it",
            why="index and shards are of different saves, or one was edited",
            fix="fetch the index and all shards again, from one revision",
        )
    extra = tuple(f"{home}: {key}" for key, home in shards.home.items()
                  if key not in index.weight_map)  # fmt: skip
    if extra:
        yield Finding(
            code="tensor-not-in-index",
            severity="warning",
            where=extra[0],
            places=extra,
            what="a shard holds a tensor that the index does not name",
            why="loaders that go by the index leave it out; it is given here",
            fix="fetch the index again, or write the set anew with `holdtrue convert`",
        )
    claimed = index.metadata.get("total_size")
    present = sum(product(t.shape) * element_bytes(t) for t in shards.tensors.values() if t.pieces)
    if isinstance(claimed, int) and claimed != present and not shards.unread and not absent:
        yield Finding(
            code="index-size-differs",
            severity="note",
            where=path,
            what="the index gives another total size than its shards have",
            why="some writers count tied tensors twice, or not at all",
            saved=f"{claimed:,} bytes",
            expected=f"{present:,} bytes",
        )


def _unread(path: str, name: str, lost: list[str], error: HoldtrueError) -> Iterable[Finding]:
    cause = error.report.findings[0]
    missing = cause.code == "path-missing"
    yield Finding(
        code="shard-missing" if missing else "shard-unreadable",
        severity="error",
        where=f"{name}: {lost[0]}" if lost else name,
        places=tuple(f"{name}: {key}" for key in lost),
        what=f"the shard {name} is {'missing' if missing else 'not readable'}",
        why=f"{len(lost)} tensor{'s are' if len(lost) != 1 else ' is'} in it of the set"
        + ("" if missing else f"; {cause.what}: {cause.why}"),
        fix=f"fetch {name} again from where the set came from" if missing else cause.fix,
    )


def _not_flat(shard: str) -> Finding:
    return Finding(
        code="shard-format-unknown",
        severity="error",
        where=shard,
        what="a shard holds no state dict",
        why="the top of the file is not a dict of tensors",
        fix="fetch the shard again",
    )


def _twice(path: str, key: str, first: str, second: str) -> Finding:
    return Finding(
        code="tensor-in-two-shards",
        severity="warning",
        where=f"{path}: {key}",
        what="two shards hold a tensor of the same name",
        why=f"{first} and {second} both do; the first is given",
        fix="fetch the index and all shards again, from one revision",
    )


def _bad_index(path: str, why: str) -> OpenError:
    return refuse(
        path, "index-damaged", "the index of the shards cannot be read", why,
        "fetch the index again; the shards themselves can be opened one by one",
    )  # fmt: skip
