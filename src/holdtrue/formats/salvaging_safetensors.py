"""A safetensors file that is cut off, or whose header has a damaged spot."""

import json
import re
from collections import Counter
from typing import Any

from holdtrue.errors import DamageError
from holdtrue.findings import Finding
from holdtrue.formats.safetensors import Entry, Header, parse_entry, parse_header
from holdtrue.formats.safetensors_file import read_entries
from holdtrue.formats.source import open_source
from holdtrue.formats.view import View
from holdtrue.limits import limits

# One tensor of a header, whatever stands before and after it. The length of a name is bounded:
# each character of one costs the matcher a hundred times its size.
_ENTRY = re.compile(r'"((?:[^"\\]|\\.){0,4096})"\s*:\s*(\{[^{}]*"data_offsets"[^{}]*\})', re.DOTALL)
_DECODER = json.JSONDecoder()


def salvage(path: str) -> View:
    """The tensors that the header still describes; their bytes may be missing.

    Raises DamageError where the header is lost.
    """
    with open_source(path) as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        raw = prefix + file.read(min(length, limits().header_bytes))
    try:
        header = parse_header(raw, None, path)
        findings: tuple[Finding, ...] = ()
    except DamageError as error:
        header = _pieced_together(raw)
        if not header.entries:
            raise
        findings = error.report.findings
    tensors, strange = read_entries(path, header)
    return View(
        path=path,
        format="safetensors",
        about={"metadata": header.metadata, "header_bytes": header.length},
        tree=dict(tensors),
        tensors=tensors,
        findings=(*findings, *strange),
    )


def _pieced_together(raw: bytes) -> Header:
    """The entries of a damaged header that agree with themselves and with one another."""
    found: list[Entry] = []
    for name, body in _ENTRY.findall(raw[8:].decode("utf-8", "surrogateescape")):
        try:
            key: Any = _DECODER.decode(f'"{name}"')
            key.encode("utf-8")
            found.append(parse_entry(key, _DECODER.decode(body)))
        except (ValueError, RecursionError):
            continue
    names = Counter(entry.name for entry in found)
    found.sort(key=lambda entry: (entry.begin, entry.end))
    shared: set[int] = set()
    furthest = 0  # of the entries before, by where they end
    for index, entry in enumerate(found):
        if index and entry.begin < found[furthest].end:
            shared |= {furthest, index}
        if entry.end >= found[furthest].end:
            furthest = index
    kept = {
        entry.name: entry
        for index, entry in enumerate(found)
        if names[entry.name] == 1 and index not in shared
    }
    return Header(kept, {}, len(raw))
