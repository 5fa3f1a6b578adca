"""A safetensors file as a View. Only the header is read; tensors stay in the file."""

from typing import Any

from holdtrue.findings import Finding
from holdtrue.formats.safetensors import Entry, Header, header_length, parse_header
from holdtrue.formats.source import open_source
from holdtrue.formats.view import LazyTensor, Piece, Storage, View
from holdtrue.records.dtypes import SAFETENSORS, contiguous_stride


def read(path: str) -> View:
    """The tensors and metadata of one file. Raises OpenError or DamageError."""
    header = read_header(path)
    tree, strange = read_entries(path, header)
    return View(
        path=path,
        format="safetensors",
        about={"metadata": header.metadata, "header_bytes": header.length},
        tree=tree,
        tensors=dict(tree),
        findings=strange,
    )


def read_header(path: str) -> Header:
    """The checked header of a file."""
    with open_source(path) as file:
        size = file.seek(0, 2)
        file.seek(0)
        prefix = file.read(8)
        length = header_length(prefix, size, path)
        return parse_header(prefix + file.read(length - 8), size, path)


def read_entries(
    path: str, header: Header, prefix: str = ""
) -> tuple[dict[str, LazyTensor], tuple[Finding, ...]]:
    """The tensors in file order. `prefix` keeps the storage keys of several files apart."""
    tensors: dict[str, LazyTensor] = {}
    bytewise: list[str] = []
    for entry in sorted(header.entries.values(), key=lambda e: (e.begin, e.end)):
        tensor = _lazy(path, header, entry, prefix)
        tensors[entry.name] = tensor
        if tensor.state is not None:
            bytewise.append(entry.name)
    if not bytewise:
        return tensors, ()
    finding = Finding(
        code="dtype-unknown-to-torch",
        severity="warning",
        where=f"{path}: {bytewise[0]}",
        places=tuple(f"{path}: {name}" for name in bytewise),
        what="a tensor's dtype has no counterpart in torch",
        why="safetensors packs these numbers below a byte; they are given as the bytes they are",
        fix="unpack them with the tool that wrote the file",
    )
    return tensors, (finding,)


def _lazy(path: str, header: Header, entry: Entry, prefix: str) -> LazyTensor:
    dtype, shape, state = _torch_form(entry)
    storage = Storage(
        key=prefix + entry.name,
        file=path,
        offset=header.length + entry.begin,
        nbytes=entry.end - entry.begin,
    )
    stride = contiguous_stride(shape)
    piece = Piece(start=(0,) * len(shape), shape=shape, storage=storage, offset=0, stride=stride)
    return LazyTensor(dtype=dtype, shape=shape, stride=stride, pieces=(piece,), state=state)


def _torch_form(entry: Entry) -> tuple[str, tuple[int, ...], dict[str, Any] | None]:
    """torch's dtype and shape. Four-bit floats go in pairs; what torch lacks is given as bytes."""
    name, bits = SAFETENSORS[entry.code]
    if bits % 8 == 0:
        return name, entry.shape, None
    if entry.code == "F4" and entry.shape and entry.shape[-1] % 2 == 0:
        return name, (*entry.shape[:-1], entry.shape[-1] // 2), None
    as_stored = {"safetensors_dtype": entry.code, "shape": entry.shape}
    return "uint8", (entry.end - entry.begin,), as_stored
