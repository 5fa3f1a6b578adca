"""A torch file inside a pickle: what `torch.storage._load_from_bytes` is given.

A storage in a plain pickle is spelled so. Loading calls torch.load without any guard; here the
bytes are read like any other legacy file, one level deep.
"""

from typing import Any

from holdtrue.errors import HoldtrueError
from holdtrue.formats.pickle_context import ArgumentsError, Context
from holdtrue.formats.pickle_source import PickleSource, from_file
from holdtrue.formats.torch_legacy_stream import read_stream
from holdtrue.formats.view import LazyTensor, Storage


def read_nested(blob: Any, context: Context) -> Any:
    """The value in the torch file that a byte string holds."""
    where, prefix = f"{context.where}: torch file inside", context.fresh_key()

    if isinstance(blob, LazyTensor) and blob.class_name == "builtins.bytes":
        span = blob.pieces[0].storage

        def open_source(start: int | None) -> PickleSource:
            first, end = span.offset, span.offset + span.nbytes
            return from_file(span.file, where, first if start is None else start, end)

        def make(key: str, offset: int, nbytes: int) -> Storage:
            return Storage(key=f"{prefix}/{key}", file=span.file, offset=offset, nbytes=nbytes)

    elif isinstance(blob, (bytes, bytearray)):
        data = bytes(blob)
        context.spend_bytes(2 * len(data))

        def open_source(start: int | None) -> PickleSource:
            source = PickleSource(data, where)
            source.skip(start or 0)
            return source

        def make(key: str, offset: int, nbytes: int) -> Storage:
            inline = data[offset : offset + nbytes]
            return Storage(
                key=f"{prefix}/{key}", file="", offset=0, nbytes=len(inline), inline=inline
            )

    else:
        raise ArgumentsError("a torch file that is no byte string")
    try:
        stream = read_stream(open_source, make, where)
    except HoldtrueError as error:
        context.adopt(error.report.findings, ())
        raise ArgumentsError("a torch file that cannot be read") from None
    context.adopt((*stream.walked.findings, *stream.findings), stream.would_run)
    return stream.walked.value
