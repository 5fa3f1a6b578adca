# ruff: noqa: E501  (tables, one attack a line)
"""safetensors headers that lie. The reference reader refuses the same."""

import json
import struct
from pathlib import Path
from typing import Any

from attacks.attack import INERT, Attack, Must, add, refused

FAMILY = "safetensors"
DAMAGED = "safetensors-header-damaged"
ONE = {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}


def raw_file(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


# Name → the header, and what the explanation has to say.
HEADERS: dict[str, tuple[Any, str]] = {
    "duplicate tensor": (
        b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},'
        b'"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}', "stands in it twice"),
    "duplicate key in a tensor": (
        b'{"a":{"dtype":"U8","dtype":"I8","shape":[2],"data_offsets":[0,2]}}', "twice"),
    "duplicate key by an escape": (
        b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},'
        b'"\\u0061":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}', "twice"),
    "duplicate key in the metadata": (b'{"__metadata__":{"a":"1","a":"2"}}', "twice"),
    "unknown dtype": ({"a": {**ONE, "dtype": "U9"}}, "unknown dtype"),
    "dtype that is a list": ({"a": {**ONE, "dtype": ["U8"]}}, "unknown dtype"),
    "shape larger than its bytes": ({"a": {**ONE, "shape": [3]}}, "3 bytes"),
    "negative shape": ({"a": {**ONE, "shape": [-2]}}, "not sizes"),
    "shape of floats": ({"a": {**ONE, "shape": [2.0]}}, "not sizes"),
    "shape of truth values": ({"a": {**ONE, "shape": [True, 2]}}, "not sizes"),
    "shape of 2^63": ({"a": {**ONE, "shape": [1 << 63]}}, "not sizes"),
    "shape whose product is 2^80": ({"a": {**ONE, "shape": [1 << 40, 1 << 40]}}, "bytes"),
    "shape whose product wraps to 2": (
        {"a": {**ONE, "shape": [(1 << 62) + 1, 4, 1 << 62, 2]}}, "bytes"),
    "a hundred dimensions": ({"a": {**ONE, "shape": [1] * 100 + [2]}}, "101 dimensions"),
    "offsets that run backwards": ({"a": {**ONE, "data_offsets": [2, 0]}}, "bytes"),
    "three offsets": ({"a": {**ONE, "data_offsets": [0, 2, 3]}}, "not sizes"),
    "offsets of 2^64": ({"a": {**ONE, "data_offsets": [1 << 64, (1 << 64) + 2]}}, "not sizes"),
    "a hole before": ({"a": {**ONE, "data_offsets": [1, 3]}}, "starts at 1"),
    "two tensors over one another": ({"a": ONE, "b": ONE}, "starts at 0, expected 2"),
    "two tensors that overlap": (
        {"a": ONE, "b": {**ONE, "data_offsets": [1, 3]}}, "starts at 1, expected 2"),
    "one field more": ({"a": {**ONE, "more": 1}}, "needs exactly"),
    "a tensor that is a number": ({"a": 3}, "needs exactly"),
    "metadata of numbers": ({"__metadata__": {"a": 1}}, "map of strings"),
    "metadata that is a list": ({"__metadata__": []}, "map of strings"),
    "a list": ([], "not an object"),
    "nested a hundred thousand deep": (b'{"a":' + b"[" * 40_000, "nested too deeply"),
    "NaN for a size": (b'{"a":NaN}', "NaN"),
    "Infinity for a shape": (
        b'{"a":{"dtype":"U8","shape":[Infinity],"data_offsets":[0,2]}}', "Infinity"),
    "a number of 5,000 digits": (b'{"a":' + b"9" * 5000 + b"}", "not valid"),
    "bytes that nobody names": ({}, "file holds 2"),
    "a comment": (b'{"a":{}}/* x */', "not valid"),
    "two objects": (b'{} {"a":{}}', "not valid"),
    "text of no encoding": (b'{"\xff\xfe":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}', "not valid"),
}  # fmt: skip
for _name, (_header, _why) in HEADERS.items():
    add(Attack(_name, FAMILY, "to make the reader believe a lie", refused("unknown-format") if _name == "a list" else refused(DAMAGED, why=_why),
               lambda folder, header=_header: raw_file(header, b"xy"), file="model.safetensors"))  # fmt: skip


def _bomb(text: bytes) -> bytes:
    return struct.pack("<Q", 15 << 20) + text


BOMBS: dict[str, bytes] = {
    "header of 2^40 bytes": struct.pack("<Q", 1 << 40) + b'{"a',
    "header of 2^63 bytes": struct.pack("<Q", 1 << 63) + b'{"a',
    "header longer than the file": struct.pack("<Q", 12 << 20) + b'{"a',
    "millions of lists": _bomb(b'{"a":[' + b"[]," * (5 << 20)),
    "millions of tensors": _bomb(b"{" + b'"a":{},' * (2 << 20)),
    "nested fifteen million deep": _bomb(b'{"a":' + b"[" * (15 << 20)),
    "a number of fifteen million digits": _bomb(b'{"a":' + b"9" * (15 << 20)),
    "a string of fifteen million characters": _bomb(b'{"a":"' + b"x" * (15 << 20)),
}
for _name, _data in BOMBS.items():
    add(Attack(_name, FAMILY, "to exhaust memory", refused(DAMAGED), lambda folder, data=_data: data,
               file="model.safetensors"))  # fmt: skip

NAMES = {
    "a name that climbs": "../../../outside/planted",
    "an absolute name": "/tmp/planted",
    "a name of a drive": "C:\\planted",
    "a name of a megabyte": "x" * (1 << 20),
    "a name with a line break": "a\nerror[x]: forged\n",
    "a name that moves the cursor": "a\x1b[2J\x1b[1;1H",
    "a name turned around": "a‮txet",
    "a look-alike of another": "weіght",
    "a name of NUL": "a\0b",
    "an empty name": "",
    "a name of the manifest's own": "$",
    "a lone surrogate": "\ud800",
}
for _name, _text in NAMES.items():
    _must: Must = INERT
    add(Attack(_name, FAMILY, "to reach outside when converted, or to forge what is shown", _must,
               lambda folder, text=_text: raw_file({text: ONE}, b"xy"), file="model.safetensors"))  # fmt: skip


def _million(folder: Path) -> bytes:
    return raw_file({f"{i}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
                     for i in range(20_000)})  # fmt: skip


add(Attack("twenty thousand empty tensors", FAMILY, "to exhaust memory by names", refused(DAMAGED),
           _million, file="model.safetensors"))  # fmt: skip
