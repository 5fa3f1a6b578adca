"""torch.save before 1.6, and with `_use_new_zipfile_serialization=False` since."""

from typing import Any

from holdtrue.formats.checkpoint_about import describe_tree
from holdtrue.formats.finding_groups import group
from holdtrue.formats.nested_torch import read_nested
from holdtrue.formats.pickle_source import PickleSource, from_file
from holdtrue.formats.torch_legacy_stream import read_stream
from holdtrue.formats.tree_walk import tensors_by_path
from holdtrue.formats.view import Storage, View


def read(path: str) -> View:
    """The checkpoint in a legacy torch file."""
    return _view(path, salvage=False)


def salvage(path: str) -> View:
    """What is whole of a damaged one: storages that are cut off have no bytes, and a finding."""
    return _view(path, salvage=True)


def _view(path: str, *, salvage: bool) -> View:
    def open_source(start: int | None) -> PickleSource:
        return from_file(path, path, start or 0)

    def make(key: str, offset: int, nbytes: int) -> Storage:
        return Storage(key=key, file=path, offset=offset, nbytes=nbytes)

    stream = read_stream(open_source, make, path, salvage=salvage, nested=read_nested)
    walked = stream.walked
    about: dict[str, Any] = {
        "producer": "torch 0.1.10 or later, in the format of before 1.6",
        "byteorder": "little",  # storages are; `little_endian` is of the machine that wrote
        "protocol": walked.protocol,
        "system": stream.system,
        "would_run": list(stream.would_run),
        "refused": list(walked.refused),
    }
    if stream.sources:
        about["sources"] = stream.sources
    return View(
        path=path,
        format="torch-legacy",
        about=about | describe_tree(walked.value),
        tree=walked.value,
        tensors=tensors_by_path(walked.value, path),
        findings=group((*walked.findings, *stream.findings)),
    )
