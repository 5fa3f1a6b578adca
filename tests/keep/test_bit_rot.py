"""What disks do to files that nobody touches: each way is found, by `verify` and by `restore`, the
tensor is named, and the model that was to be restored into is as it was."""

import json
import os
import random
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xxhash
from snapshots import everything, first_difference
from torch import nn

import holdtrue

PAGE = 4096
MIB = 1 << 20


class Span:
    """Where a tensor's bytes lie in its file."""

    def __init__(self, name: str, begin: int, end: int) -> None:
        self.name, self.begin, self.end = name, begin, end


def spans(file: Path) -> list[Span]:
    """Read by hand from the safetensors header."""
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        header = json.loads(opened.read(length))
    header.pop("__metadata__", None)
    start = 8 + length
    return [Span(n, *(start + o for o in e["data_offsets"])) for n, e in header.items()]


class Net(nn.Module):
    """A class of a file of its own, which is kept as source."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 1)
        self.norm = nn.BatchNorm1d(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.norm(self.first(x)))


def small(seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    model(torch.randn(3, 2)).sum().backward()
    optimizer.step()
    return {"model": model, "optimizer": optimizer, "schedule": schedule, "note": [seed]}


def kept_with_everything(folder: Path) -> tuple[Path, Any]:
    """A checkpoint with each kind of file that is ever written into one, and its owner's key."""
    pytest.importorskip("cryptography", reason="a seal needs cryptography: holdtrue[seal]")
    from cryptography.hazmat.primitives.asymmetric import ed25519

    key = ed25519.Ed25519PrivateKey.generate()
    state, probe = small(1), torch.randn(3, 2)
    path = holdtrue.save(
        folder / "kept", step=1, metrics={"loss": 0.5}, probe=probe, seal=key, **state
    ).path
    there = {str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()}
    assert there == {
        "manifest.json", "model.safetensors", "optimizer.safetensors", "probe.safetensors",
        "model.sig", f"source/{Path(__file__).name}",
    }  # fmt: skip
    return path, key.public_key()


def told(path: Path, key: Any = None) -> list[holdtrue.Finding]:
    """The errors of `verify`, which says whether anything is wrong."""
    try:
        report = holdtrue.verify(path, sealed_by=key)
    except holdtrue.HoldtrueError as error:
        report = error.report
    return list(report.errors)


def refuses(path: Path, targets: dict[str, Any]) -> bool:
    try:
        holdtrue.open(path).restore(**targets)
    except holdtrue.HoldtrueError:
        return True
    return False


def changed(data: bytes, i: int, way: str) -> bytes:
    if way == "flipped":
        return data[:i] + bytes([data[i] ^ 1 << i % 8]) + data[i + 1 :]
    if way == "doubled":
        return data[:i] + data[i : i + 1] * 2 + data[i + 1 :]
    return data[:i] + data[i + 1 :] + (b"\0" if way == "dropped, the length kept" else b"")


def tensors_hit(where: list[Span], before: bytes, after: bytes) -> set[str]:
    """The tensors whose bytes are others, where the header and the length are as they were."""
    start = min((s.begin for s in where), default=len(before))
    if len(before) != len(after) or before[:start] != after[:start]:
        return set()
    return {s.name for s in where if before[s.begin : s.end] != after[s.begin : s.end]}


@pytest.mark.parametrize("every", [127, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("way", ["flipped", "dropped", "dropped, the length kept", "doubled"])
def test_each_byte_of_every_file(way: str, every: int, tmp_path: Path, figure: Any) -> None:
    path, key = kept_with_everything(tmp_path)
    assert told(path, key) == []
    targets = small(2)
    before = everything(**targets)
    tried = in_tensors = 0
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        data = file.read_bytes()
        where = spans(file) if file.suffix == ".safetensors" else []
        in_spans = {i for span in where for i in range(span.begin, span.end)}
        for i in sorted(in_spans.union(range(0, len(data), every))):
            damaged = changed(data, i, way)
            if damaged == data:  # the last one was a zero
                continue
            file.write_bytes(damaged)
            at = (str(file.relative_to(path)), i)
            if file.name == "model.sig":  # a restore does not look at it, and says nothing of it
                assert told(path, key), at
            else:
                errors = told(path)
                assert errors, at
                names = tensors_hit(where, data, damaged)
                # A restore reads what it restores, and no part of it is the probe.
                unread = names and file.name == "probe.safetensors"
                assert unread or refuses(path, targets), at
                in_tensors += bool(names)
                if names:  # and the seal is broken too
                    found = [f for f in errors if f.code == "digest-mismatch"]
                    assert {f.where.partition(": ")[2].partition("/")[2] for f in found} == names, (
                        at,
                        errors,
                    )
            tried += 1
        file.write_bytes(data)
    assert tried > 20_000 // every
    assert way not in ("flipped", "dropped, the length kept") or in_tensors > 50
    assert first_difference(before, everything(**targets)) == ""
    assert told(path, key) == []
    share = "every byte" if every == 1 else f"each {every}th byte, and each of a tensor,"
    figure(f"{share} of a checkpoint with all kinds of files {way}, each found", tried)
    figure(f"{share} of a checkpoint {way}, in a tensor that was named", in_tensors)


# -- large ones ------------------------------------------------------------------------------------


class Large(nn.Module):
    """Tensors of a few bytes and of many megabytes, in two files; `mib` in all."""

    def __init__(self, mib: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        each = mib * MIB // 4 // 8
        for i in range(6):
            self.register_parameter(f"weight{i}", nn.Parameter(torch.randn(each)))
            self.register_parameter(f"bias{i}", nn.Parameter(torch.randn(5)))
        self.register_buffer("cache", torch.randn(2 * each), persistent=False)


Damage = list[tuple[int, bytes]]  # what is written where


def damages(file: Path, chance: random.Random, rounds: int) -> Iterator[tuple[str, Damage]]:
    """Ways in which a file of the same length is not the one that was written."""
    size = file.stat().st_size
    with file.open("rb") as opened:

        def at(offset: int, count: int) -> bytes:
            opened.seek(offset)
            return opened.read(count)

        for _ in range(rounds):
            place = chance.randrange(size)
            yield "a flipped bit", [(place, bytes([at(place, 1)[0] ^ 1 << chance.randrange(8)]))]
            several = sorted({chance.randrange(size) for _ in range(20)})
            yield "twenty flipped bytes", [(i, bytes([at(i, 1)[0] ^ 0xFF])) for i in several]
            page = chance.randrange(size // PAGE) * PAGE
            yield "a zeroed page", [(page, bytes(PAGE))]
            start = chance.randrange(size - 2 * MIB)
            yield "a zeroed megabyte", [(start, bytes(MIB))]
            one, other = (i * PAGE for i in chance.sample(range(size // PAGE), 2))
            yield "two pages exchanged", [(one, at(other, PAGE)), (other, at(one, PAGE))]
            yield "a page written to another place", [(other, at(one, PAGE))]
            one, other = (i * MIB for i in chance.sample(range(size // MIB), 2))
            yield "two megabytes exchanged", [(one, at(other, MIB)), (other, at(one, MIB))]
            yield "bytes moved by one", [(start, at(start + 1, PAGE))]
            place = chance.randrange(size - 8)
            yield "two bytes exchanged", [(place, at(place, 8)[::-1])]
        same = [s for s in spans(file) if s.end - s.begin > MIB]
        for a, b in zip(same, same[1:], strict=False):
            if a.end - a.begin == b.end - b.begin:
                count = a.end - a.begin
                swap = [(a.begin, at(b.begin, count)), (b.begin, at(a.begin, count))]
                yield "two tensors of one shape exchanged", swap


def write(file: Path, damage: Damage) -> Damage:
    """Do it; what undoes it."""
    undo: Damage = []
    fd = os.open(file, os.O_RDWR)
    for offset, data in damage:
        undo.insert(0, (offset, os.pread(fd, len(data), offset)))
        os.pwrite(fd, data, offset)
    os.close(fd)
    return undo


def hit(file: Path, undo: Damage) -> tuple[set[str], bool]:
    """The tensors whose bytes changed, and whether the header did."""
    names: set[str] = set()
    header = False
    with file.open("rb") as opened:
        for offset, old in undo:
            opened.seek(offset)
            differs = np.frombuffer(opened.read(len(old)), np.uint8) != np.frombuffer(old, np.uint8)
            for span in WHERE[file]:
                first, last = max(0, span.begin - offset), max(0, span.end - offset)
                if differs[first:last].any():
                    names.add(span.name)
            start = min(s.begin for s in WHERE[file]) - offset
            header |= bool(differs[: max(0, start)].any())
    return names, header


WHERE: dict[Path, list[Span]] = {}


def state_digest(model: nn.Module) -> list[tuple[str, int, int, str]]:
    """Address, version and bytes of everything."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return [
        (n, t.data_ptr(), t._version, xxhash.xxh3_128_hexdigest(t.detach().numpy()))
        for n, t in tensors
    ]


def named(report: holdtrue.Report) -> set[str]:
    """The tensors that the findings name."""
    assert {f.code for f in report.errors} == {"digest-mismatch"}
    return {f.where.rpartition("/")[2] for f in report.errors}


@pytest.mark.parametrize(
    ("mib", "rounds"),
    [
        pytest.param(16, 2, id="16 MiB"),
        pytest.param(64, 12, marks=pytest.mark.slow, id="64 MiB"),
        pytest.param(256, 8, marks=pytest.mark.slow, id="256 MiB"),
    ],
)
def test_large_files_rot(mib: int, rounds: int, tmp_path: Path, figure: Any) -> None:
    path = holdtrue.save(tmp_path / "kept", model=Large(mib, 1)).path
    target = Large(mib, 2)
    before = state_digest(target)
    chance = random.Random(mib)
    files = sorted(path.glob("*.safetensors"))
    assert len(files) == 2
    tried = 0
    for file in files:
        WHERE[file] = spans(file)
        for way, damage in damages(file, chance, rounds):
            undo = write(file, damage)
            names, header = hit(file, undo)
            if not names and not header:
                continue  # the same bytes stood there: nothing was damaged
            report = holdtrue.verify(path)
            with pytest.raises(holdtrue.DamageError) as caught:
                holdtrue.open(path).restore(model=target)
            if header:
                expected = {"digest-mismatch"}
                assert {f.code for f in report.errors} == expected, way
                assert all(file.name in f.where for f in report.errors)
            else:
                assert named(report) == names, (way, report)
                assert named(caught.value.report) <= names, (way, caught.value.report)
            write(file, undo)
            tried += 1
            figure(f"large files with {way}, each found")
    a, b = files
    for way in ("truncated", "longer", "exchanged", "removed", "of an older checkpoint"):
        for file in files:
            kept = tmp_path / "spare"
            file.rename(kept)
            if way == "truncated":
                shutil.copy(kept, file)
                os.truncate(file, chance.randrange(kept.stat().st_size))
            elif way == "longer":
                shutil.copy(kept, file)
                with file.open("ab") as opened:
                    opened.write(bytes(PAGE))
            elif way == "exchanged":
                shutil.copy(b if file == a else a, file)
            elif way == "of an older checkpoint":
                other = holdtrue.save(tmp_path / "older", model=Large(mib, 3)).path
                (other / file.name).rename(file)
                shutil.rmtree(other)
            report = holdtrue.verify(path)
            assert not report.ok, way
            assert any(file.name in f.where for f in report.errors), (way, report)
            with pytest.raises(holdtrue.DamageError):
                holdtrue.open(path).restore(model=target)
            file.unlink(missing_ok=True)
            kept.rename(file)
            figure(f"large files {way}, each found")
    assert state_digest(target) == before
    assert tried >= rounds * 10
    assert holdtrue.verify(path).findings == ()
    holdtrue.open(path).restore(model=target)
    assert torch.equal(target.weight5, Large(mib, 1).weight5)


# -- runs ------------------------------------------------------------------------------------------


@pytest.fixture
def rotten(tmp_path: Path) -> Path:
    """A run of three steps, of which the later two have a flipped byte in a tensor."""
    kept = small(1)
    with holdtrue.Run(tmp_path / "run", **kept) as run:
        for step in (1, 2, 3):
            kept["note"][0] = step
            nn.init.constant_(kept["model"].first.weight, step)
            run.save(step, wait=True)
    for step in (2, 3):
        file = tmp_path / "run" / f"step-00000000{step}" / "model.safetensors"
        write(file, [(spans(file)[0].begin, b"\xaa")])
    return tmp_path / "run"


def passed(report: holdtrue.Report | None) -> set[str]:
    assert report is not None
    found = [f for f in report.findings if f.code == "checkpoint-passed-over"]
    return {Path(f.where).name for f in found}


def test_resume_takes_the_next_older_good_one_and_restore_does_not(rotten: Path) -> None:
    """`open(run)` is one checkpoint, the latest: a restore from it never goes back by itself."""
    targets = small(2)
    before = everything(**targets)
    for which in ("run", "run@3", "run@2"):
        with pytest.raises(holdtrue.DamageError) as caught:
            holdtrue.open(rotten.parent / which).restore(**targets)
        assert [f.code for f in caught.value.report.errors] == ["digest-mismatch"]
    assert first_difference(before, everything(**targets)) == ""
    with holdtrue.Run(rotten, **targets) as run:
        assert run.resume() == 1
        assert passed(run.report) == {"step-000000002", "step-000000003"}
    assert targets["model"].first.weight.unique().tolist() == [1.0]


def test_restore_takes_the_next_older_good_one_when_asked_to(
    rotten: Path, caplog: pytest.LogCaptureFixture
) -> None:
    targets = small(2)
    checkpoint = holdtrue.open(f"{rotten}@whole")
    assert (checkpoint.step, checkpoint["note"]) == (1, [1])
    assert [r.args[0] for r in caplog.records if "passed over" in r.message] == [3, 2]
    assert passed(checkpoint.restore(**targets)) == {"step-000000002", "step-000000003"}
    assert targets["model"].first.weight.unique().tolist() == [1.0]
    assert holdtrue.verify(f"{rotten}@whole").ok
    holdtrue.convert(f"{rotten}@whole", rotten.parent / "whole.safetensors")


def test_the_latest_is_taken_where_it_is_whole(rotten: Path) -> None:
    shutil.rmtree(rotten / "step-000000003")
    shutil.rmtree(rotten / "step-000000002")
    checkpoint = holdtrue.open(f"{rotten}@whole")
    assert checkpoint.step == 1
    assert passed(checkpoint.restore(model=small(2)["model"])) == set()


def test_of_a_run_without_a_whole_checkpoint_the_latest_damage_is_told(rotten: Path) -> None:
    (rotten / "step-000000003" / "manifest.json").unlink()
    file = rotten / "step-000000001" / "manifest.json"
    file.write_bytes(file.read_bytes().replace(b"model", b"mOdel", 1))
    with pytest.raises(holdtrue.DamageError) as caught:
        holdtrue.open(f"{rotten}@whole")
    (finding,) = caught.value.report.findings
    assert (finding.code, Path(finding.where).name) == ("manifest-missing", "step-000000003")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read all")
def test_what_may_not_be_read_is_not_passed_over(rotten: Path) -> None:
    (rotten / "step-000000003" / "manifest.json").chmod(0)
    with pytest.raises(holdtrue.HoldtrueError) as caught:
        holdtrue.open(f"{rotten}@whole")
    assert {f.code for f in caught.value.report.findings} == {"permission-denied"}
