"""A run as a list: what each of its checkpoints is, and what changed since the one before."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from holdtrue.errors import HoldtrueError
from holdtrue.formats.checkpoint_directory import read_manifest, to_view
from holdtrue.records.manifest import Manifest
from holdtrue.records.metrics import manifest_metrics
from holdtrue.storage.locating import best_first
from holdtrue.verification import verify


class Entry(Struct, frozen=True, kw_only=True):
    """One checkpoint of a run."""

    step: int
    path: Path
    manifest: Manifest | None = None  # None for a damaged one
    damaged: str | None = None  # what is wrong with it
    checked: str = ""  # "sizes": each file is there in full; "bytes": each is as it was written
    best: bool = False
    changes: tuple[str, ...] = ()  # since the one before, beside weights and metrics
    directory: tuple[int, int] | None = None  # its inode and when its list of files changed last

    @property
    def metrics(self) -> dict[str, Any]:
        return manifest_metrics(self.manifest) if self.manifest else {}

    @property
    def nbytes(self) -> int:
        return sum(f.nbytes for f in self.manifest.files.values()) if self.manifest else 0


def read_history(
    found: Mapping[int, Path], *, every_byte: bool = False, known: Iterable[Entry] = ()
) -> list[Entry]:
    """The checkpoints of a run, oldest first. Nothing is raised for a damaged one.

    Those that are `known` from an earlier call, in the same directory, are not read again.
    """
    earlier = {(e.path, e.directory): e for e in known if e.manifest is not None}
    entries: list[Entry] = []
    before: Manifest | None = None
    for step, path in found.items():
        entry = earlier.get((path, _directory(path))) or _read(step, path, every_byte)
        if before is not None and entry.manifest is not None:
            entry = replace(entry, changes=tuple(_changes(before, entry.manifest)))
        elif entry.changes:  # those before it were removed since
            entry = replace(entry, changes=())
        before = entry.manifest or before
        entries.append(entry)
    whole = [(e.step, e.manifest) for e in entries if e.manifest is not None]
    ranking = next((m.ranking for _, m in reversed(whole) if m.ranking), None)
    order = best_first(whole, ranking) if ranking else []
    best = order[0] if order else None
    return [
        entry if entry.best == (entry.step == best) else replace(entry, best=entry.step == best)
        for entry in entries
    ]


def ranked_by(entries: list[Entry]) -> str | None:
    """The metric that says which checkpoint is best."""
    rankings = [e.manifest.ranking for e in reversed(entries) if e.manifest is not None]
    return next((ranking.by for ranking in rankings if ranking is not None), None)


def _directory(path: Path) -> tuple[int, int] | None:
    """What tells a directory from another that takes its place; None where it is gone."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _read(step: int, path: Path, every_byte: bool) -> Entry:
    directory = _directory(path)  # before it is read: what changes meanwhile is read again
    try:
        manifest = read_manifest(path)
        to_view(path, manifest)
        report = verify(path) if every_byte else None
    except HoldtrueError as error:
        return Entry(step=step, path=path, damaged=error.report.findings[0].what)
    if report is not None and not report.ok:
        return Entry(step=step, path=path, damaged=report.errors[0].what)
    return Entry(
        step=step,
        path=path,
        manifest=manifest,
        checked="bytes" if every_byte else "sizes",
        directory=directory,
    )


def _changes(before: Manifest, now: Manifest) -> list[str]:
    """What is not the same any more, in a word each."""
    found: list[str] = []
    old, new = before.environment, now.environment
    if old.git and new.git and old.git.commit != new.git.commit:
        found.append(f"commit {old.git.commit[:8]} → {new.git.commit[:8]}")
    elif old.git and new.git and old.git.diff != new.git.diff:
        found.append("uncommitted changes")
    for name in ("torch", "numpy", "python", "platform", "threads"):
        a, b = getattr(old, name), getattr(new, name)
        if a != b:
            found.append(f"{name} {a} → {b}")
    if old.command != new.command:
        found.append("command")
    found += [f"{key} {old.flags.get(key)} → {value}" for key, value in new.flags.items()
              if old.flags.get(key) != value]  # fmt: skip
    found += [f"+{name}" for name in now.parts if name not in before.parts]
    found += [f"-{name}" for name in before.parts if name not in now.parts]
    for name, part in now.parts.items():
        earlier = before.parts.get(name)
        if earlier is not None and earlier.architecture != part.architecture:
            found.append(f"architecture of {name}")
    if set(before.tensors) != set(now.tensors):
        found.append(f"{len(before.tensors)} → {len(now.tensors)} tensors")
    return found
