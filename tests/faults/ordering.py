"""What a disk may hold after a power cut: file operations, and all that may be lost of them.

In the manner of ALICE. An operation is certain once what it changed has been fsynced: the bytes
and the size of a file by an fsync of the file, the names in a directory by one of the directory.
Until then each may have reached the disk or not, in any order, a write also in part. A rename is
atomic, and certain once one of its two directories is fsynced. ext4, XFS and btrfs keep more order
than that among the names.
"""

import hashlib
import os
import random
import re
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

from msgspec import Struct, field

ROOT = 0
_LINE = re.compile(r"\d+\s+(\w+)\((.*)\)\s+=\s+(-?\d+)")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_ALL_OF = 9  # so many uncertain operations are tried in every combination


class Op(Struct, frozen=True):
    """`of` is the file or directory that an fsync makes it certain with."""

    kind: str  # name · gone · move · data · size · sync · mark
    of: int = -1
    node: int = -1
    name: str = ""
    source: int = -1  # of a move: the old directory
    old: str = ""
    offset: int = 0
    data: bytes = b""
    grows: bool = False  # a size that never cuts

    def __str__(self) -> str:
        return f"{self.kind} {self.old} {self.name} of {self.of} {self.offset or ''}".strip()


class Recorded(Struct):
    ops: list[Op] = field(default_factory=list)
    directories: set[int] = field(default_factory=lambda: {ROOT})


class Disk(Struct):
    """Names of directories, and bytes of files, by node."""

    names: dict[int, dict[str, int]] = field(default_factory=lambda: {ROOT: {}})
    bytes_of: dict[int, bytearray] = field(default_factory=dict)


class Unexpected(AssertionError):
    """A call in the record that the model does not know."""


# --- from strace's log to operations


class _Recorder:
    def __init__(self, root: Path, marks: Path) -> None:
        self.root, self.marks = str(root), str(marks)
        self.found = Recorded()
        self.names: dict[int, dict[str, int]] = {ROOT: {}}
        self.fds: dict[int, int | str] = {}
        self.positions: dict[int, int] = {}
        self.count = 0

    def line(self, text: str) -> None:
        found = _LINE.match(text)
        if found is None:
            if "unfinished" in text or "resumed" in text:
                raise Unexpected(text[:200])
            return
        call, arguments, result = found[1], found[2], int(found[3])
        if result < 0:
            return
        texts = [bytes.fromhex(t.replace("\\x", "")) for t in _TEXT.findall(arguments)]
        getattr(self, "_" + call, self._other)(arguments, texts, result)

    def _other(self, *_: object) -> None:
        pass  # flags, locks and advice leave nothing on the disk

    def _at(self, path: str) -> tuple[int, str] | None:
        """The directory and the name; None outside of the root."""
        if path == self.root:
            return ROOT, ""
        if not path.startswith(self.root + "/"):
            return None
        *above, name = path[len(self.root) + 1 :].split("/")
        node = ROOT
        for part in above:
            node = self.names[node][part]
        return node, name

    def _node(self, place: tuple[int, str]) -> int | None:
        return place[0] if not place[1] else self.names[place[0]].get(place[1])

    def _fd(self, arguments: str) -> int | str | None:
        return self.fds.get(int(re.match(r"\d+", arguments)[0]))  # type: ignore[index]

    def _new(self, place: tuple[int, str], *, directory: bool) -> int:
        self.count += 1
        node = self.count
        if directory:
            self.names[node] = {}
            self.found.directories.add(node)
        self._name(place, node)
        return node

    def _name(self, place: tuple[int, str], node: int) -> None:
        self.names[place[0]][place[1]] = node
        self.found.ops.append(Op("name", place[0], node, place[1]))

    def _openat(self, arguments: str, texts: list[bytes], fd: int) -> None:
        self.fds.pop(fd, None)
        path = os.fsdecode(texts[0])
        if not path.startswith("/"):
            opened = self._fd(arguments) if arguments[0].isdigit() else None
            if not isinstance(opened, int):
                return
            place: tuple[int, str] | None = (opened, path)
        elif path == self.marks:
            self.fds[fd] = "marks"
            return
        else:
            place = self._at(path)
        if place is None:
            return
        node = self._node(place)
        if node is None:
            node = self._new(place, directory=False)
        elif "O_TRUNC" in arguments:
            self.found.ops.append(Op("size", node))
        self.fds[fd], self.positions[fd] = node, 0

    def _mkdir(self, _: str, texts: list[bytes], result: int) -> None:
        place = self._at(os.fsdecode(texts[0]))
        if place is not None:
            self._new(place, directory=True)

    def _link(self, _: str, texts: list[bytes], result: int) -> None:
        source, target = (self._at(os.fsdecode(t)) for t in texts)
        assert source is not None
        assert target is not None
        node = self._node(source)
        assert node is not None
        self._name(target, node)

    _linkat = _link

    def _rename(self, _: str, texts: list[bytes], result: int) -> None:
        source, target = (self._at(os.fsdecode(t)) for t in texts)
        assert source is not None
        assert target is not None
        node = self.names[source[0]].pop(source[1])
        self.names[target[0]][target[1]] = node
        self.found.ops.append(Op("move", target[0], node, target[1], source[0], source[1]))

    def _gone(self, place: tuple[int, str]) -> None:
        node = self.names[place[0]].pop(place[1])
        self.found.ops.append(Op("gone", place[0], node, place[1]))

    def _unlink(self, _: str, texts: list[bytes], result: int) -> None:
        place = self._at(os.fsdecode(texts[0]))
        if place is not None:
            self._gone(place)

    _rmdir = _unlink

    def _unlinkat(self, arguments: str, texts: list[bytes], result: int) -> None:
        opened = self._fd(arguments) if arguments[0].isdigit() else None
        if isinstance(opened, int):
            self._gone((opened, os.fsdecode(texts[0])))
        else:
            self._unlink(arguments, texts, result)

    def _pwrite64(self, arguments: str, texts: list[bytes], done: int) -> None:
        node = self._fd(arguments)
        if isinstance(node, int):
            offset = int(arguments.rpartition(", ")[2])
            self.found.ops.append(Op("data", node, offset=offset, data=texts[0][:done]))

    def _write(self, arguments: str, texts: list[bytes], done: int) -> None:
        fd = int(re.match(r"\d+", arguments)[0])  # type: ignore[index]
        node = self.fds.get(fd)
        if node == "marks":
            self.found.ops.append(Op("mark", name=texts[0].decode()))
        elif isinstance(node, int):
            data = texts[0][:done]
            self.found.ops.append(Op("data", node, offset=self.positions[fd], data=data))
            self.positions[fd] += done

    def _ftruncate(self, arguments: str, texts: list[bytes], result: int) -> None:
        node = self._fd(arguments)
        if isinstance(node, int):
            self.found.ops.append(Op("size", node, offset=int(arguments.rpartition(", ")[2])))

    def _fallocate(self, arguments: str, texts: list[bytes], result: int) -> None:
        node = self._fd(arguments)
        if isinstance(node, int):
            size = int(arguments.rpartition(", ")[2])
            self.found.ops.append(Op("size", node, offset=size, grows=True))

    def _fsync(self, arguments: str, texts: list[bytes], result: int) -> None:
        node = self._fd(arguments)
        if isinstance(node, int):
            self.found.ops.append(Op("sync", node))

    _fdatasync = _fsync


def recorded(log: str, root: Path, marks: Path) -> Recorded:
    """What strace wrote down with `-xx` and whole strings, from an empty directory `root` on."""
    recorder = _Recorder(root, marks)
    for line in log.splitlines():
        recorder.line(line)
    return recorder.found


# --- what may stand on the disk


def crash_points(ops: list[Op]) -> list[int]:
    """Before every fsync and move, when all since the one before is uncertain; and at the marks."""
    found = {len(ops)}
    for index, op in enumerate(ops):
        if op.kind in ("sync", "move"):
            found.add(index)
        elif op.kind == "mark":
            found.add(index + 1)
    return sorted(found)


def uncertain(ops: list[Op], end: int) -> list[int]:
    """Which of the first `end` operations may be missing from the disk."""
    synced: dict[int, int] = {}
    for index, op in enumerate(ops[:end]):
        if op.kind == "sync":
            synced[op.of] = index
    return [
        index
        for index, op in enumerate(ops[:end])
        if op.kind not in ("sync", "mark")
        and max(synced.get(op.of, -1), synced.get(op.source, -1)) < index
    ]


def states(
    found: Recorded, end: int, chance: random.Random, samples: int
) -> Iterator[tuple[Disk, str]]:
    """What the disk may hold after a power cut before operation `end`, and what is missing then.

    Every combination where few operations are uncertain; else all, none, each alone, all but each,
    each beginning, and some at random, in which writes are also cut in half.
    """
    open_ = uncertain(found.ops, end)
    choices: list[dict[int, float]] = []
    if len(open_) <= _ALL_OF:
        choices = [
            dict(zip(open_, taken, strict=True)) for taken in product((1.0, 0.0), repeat=len(open_))
        ]
    else:
        every = dict.fromkeys(open_, 1.0)
        none = dict.fromkeys(open_, 0.0)
        choices += [every, none]
        choices += [{**every, one: 0.0} for one in open_] + [{**none, one: 1.0} for one in open_]
        choices += [{**none, **dict.fromkeys(open_[:n], 1.0)} for n in range(1, len(open_))]
        for _ in range(samples):
            likely = chance.random()
            choices.append({i: float(chance.random() < likely) for i in open_})
    for index in open_:
        if found.ops[index].kind == "data":
            choices.append({**dict.fromkeys(open_, 1.0), index: 0.5})
    for choice in choices:
        yield _disk(found, end, choice), _said(found, choice)


def _said(found: Recorded, choice: dict[int, float]) -> str:
    lost = [f"{i}: {found.ops[i]}" for i, taken in choice.items() if taken < 1]
    return f"{len(lost)} of {len(choice)} uncertain lost: " + "; ".join(lost[:12])


def _disk(found: Recorded, end: int, choice: dict[int, float]) -> Disk:
    disk = Disk()
    for node in found.directories:
        disk.names[node] = {}
    for index, op in enumerate(found.ops[:end]):
        taken = choice.get(index, 1.0)
        if not taken or op.kind in ("sync", "mark"):
            continue
        if op.kind in ("data", "size"):
            _fill(disk.bytes_of.setdefault(op.of, bytearray()), op, taken)
        elif op.kind == "name":
            disk.names[op.of][op.name] = op.node
        elif op.kind == "gone":
            if disk.names[op.of].get(op.name) == op.node:
                del disk.names[op.of][op.name]
        else:
            if disk.names[op.source].get(op.old) == op.node:
                del disk.names[op.source][op.old]
            disk.names[op.of][op.name] = op.node
    return disk


def _fill(content: bytearray, op: Op, taken: float) -> None:
    if op.kind == "size":
        if len(content) < op.offset:
            content.extend(bytes(op.offset - len(content)))
        elif not op.grows:
            del content[op.offset :]
        return
    data = op.data[: int(len(op.data) * taken)]
    if len(content) < op.offset + len(data):
        content.extend(bytes(op.offset + len(data) - len(content)))
    content[op.offset : op.offset + len(data)] = data


def digest(disk: Disk) -> bytes:
    """Equal for equal trees."""
    whole = hashlib.blake2b(digest_size=16)

    def add(node: int) -> None:
        for name, child in sorted(disk.names[node].items()):
            whole.update(name.encode() + b"\0")
            if child in disk.names:
                whole.update(b"(")
                add(child)
                whole.update(b")")
            else:
                content = disk.bytes_of.get(child, b"")
                whole.update(len(content).to_bytes(8, "little") + content)

    add(ROOT)
    return whole.digest()


def write_out(disk: Disk, root: Path) -> None:
    """As real files, hard links among them."""
    made: dict[int, Path] = {}

    def write(node: int, place: Path) -> None:
        place.mkdir()
        for name, child in disk.names[node].items():
            path = place / name
            if child in disk.names:
                write(child, path)
            elif child in made:
                os.link(made[child], path)
            else:
                path.write_bytes(disk.bytes_of.get(child, b""))
                made[child] = path

    write(ROOT, root)


def without(found: Recorded, left_out: set[int]) -> Recorded:
    """As if the program had left out those fsyncs."""
    return Recorded([op for i, op in enumerate(found.ops) if i not in left_out], found.directories)


Check = Callable[[Path, list[Op]], None]  # raises AssertionError; the operations done by then
