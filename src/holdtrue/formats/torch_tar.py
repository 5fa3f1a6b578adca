"""torch.save before 0.1.10: a tar with `sys_info`, `storages`, `tensors` and `pickle`.

The tar headers are read here: `tarfile` follows whatever extensions a header asks for, and only
four plain members are wanted.
"""

import struct
from typing import Any

from msgspec import Struct

from holdtrue.errors import DamageError, fail
from holdtrue.findings import Finding
from holdtrue.formats.checkpoint_about import describe_tree
from holdtrue.formats.finding_groups import group
from holdtrue.formats.pickle_machine import walk
from holdtrue.formats.pickle_operations import Operation
from holdtrue.formats.pickle_source import PickleSource, from_file
from holdtrue.formats.pickle_tensors import row
from holdtrue.formats.source import read_bytes
from holdtrue.formats.torch_storages import storage_dtype, text
from holdtrue.formats.tree_walk import tensors_by_path
from holdtrue.formats.view import LazyTensor, Piece, Storage, View
from holdtrue.limits import limits
from holdtrue.records.dtypes import DTYPES, product
from holdtrue.records.inert import NamedReference

_BLOCK = 512
_HEADERS = 1000  # looked at; torch wrote four


class Member(Struct, frozen=True):
    """One file of a tar: where its bytes are."""

    offset: int
    nbytes: int


def read(path: str) -> View:
    """The checkpoint in a tar file of torch's first format."""
    members = read_members(path)
    missing = [name for name in ("storages", "tensors", "pickle") if name not in members]
    if missing:
        raise _damaged(path, "the tar is not one of torch's, or is cut off",
                       f"it lacks {', '.join(missing)}")  # fmt: skip
    objects: dict[str, LazyTensor] = {}
    would_run: list[Operation] = []  # of every pickle in the tar
    _read_storages(_source(path, members, "storages"), path, objects, would_run)
    _read_tensors(_source(path, members, "tensors"), path, objects, would_run)

    def persistent(pid: Any) -> Any:
        if isinstance(pid, tuple) and pid and isinstance(pid[0], NamedReference):
            return pid[0]  # a class with its source
        found = objects.get(text(pid))
        if found is None:
            raise ValueError("a tensor that the tar does not hold")
        return found

    source = _source(path, members, "pickle")
    walked = walk(source, persistent=persistent, where=f"{path}: pickle")
    about: dict[str, Any] = {
        "producer": "torch before 0.1.10",
        "byteorder": "little",
        "protocol": walked.protocol,
        "would_run": would_run,
    }
    would_run += walked.would_run
    if "sys_info" in members:
        system = _value(_source(path, members, "sys_info"), would_run)
        about["system"] = system if isinstance(system, dict) else {}
    return View(
        path=path,
        format="torch-tar",
        about=about | describe_tree(walked.value),
        tree=walked.value,
        tensors=tensors_by_path(walked.value, path),
        findings=group(walked.findings),
    )


def read_members(path: str) -> dict[str, Member]:
    """The plain files of a tar by name; reading stops at the first block that is no header."""
    members: dict[str, Member] = {}
    offset = 0
    for _ in range(_HEADERS):
        header = read_bytes(path, offset, _BLOCK)
        if len(header) < _BLOCK or not header[0] or not _checksum_holds(header):
            break
        name = header[:100].rstrip(b"\0").decode("utf-8", "replace")
        nbytes = _number(header[124:136])
        if header[156:157] in (b"0", b"\0"):
            members.setdefault(name.removeprefix("./"), Member(offset + _BLOCK, nbytes))
        offset += _BLOCK + -(-nbytes // _BLOCK) * _BLOCK
    return members


def _checksum_holds(header: bytes) -> bool:
    blank = header[:148] + b" " * 8 + header[156:]
    return sum(blank) == _number(header[148:156])


def _number(field: bytes) -> int:
    """Octal digits, or base 256 where the first bit is set."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b"\0 ")
    return int(digits, 8) if digits and all(c in b"01234567" for c in digits) else 0


def _source(path: str, members: dict[str, Member], name: str) -> PickleSource:
    member = members[name]
    end = member.offset + member.nbytes
    return from_file(path, f"{path}: {name}", member.offset, end)


def _value(source: PickleSource, would_run: list[Operation]) -> Any:
    """The next pickle of a member; what it would run is added."""
    walked = walk(source, where=source.where)
    if len(would_run) < limits().entries:
        would_run += walked.would_run
    return walked.value


def _read_storages(
    source: PickleSource,
    path: str,
    objects: dict[str, LazyTensor],
    would_run: list[Operation],
) -> None:
    """Each storage as a row of its elements; then the views of them."""
    for _ in range(_count(source, path, would_run)):
        made = _value(source, would_run)
        try:
            key, location, cls = made
            dtype = storage_dtype(cls.name)
            name, device = text(key), text(location)
        except (AttributeError, TypeError, ValueError):
            raise _damaged(path, "a storage is not described as torch does") from None
        numel = int.from_bytes(source.take(8), "little", signed=True)
        nbytes = numel * DTYPES[dtype].itemsize
        if numel < 0 or nbytes > source.remaining:
            raise _damaged(path, "a storage reaches past its member", f"{numel:,} elements")
        storage = Storage(key=name, file=path, offset=source.skip(nbytes), nbytes=nbytes)
        objects[name] = row(storage, dtype, numel, device=device, class_name=cls.name)
    views = _value(source, would_run)
    for view in views if isinstance(views, list) else []:
        try:
            target, root, offset, numel = view
            whole = objects[text(root)]
            held = whole.shape[0]
            inside = 0 <= offset <= held and 0 <= numel <= held - offset
        except (KeyError, TypeError, ValueError):
            raise _damaged(path, "a storage view is not described as torch does") from None
        if not inside:
            raise _damaged(path, "a storage view reaches past its storage")
        piece = Piece(start=(0,), shape=(numel,), storage=whole.pieces[0].storage,
                      offset=whole.pieces[0].offset + offset, stride=(1,))  # fmt: skip
        objects[text(target)] = LazyTensor(
            dtype=whole.dtype, shape=(numel,), stride=(1,), pieces=(piece,), device=whole.device,
            class_name=whole.class_name,
        )  # fmt: skip


def _read_tensors(
    source: PickleSource,
    path: str,
    objects: dict[str, LazyTensor],
    would_run: list[Operation],
) -> None:
    for _ in range(_count(source, path, would_run)):
        made = _value(source, would_run)
        try:
            key, storage_key, _cls = made
            name, storage = text(key), objects[text(storage_key)]
        except (KeyError, TypeError, ValueError):
            raise _damaged(path, "a tensor is not described as torch does") from None
        (dimensions,) = struct.unpack("<i", source.take(4))
        source.take(4)  # the count of dimensions once took 8 bytes
        if not 0 <= dimensions <= limits().dimensions:
            raise _damaged(path, f"a tensor has {dimensions:,} dimensions")
        numbers = struct.unpack(f"<{2 * dimensions + 1}q", source.take(16 * dimensions + 8))
        shape, stride = numbers[:dimensions], numbers[dimensions:-1]
        objects[name] = _tensor(storage, shape, stride, numbers[-1], path)


def _tensor(
    storage: LazyTensor, shape: tuple[int, ...], stride: tuple[int, ...], offset: int, path: str
) -> LazyTensor:
    own = storage.pieces[0]
    if any(n < 0 for n in (*shape, *stride, offset)) or product(shape) >= 1 << 63:
        raise _damaged(path, "a tensor has a negative or impossible size")
    reach = offset + 1 + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if product(shape) and reach > storage.shape[0]:
        raise _damaged(path, "a tensor reaches past its storage")
    piece = Piece(start=(0,) * len(shape), shape=shape, storage=own.storage,
                  offset=own.offset + offset, stride=stride)  # fmt: skip
    return LazyTensor(
        dtype=storage.dtype, shape=shape, stride=stride, pieces=(piece,), device=storage.device
    )


def _count(source: PickleSource, path: str, would_run: list[Operation]) -> int:
    count = _value(source, would_run)
    if type(count) is not int or not 0 <= count <= limits().entries:
        raise _damaged(path, "a member does not begin with a count")
    return count


def _damaged(path: str, what: str, why: str = "") -> DamageError:
    return fail(
        DamageError,
        path,
        Finding(
            code="tar-damaged",
            severity="error",
            where=path,
            what=what,
            why=why,
            fix="fetch the file again; torch has not written this format since 2017",
        ),
    )
