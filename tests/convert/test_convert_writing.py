"""Where a conversion writes: what it may replace, and that a failure leaves nothing behind."""

import errno
import os

import pytest
import torch
from making import KINDS, SUFFIX, numbers
from safetensors.torch import load_file

import holdtrue
from holdtrue.engine import stored, torch_archive
from holdtrue.errors import DamageError, HoldtrueError, OpenError, SaveError
from holdtrue.limits import override


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source.pt"
    torch.save({f"w{i}": numbers("float32", 50, 50, seed=i) for i in range(4)}, path)
    return path


def names(directory):
    return sorted(p.name for p in directory.iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_what_exists_is_not_touched_without_overwrite(source, kind, tmp_path):
    place = tmp_path / "out"
    holdtrue.convert(source, place, to=kind)
    before = {p: p.read_bytes() for p in (place.rglob("*") if place.is_dir() else [place])}
    with pytest.raises(SaveError, match="already-exists"):
        holdtrue.convert(source, place, to=kind)
    assert {p: p.read_bytes() for p in before} == before
    torch.save({"other": torch.ones(1)}, tmp_path / "other.pt")
    holdtrue.convert(tmp_path / "other.pt", place, to=kind, overwrite=True)
    assert holdtrue.convert(
        place / "model.safetensors.index.json" if kind == "shards" else place, tmp_path / "x.pt"
    ).tensors == 1  # fmt: skip
    assert names(tmp_path) == ["other.pt", "out", "source.pt", "x.pt"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_something_else_is_never_replaced(source, kind, tmp_path):
    directory = tmp_path / "mine"
    directory.mkdir()
    (directory / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("a file")
    with pytest.raises(SaveError):
        holdtrue.convert(source, directory, to=kind, overwrite=True)
    assert (directory / "thesis.tex").read_text() == "years of work"
    if kind in ("holdtrue", "shards"):
        with pytest.raises(SaveError, match="not-a-directory"):
            holdtrue.convert(source, tmp_path / "file", to=kind, overwrite=True)
    assert (tmp_path / "file").read_text() == "a file"


def test_the_source_is_not_replaced_by_its_surroundings(source, tmp_path):
    holdtrue.convert(source, tmp_path / "c")
    with pytest.raises(SaveError, match="destination-unsafe"):
        holdtrue.convert(tmp_path / "c/model.safetensors", tmp_path / "c", overwrite=True)
    assert holdtrue.verify(tmp_path / "c").ok


@pytest.mark.parametrize("kind", ["torch", "holdtrue"])
def test_a_file_converted_onto_itself(source, kind, tmp_path):
    holdtrue.convert(source, tmp_path / "x", to=kind)
    holdtrue.convert(tmp_path / "x", tmp_path / "x", to=kind, overwrite=True)
    assert holdtrue.convert(tmp_path / "x", tmp_path / "y.pt").tensors == 4


def test_the_name_tells_the_kind(source, tmp_path):
    for name, kind in {
        "a.pt": "torch", "a.PTH": "torch", "a.bin": "torch", "a.ckpt": "torch",
        "a.safetensors": "safetensors", "a": "holdtrue", "run.v2": "holdtrue",
    }.items():  # fmt: skip
        assert holdtrue.convert(source, tmp_path / name).kind == kind
    for name in ("a.onnx", "a.npz", "a.pkl", "a.gguf", "nul\0"):
        with pytest.raises(SaveError, match="destination-"):
            holdtrue.convert(source, tmp_path / name)
    with pytest.raises(SaveError, match="destination-unknown"):
        holdtrue.convert(source, tmp_path / "b", to="pickle")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("after", [0, 1])
def test_a_full_disk_leaves_nothing(source, kind, after, tmp_path, monkeypatch):
    count = 0

    def full(fd, data, offset, real=os.pwrite):
        nonlocal count
        count += 1
        if count > after:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with override(chunk_bytes=16 << 10), pytest.raises(SaveError, match="disk-full"):
        holdtrue.convert(source, tmp_path / "out", to=kind)
    assert names(tmp_path) == ["source.pt"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupt_leaves_nothing_and_the_old_one_in_place(source, kind, tmp_path, monkeypatch):
    holdtrue.convert(source, tmp_path / "out", to=kind)
    listing = names(tmp_path)
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*")}

    def interrupted(fd):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        holdtrue.convert(source, tmp_path / "out", to=kind, overwrite=True)
    assert names(tmp_path) == listing
    assert {p: p.read_bytes() for p in before} == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_byte_of_the_source_is_seen_on_the_way(source, kind, tmp_path):
    data = bytearray(source.read_bytes())
    at = data.index(numbers("float32", 50, 50, seed=2).numpy().tobytes())
    data[at + 77] ^= 4
    source.write_bytes(data)
    with pytest.raises(DamageError, match="crc-mismatch") as caught:
        holdtrue.convert(source, tmp_path / "out", to=kind)
    assert "holdtrue salvage" in str(caught.value)
    assert names(tmp_path) == ["source.pt"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_byte_beside_a_view_is_seen_too(kind, tmp_path):
    large = numbers("uint8", 1000)
    torch.save({"a": large[:600], "b": large[500:]}, tmp_path / "a.pt")
    data = bytearray((tmp_path / "a.pt").read_bytes())
    data[data.index(large.numpy().tobytes()) + 550] ^= 1
    (tmp_path / "a.pt").write_bytes(data)
    with pytest.raises(DamageError, match="crc-mismatch"):
        holdtrue.convert(tmp_path / "a.pt", tmp_path / "out", to=kind)
    assert names(tmp_path) == ["a.pt"]


def test_a_flipped_byte_of_a_holdtrue_checkpoint(source, tmp_path):
    holdtrue.convert(source, tmp_path / "c")
    file = tmp_path / "c/model.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    with pytest.raises(DamageError, match="digest-mismatch"):
        holdtrue.convert(tmp_path / "c", tmp_path / "d.pt")
    assert not (tmp_path / "d.pt").exists()


def test_a_source_that_shrinks_meanwhile(source, tmp_path, monkeypatch):
    def cut(path, nbytes, real=torch_archive.NewFile):
        os.truncate(source, 20_000)
        return real(path, nbytes)

    monkeypatch.setattr(torch_archive, "NewFile", cut)
    with pytest.raises(DamageError):
        holdtrue.convert(source, tmp_path / "d.pt")
    assert names(tmp_path) == ["source.pt"]


def test_unreadable_sources_are_findings(tmp_path):
    (tmp_path / "web.pt").write_text("<!DOCTYPE html><html>not found</html>")
    for place in ("web.pt", "absent.pt", "run@best"):
        with pytest.raises(HoldtrueError):
            holdtrue.convert(tmp_path / place, tmp_path / "x")
    assert names(tmp_path) == ["web.pt"]


def test_the_newest_of_a_run_and_the_best(tmp_path):
    model = torch.nn.Linear(2, 2)
    keep = holdtrue.Keep(last=3, best=1, by="loss")
    with holdtrue.Run(tmp_path / "run", model=model, keep=keep) as run:
        for step, loss in ((1, 0.1), (2, 0.5)):
            torch.nn.init.constant_(model.weight, step)
            run.save(step, metrics={"loss": loss}, wait=True)
    for place, step in (("run", 2), ("run@best", 1), ("run@latest", 2), ("run@1", 1)):
        holdtrue.convert(tmp_path / place, tmp_path / "x.safetensors", overwrite=True)
        assert load_file(tmp_path / "x.safetensors")["weight"][0, 0] == step


def test_progress_ends_where_it_should(source, tmp_path):
    for kind in KINDS:
        told = []
        holdtrue.convert(source, tmp_path / f"out-{kind}", to=kind,
                         progress=lambda done, total: told.append((done, total)))  # fmt: skip
        assert told[-1] == (40_000, 40_000)
        assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_large_tensors_go_out_in_blocks(tmp_path, monkeypatch):
    large = numbers("float32", 512, 1024)
    torch.save({"c": large, "t": large.clone().t(), "s": torch.ones(3)}, tmp_path / "a.pt")
    sizes = []
    monkeypatch.setattr(
        os, "pwrite", lambda fd, data, at, real=os.pwrite: (
            sizes.append(len(data)), real(fd, data, at))[1],
    )  # fmt: skip
    monkeypatch.setattr(stored, "_AT_ONCE", 1 << 16)
    with override(chunk_bytes=1 << 16):
        holdtrue.convert(tmp_path / "a.pt", tmp_path / "b.safetensors")
    assert max(sizes) <= 1 << 16
    found = load_file(tmp_path / "b.safetensors")
    assert torch.equal(found["c"].view(torch.int32), large.view(torch.int32))
    assert torch.equal(found["t"].view(torch.int32), large.t().contiguous().view(torch.int32))


@pytest.mark.parametrize("kind", KINDS)
def test_names_that_would_lead_elsewhere_are_only_names(kind, tmp_path):
    """A tensor's name is a key in a file; it never becomes a path."""
    hostile = ["../../etc/passwd", "/etc/passwd", "a/../b", "C:\\x", "nul", "", "x" * 5000, "a\nb"]
    hostile += ["__metadata__", "\ud800", "$", "a#indices", "data/0", ".", "\0"]
    torch.save({name: torch.full((2,), float(i)) for i, name in enumerate(hostile)}, tmp_path / "a")
    place = tmp_path / f"deep/out{SUFFIX[kind]}"
    made = holdtrue.convert(tmp_path / "a", place, to=kind)
    left = {p for f in made.report.findings if f.code == "not-carried" for p in f.places}
    assert made.tensors + len(left) == len(hostile)
    if kind == "torch":
        found = torch.load(place, weights_only=True)
    elif kind == "holdtrue":
        assert holdtrue.verify(place).ok
        found = holdtrue.open(place)["model"]
    elif kind == "safetensors":
        found = load_file(place)
    else:
        found = load_file(place / "model-00001-of-00001.safetensors")
    for i, name in enumerate(hostile):
        if name in found:
            assert found[name].tolist() == [i, i]
    assert len(found) == made.tensors
    assert len(left) == {"torch": 0, "holdtrue": 1, "safetensors": 2, "shards": 2}[kind]
    assert names(tmp_path) == ["a", "deep"]


def test_part_names_are_file_names(tmp_path):
    keys = ["../up", "con", "RNG", "rng", "a b", "1", "A_B", "manifest", "", "x" * 300, 5, ("t",)]
    tree = {
        key: {"w": torch.full((2,), float(i)), "v": torch.ones(1)} for i, key in enumerate(keys)
    }
    torch.save(tree, tmp_path / "a.pt")
    holdtrue.convert(tmp_path / "a.pt", tmp_path / "c")
    ck = holdtrue.open(tmp_path / "c")
    assert holdtrue.verify(tmp_path / "c").ok
    assert len({name.lower() for name in ck.parts}) == len(keys)
    found = sorted(float(ck[name]["w"][0]) for name in ck.parts)
    assert found == [float(i) for i in range(len(keys))]


def test_a_small_file_does_not_become_a_full_disk(tmp_path):
    one = torch.zeros(1)
    torch.save({"w": one.expand(1 << 40), "b": one}, tmp_path / "a.pt")
    for kind in ("holdtrue", "safetensors", "shards"):
        with pytest.raises(DamageError, match="tensor-expanded"):
            holdtrue.convert(tmp_path / "a.pt", tmp_path / "out", to=kind)
    assert names(tmp_path) == ["a.pt"]
    many = {f"w{i}": torch.zeros(1000) for i in range(1)}
    weight = many["w0"]
    torch.save({f"w{i}": weight for i in range(2000)}, tmp_path / "b.pt")
    with override(expanded_bytes=1_000_000), pytest.raises(DamageError, match="tensor-expanded"):
        holdtrue.convert(tmp_path / "b.pt", tmp_path / "b.safetensors")
    holdtrue.convert(tmp_path / "b.pt", tmp_path / "c.pt")
    assert len(torch.load(tmp_path / "c.pt", weights_only=True)) == 2000


def test_a_file_without_tensors(tmp_path):
    torch.save({"epoch": 1}, tmp_path / "a.pt")
    with pytest.raises(OpenError, match="no-tensors"):
        holdtrue.convert(tmp_path / "a.pt", tmp_path / "b.pt")
    holdtrue.convert(tmp_path / "a.pt", tmp_path / "c")
    assert holdtrue.open(tmp_path / "c")["epoch"] == 1
