"""Hugging Face shards: an index file that maps each tensor to one of several files beside it."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from holdtrue.errors import DamageError, HoldtrueError, OpenError, fail
from holdtrue.findings import Finding, several
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
    missing: list[str] = []
    twice: list[tuple[str, str, str]] = []  # tensor, the shard it is taken from, another with it
    findings: list[Finding] = []
    mapped: dict[str, list[str]] = {}  # shard → the tensors that the index maps to it


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
    for key, home in index.weight_map.items():
        shards.mapped.setdefault(home, []).append(key)
    names = sorted(set(index.weight_map.values()))
    for name in names:
        _add_shard(shards, path, name)
    shards.findings = [*_missing(index, shards), *shards.findings]
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


def _add_shard(shards: _Shards, path: str, name: str) -> None:
    shard = str(Path(path).parent / name)
    if not os.path.lexists(shard):  # not asked for names that are near, of which there are many
        shards.unread.add(name)
        shards.missing.append(name)
        return
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
        if error.report.findings[0].code == "path-missing":
            shards.missing.append(name)
        else:
            shards.findings.append(_unread(name, shards.mapped[name], error))
        return
    shards.formats.add(view.format)
    shards.findings += view.findings
    if not isinstance(view.tree, dict):
        shards.findings.append(_not_flat(shard))
        return
    for key, tensor in view.tensors.items():
        if key in shards.tensors:
            shards.twice.append((key, shards.home[key], name))
        else:
            shards.tensors[key] = prefixed(tensor, name + ":")
            shards.home[key] = name


def _disagreements(path: str, index: _Index, shards: _Shards) -> Iterable[Finding]:
    absent = tuple(
        f"{home}: {key}"
        for key, home in index.weight_map.items()
        if home not in shards.unread and shards.home.get(key) != home
    )
    emptied = {place.partition(": ")[0] for place in absent}
    copies = {name: first for name, first in _copies(shards) if name in emptied}
    if absent:
        told = "; ".join(f"{name} holds what {first} holds" for name, first in copies.items())
        yield Finding(
            code="tensor-not-in-shard",
            severity="error",
            where=absent[0],
            places=absent,
            what="the index maps a tensor to a shard that does not hold it",
            why=told or "index and shards are of different saves, or one was edited",
            fix=f"fetch {', '.join(copies)} again from where the set came from"
            if copies and emptied <= set(copies)
            else "fetch the index and all shards again, from one revision",
        )
    yield from _twice(path, [t for t in shards.twice if t[2] not in copies])
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


def _missing(index: _Index, shards: _Shards) -> Iterable[Finding]:
    if not shards.missing:
        return
    lost = [f"{name}: {key}" for name in shards.missing for key in shards.mapped[name]]
    total, more = len(set(index.weight_map.values())), len(shards.missing) > 1
    named = ", ".join(shards.missing[:4]) + (" …" if len(shards.missing) > 4 else "")
    yield Finding(
        code="shard-missing",
        severity="error",
        where=lost[0] if lost else shards.missing[0],
        places=tuple(lost),
        what=f"{len(shards.missing)} of {total} shards are missing"
        if more
        else f"the shard {named} is missing",
        why=_so_many(len(lost), more) + (f": {named}" if more else ""),
        fix=f"fetch {named} again from where the set came from",
    )


def _unread(name: str, lost: list[str], error: HoldtrueError) -> Finding:
    cause = error.report.findings[0]
    return Finding(
        code="shard-unreadable",
        severity="error",
        where=f"{name}: {lost[0]}" if lost else name,
        places=tuple(f"{name}: {key}" for key in lost),
        what=f"the shard {name} is not readable",
        why=f"{_so_many(len(lost), False)}; {cause.what}: {cause.why}",
        fix=cause.fix,
    )


def _so_many(count: int, several: bool) -> str:
    them = "them" if several else "it"
    return f"{count} tensor{'s are' if count != 1 else ' is'} in {them} of the set"


def _not_flat(shard: str) -> Finding:
    return Finding(
        code="shard-format-unknown",
        severity="error",
        where=shard,
        what="a shard holds no state dict",
        why="the top of the file is not a dict of tensors",
        fix="fetch the shard again",
    )


def _twice(path: str, twice: list[tuple[str, str, str]]) -> Iterable[Finding]:
    if twice:
        key, first, second = twice[0]
        places = tuple(f"{path}: {name}" for name, _, _ in twice)
        yield Finding(
            code="tensor-in-two-shards",
            severity="warning",
            where=places[0],
            places=several(places),
            what="two shards hold a tensor of the same name",
            why=f"{first} and {second} both hold {key}; the first is given",
            fix="fetch the index and all shards again, from one revision",
        )


def _copies(shards: _Shards) -> Iterable[tuple[str, str]]:
    """(shard, the one whose names it has): shards that hold nothing but what another one holds."""
    own = set(shards.home.values())
    of: dict[str, set[str]] = {}
    for _, first, second in shards.twice:
        of.setdefault(second, set()).add(first)
    for name, firsts in of.items():
        if name not in own and len(firsts) == 1:
            yield name, firsts.pop()


def _bad_index(path: str, why: str) -> OpenError:
    return refuse(
        path, "index-damaged", "the index of the shards cannot be read", why,
        "fetch the index again; the shards themselves can be opened one by one",
    )  # fmt: skip
