"""Every number that can be tuned, and every budget that a file is held to, in one place.

Read `limits()` where a number is needed. Each field can be overridden by an environment variable
of the same name in capitals with the prefix `HOLDTRUE_`, which is read on import, and by
`override(...)` in tests.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from msgspec import Struct
from msgspec.structs import fields, replace

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


class Limits(Struct, frozen=True, kw_only=True):
    """Sizes are bytes unless the name says otherwise."""

    # Budgets for input files. A file that asks for more is refused before the memory is taken.
    manifest_bytes: int = 512 * MIB
    seal_bytes: int = 64 * MIB
    header_bytes: int = 100 * MIB  # what safetensors itself allows
    value_depth: int = 200  # nesting of plain values; far below Python's own recursion limit
    entries: int = 5_000_000  # nodes of one tree, records of one archive
    opcodes: int = 50_000_000  # of one pickle
    memo: int = 5_000_000  # memo slots of one pickle
    pickle_bytes: int = 1 * GIB  # of the pickle itself, tensors apart
    inflated_bytes: int = 64 * GIB  # of one compressed record, and never more than 1032 to 1
    expanded_bytes: int = 4 * GIB  # of one tensor whose strides repeat its bytes
    dimensions: int = 64  # of one tensor; torch itself stops at 64

    build_calls: int = 1_000_000  # calls of torch while a module is built from its recipe

    # What a save says of its origin.
    diff_bytes: int = 256 * KIB  # of the working tree's changes against the commit; 0 keeps none
    hostname: int = 0  # 1 keeps the machine's name

    probe_bytes: int = 1 * MIB  # of a probe's inputs, and of its outputs, that are kept by value

    # How files are laid out and moved.
    shard_bytes: int = 4 * GIB  # a part's tensors are split into files of about this size
    frozen_bytes: int = 64 * KIB  # from here on, frozen parameters get a file of their own
    chunk_bytes: int = 8 * MIB  # one read or write
    threads: int = 4  # readers, or those who copy and hash, at once; they release the GIL
    writes: int = 3  # in flight at once, while as many threads fill the next chunks
    buffer_bytes: int = 64 * MIB  # of page-aligned memory that is kept between reads and writes
    direct_bytes: int = 1 * MIB  # files from this size go past the page cache; 0: none does


_SWITCHES = frozenset({"diff_bytes", "hostname", "direct_bytes"})  # 0 is a value for these
_COUNTS = frozenset({"threads", "writes"})
_MOST, _MOST_THREADS = (1 << 62) - 1, 1024  # what file systems and machines can be asked for


class SettingError(ValueError):
    """An environment variable that is no number, or one that cannot be."""


def _from_environment() -> Limits:
    """Raises SettingError. Passing over it was rejected: whoever lowers a budget relies on it."""
    found: dict[str, int] = {}
    for field in fields(Limits):
        name = "HOLDTRUE_" + field.name.upper()
        text = os.environ.get(name, "").strip()
        if not text:
            continue
        least = 0 if field.name in _SWITCHES else 1
        most = _MOST_THREADS if field.name in _COUNTS else _MOST
        # The length first: Python refuses to read numbers of thousands of digits.
        is_number = text.isascii() and text.isdecimal() and len(text) <= 20
        if not is_number or not least <= int(text) <= most:
            raise SettingError(
                f"{name}={text[:40]}: give a whole number from {least} to {most:,}, or unset it "
                f"for {field.default:,}"
            )
        found[field.name] = int(text)
    return Limits(**found)


_current: ContextVar[Limits | None] = ContextVar("holdtrue_limits", default=None)
_environment = _from_environment()


def limits() -> Limits:
    """The limits in force."""
    return _current.get() or _environment


@contextmanager
def override(**changes: int) -> Iterator[Limits]:
    """Other limits inside a `with` block; for tests and for callers with special files."""
    token = _current.set(replace(limits(), **changes))
    try:
        yield limits()
    finally:
        _current.reset(token)
